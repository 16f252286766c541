"""How a checkpoint stores a module, and whether its tensors are what the config says."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from quire.api.errors import QuantizationError
from quire.api.quantization import StoredModule, StoredTensor
from quire_quantization.awq.config import AwqConfig, Layout
from quire_quantization.awq.packing import FAST_ROWS, PER_WORD
from quire_quantization.awq.tensors import INPUTS_TOGETHER, OUTPUTS_TOGETHER, AwqFormat, InputRange
from quire_quantization.tensor_checks import FLOATS, outputs_of, require

OWN_TENSORS = ("qweight", "qzeros", "scales", "scaled_zeros")
"""Suffixes of what only quantized modules have."""

_REMEDY = (
    "check version, group_size and zero_point of the config, and that config.json belongs to these weights, or fetch "
    "the checkpoint again"
)


def read_format(config: AwqConfig, module: StoredModule) -> AwqFormat:
    """How a quantized module is stored, its tensors checked.

    Raises:
        QuantizationError: tensors are missing, or their shapes or dtypes are not what the config says.
    """
    _check_label(config.layout, module)
    group_size = config.group_size_of(module.name, module.in_features)
    _check_inputs(config.layout, module.in_features, group_size)
    scales = require(module, "scales", FLOATS, remedy=_REMEDY)
    stored = AwqFormat(
        layout=config.layout,
        group_size=group_size,
        stored_groups=_stored_groups(config.layout, scales, module.in_features // group_size),
        scale_dtype=getattr(torch, scales.dtype),
        zeros_suffix=_zeros_suffix(config, module),
    )
    _check_tensors(stored, module, outputs_of(module, "scales", 0 if config.layout == "gemv" else 1))
    return stored


def _stored_groups(layout: Layout, scales: StoredTensor, groups: int) -> int:
    """The groups that scales should have room for: the inputs', in gemv and gemv_fast padded to any multiple of 8."""
    if layout == "gemm":
        return groups
    found = scales.shape[1 if layout == "gemv" else 0] if len(scales.shape) == 2 else 0
    is_padded = found >= groups and found % PER_WORD == 0
    return found if is_padded else -(-groups // PER_WORD) * PER_WORD


def _zeros_suffix(config: AwqConfig, module: StoredModule) -> str | None:
    names = ("qzeros", "scaled_zeros") if config.layout == "gemv_fast" else ("qzeros",)
    stored = next((name for name in names if name in module.tensors), None)
    return names[0] if stored is None and config.has_zero_point else stored


def _check_inputs(layout: Layout, in_features: int, group_size: int) -> None:
    if in_features % group_size:
        raise QuantizationError(
            f"its {in_features} inputs are not a multiple of the group size {group_size}: mend group_size in the "
            "config, or quantize with one that divides"
        )
    unit = INPUTS_TOGETHER[layout]
    if in_features % unit:
        raise QuantizationError(
            f"its {in_features} inputs are not a multiple of {unit}, which version {layout!r} packs together: "
            "save the checkpoint with version gemm"
        )


def _check_tensors(stored: AwqFormat, module: StoredModule, outputs: int) -> None:
    """Compare with the layer's shapes."""
    unit = OUTPUTS_TOGETHER[stored.layout]
    if outputs % unit:
        raise QuantizationError(
            f"its {outputs} outputs are not a multiple of {unit}, which version {stored.layout!r} packs together"
        )
    whole = InputRange(0, module.in_features, module.in_features)
    for tensor in stored.tensors(whole, outputs):
        dtype = str(tensor.dtype).removeprefix("torch.")
        require(module, tensor.suffix, (dtype,), tensor.shape, remedy=_REMEDY)


def _check_label(layout: Layout, module: StoredModule) -> None:
    """Refuse tensors that are those of another layout, whatever else there is to say of them."""
    weight, scales = module.tensors.get("qweight"), module.tensors.get("scales")
    if weight is None or scales is None or len(scales.shape) != 2:
        return
    by_column, by_row = outputs_of(module, "scales", 1), outputs_of(module, "scales", 0)
    inputs = module.in_features
    expected: Mapping[Layout, tuple[str, tuple[int, int], int]] = {
        "gemm": ("int32", (inputs, by_column // PER_WORD), 1),
        "gemv": ("int32", (by_row, inputs // PER_WORD), 0),
        "gemv_fast": ("int16", (by_column // FAST_ROWS, inputs), 1),
    }
    fitting = [
        name
        for name, (dtype, shape, dim) in expected.items()
        if (weight.dtype, weight.shape) == (dtype, shape)
        and scales.shape[dim] == outputs_of(module, "scales", dim)
    ]
    if fitting and layout not in fitting:
        raise QuantizationError(
            f"tensor 'qweight' is {weight.dtype} {list(weight.shape)}, which is not version {layout}: the weight is "
            f"stored as version {fitting[0]} has it: mend `version`"
        )
