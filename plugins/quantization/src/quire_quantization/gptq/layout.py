"""Compares the tensors of a module with what its GPTQ parameters say, before anything is read."""

from __future__ import annotations

from dataclasses import dataclass

from quire.api.errors import QuantizationError
from quire.api.quantization import StoredModule
from quire_quantization.gptq.config import BITS, GPTQConfig
from quire_quantization.gptq.packing import WORD_BITS, num_words
from quire_quantization.tensor_checks import FLOATS, outputs_of, require

_REMEDY = "check bits, group_size, desc_act and dynamic of the config, and that config.json belongs to these weights"


@dataclass(slots=True, frozen=True)
class GPTQLayout:
    """What a module's tensors are; parts of a layer with equal layouts can lie in one.

    Attributes:
        bits: of a weight. group_size: inputs that share a scale.
        sym: whether the config says that all zero points are 2**(bits - 1).
        zero_offset: what the label says is to be added to a stored zero point.
        by_word: whether it is known that this is added to whole words, with carries.
        has_own_order: whether each part may assign inputs to groups in an order of its own (act-order).
        has_g_idx: whether it stores each input's group.
        scales_dtype: as torch names it.
    """

    bits: int
    group_size: int
    sym: bool
    zero_offset: int
    by_word: bool
    has_own_order: bool
    has_g_idx: bool
    scales_dtype: str


def read_layout(module: StoredModule, config: GPTQConfig) -> GPTQLayout:
    """The layout of a module.

    Raises:
        QuantizationError: a tensor is missing, or its shape or dtype is not what the config says.
    """
    parameters = config.parameters_of(module.name)
    bits, inputs = parameters.bits, module.in_features
    group_size = parameters.group_size or inputs
    if inputs % group_size:
        raise QuantizationError(
            f"its {inputs} inputs are not a multiple of the group size {group_size}: mend group_size in the config, or "
            "quantize with one that divides"
        )
    has_own_order = parameters.desc_act and group_size != inputs
    _check_tensors(module, bits, inputs // group_size, has_own_order)
    return GPTQLayout(
        bits=bits,
        group_size=group_size,
        sym=parameters.sym,
        zero_offset=config.zero_offset,
        by_word=config.by_word,
        has_own_order=has_own_order,
        has_g_idx="g_idx" in module.tensors,
        scales_dtype=module.tensors["scales"].dtype,
    )


def _check_tensors(module: StoredModule, bits: int, groups: int, has_own_order: bool) -> None:
    inputs, outputs = module.in_features, outputs_of(module, "qweight", dim=1)
    words, zero_words = num_words(inputs, bits, "inputs"), num_words(outputs, bits, "outputs")
    require(module, "qweight", ("int32",), (words, outputs), remedy=_remedy(module, bits))
    require(module, "qzeros", ("int32",), (groups, zero_words), remedy=_REMEDY)
    require(module, "scales", FLOATS, (groups, outputs), remedy=_REMEDY)
    if has_own_order or "g_idx" in module.tensors:
        remedy = f"desc_act is true; {_REMEDY}" if has_own_order else _REMEDY
        require(module, "g_idx", ("int32",), (inputs,), remedy=remedy)
    if "bias" in module.tensors:
        require(module, "bias", FLOATS, (outputs,), remedy=_REMEDY)


def _remedy(module: StoredModule, bits: int) -> str:
    """What to mend: the bits, where the weight's shape is that of others."""
    found = module.tensors.get("qweight")
    rows = found.shape[0] if found is not None and found.shape else 0
    fitting = [other for other in BITS if rows * WORD_BITS == module.in_features * other and other != bits]
    return f"it is that of {fitting[0]} bits; {_REMEDY}" if fitting else _REMEDY
