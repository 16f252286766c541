"""Compares the tensors of a module with what its GPTQ parameters say, before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quire.api.errors import QuantizationError
from quire.api.quantization import StoredModule, StoredTensor
from quire_quantization.gptq.config import BITS, ModuleParameters
from quire_quantization.gptq.packing import WORD_BITS, num_words

FLOATS = ("float16", "bfloat16", "float32")


@dataclass(slots=True, frozen=True)
class GPTQLayout:
    """What a module's tensors are; parts of a layer with equal layouts can lie in one.

    Attributes:
        bits: of a weight. group_size: inputs that share a scale.
        sym: whether the config says that all zero points are 2**(bits - 1).
        zero_offset: what the label says is to be added to a stored zero point.
        has_own_order: whether each part may assign inputs to groups in an order of its own (act-order).
        has_g_idx: whether it stores each input's group.
        scales_dtype: as torch names it.
    """

    bits: int
    group_size: int
    sym: bool
    zero_offset: int
    has_own_order: bool
    has_g_idx: bool
    scales_dtype: str


def read_layout(module: StoredModule, parameters: ModuleParameters, zero_offset: int) -> GPTQLayout:
    """The layout of a module.

    Raises:
        QuantizationError: a tensor is missing, or its shape or dtype is not what the parameters say.
    """
    bits, inputs = parameters.bits, module.in_features
    group_size = parameters.group_size or inputs
    for suffix in ("qweight", "scales", "qzeros"):
        if suffix not in module.tensors:
            there = ", ".join(sorted(module.tensors)) or "none"
            raise QuantizationError(
                f"tensor {module.name + '.' + suffix!r} is missing; found of this module: {there}. "
                "Fetch the checkpoint again, or check that its quantization_config is its own"
            )
    if inputs % group_size:
        raise QuantizationError(
            f"tensor {module.name + '.scales'!r}: group_size={group_size} does not divide the module's {inputs} "
            f"inputs; found shape {list(module.tensors['scales'].shape)}, expected a group_size that divides them"
        )
    if parameters.desc_act and group_size != inputs and "g_idx" not in module.tensors:
        raise QuantizationError(
            f"tensor {module.name + '.g_idx'!r} is missing: desc_act is true, so expected int32 [{inputs}], the "
            "group of each input; if the checkpoint has no act-order, set desc_act to false"
        )
    _check_tensors(module, bits, inputs // group_size)
    return GPTQLayout(
        bits=bits,
        group_size=group_size,
        sym=parameters.sym,
        zero_offset=zero_offset,
        has_own_order=parameters.desc_act and group_size != inputs,
        has_g_idx="g_idx" in module.tensors,
        scales_dtype=module.tensors["scales"].dtype,
    )


def _check_tensors(module: StoredModule, bits: int, groups: int) -> None:
    inputs, qweight = module.in_features, module.tensors["qweight"]
    if len(qweight.shape) != 2:
        raise _mismatch(module, "qweight", "two dimensions", "")
    outputs = qweight.shape[1] if module.out_features is None else module.out_features
    words = num_words(inputs, bits, "inputs")
    expected: Mapping[str, tuple[tuple[int, ...], tuple[str, ...]]] = {
        "qweight": ((words, outputs), ("int32",)),
        "qzeros": ((groups, num_words(outputs, bits, "outputs")), ("int32",)),
        "scales": ((groups, outputs), FLOATS),
        "g_idx": ((inputs,), ("int32",)),
        "bias": ((outputs,), FLOATS),
    }
    for suffix, (shape, dtypes) in expected.items():
        tensor = module.tensors.get(suffix)
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise _mismatch(module, suffix, str(list(shape)), _hint(suffix, tensor, inputs, bits))
        if tensor.dtype not in dtypes:
            raise QuantizationError(
                f"tensor {module.name + '.' + suffix!r} is {tensor.dtype}; expected {' or '.join(dtypes)}"
            )


def _mismatch(module: StoredModule, suffix: str, expected: str, hint: str) -> QuantizationError:
    outputs = "?" if module.out_features is None else module.out_features
    return QuantizationError(
        f"tensor {module.name + '.' + suffix!r} has shape {list(module.tensors[suffix].shape)}; expected "
        f"{expected} for {module.in_features} inputs and {outputs} outputs{hint}. Check bits, group_size and "
        "dynamic of the quantization_config, and that config.json belongs to these weights"
    )


def _hint(suffix: str, tensor: StoredTensor, inputs: int, bits: int) -> str:
    if suffix != "qweight":
        return ""
    fitting = [b for b in BITS if tensor.shape[0] * WORD_BITS == inputs * b]
    return f" of {bits} bits; it is that of {fitting[0]} bits" if fitting else f" of {bits} bits"
