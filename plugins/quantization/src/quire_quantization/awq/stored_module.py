"""How a checkpoint stores a module, and whether its tensors are what the config says."""

from __future__ import annotations

import torch

from quire.api.errors import QuantizationError
from quire.api.quantization import StoredModule
from quire_quantization.awq.config import AwqConfig, Layout
from quire_quantization.awq.packing import FAST_ROWS, PER_WORD
from quire_quantization.awq.tensors import INPUTS_TOGETHER, OUTPUTS_TOGETHER, AwqFormat, InputRange

_OWN = ("qweight", "qzeros", "scales", "scaled_zeros")
_SCALE_DTYPES = ("float16", "bfloat16", "float32")


def is_plain(module: StoredModule) -> bool:
    """Whether a module is stored in 16 bits, and nothing of AWQ's with it.

    Raises:
        QuantizationError: it is stored both ways.
    """
    own = [suffix for suffix in _OWN if suffix in module.tensors]
    if own and "weight" in module.tensors:
        raise QuantizationError(
            f"both weight and {', '.join(own)} are stored; a module is quantized or it is not: delete one of them"
        )
    return "weight" in module.tensors


def read_format(config: AwqConfig, module: StoredModule) -> AwqFormat:
    """How a quantized module is stored, its tensors checked.

    Raises:
        QuantizationError: tensors are missing, or their shapes or dtypes are not what the config says.
    """
    zeros_suffix = _zeros_suffix(config, module)
    wanted = ["qweight", "scales", *([zeros_suffix] if zeros_suffix else [])]
    missing = [f"{module.name}.{suffix}" for suffix in wanted if suffix not in module.tensors]
    if missing:
        raise QuantizationError(
            f"the checkpoint lacks {', '.join(missing)} (it has {', '.join(sorted(module.tensors)) or 'nothing'} "
            "of the module); fetch it again, or list the module in modules_to_not_convert"
        )
    group_size = config.group_size_of(module.name, module.in_features)
    _check_inputs(config.layout, module.in_features, group_size)
    scales = module.tensors["scales"]
    if scales.dtype not in _SCALE_DTYPES or len(scales.shape) != 2:
        _refuse(module, "scales", f"a matrix of {', '.join(_SCALE_DTYPES)}")
    groups = module.in_features // group_size
    stored_groups = groups
    if config.layout != "gemm":
        stored_groups = scales.shape[1 if config.layout == "gemv" else 0]
    if stored_groups < groups or (config.layout != "gemm" and stored_groups % PER_WORD):
        _refuse(
            module, "scales", f"{groups} groups (group_size {group_size}), padded to a multiple of {PER_WORD}"
        )
    stored = AwqFormat(config.layout, group_size, stored_groups, getattr(torch, scales.dtype), zeros_suffix)
    _check_tensors(stored, module, scales.shape[0 if config.layout == "gemv" else 1])
    return stored


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
    """Compare with the layer's shapes; the number of outputs is the model's where the module is of one part."""
    outputs = outputs if module.out_features is None else module.out_features
    unit = OUTPUTS_TOGETHER[stored.layout]
    if outputs % unit:
        raise QuantizationError(
            f"its {outputs} outputs are not a multiple of {unit}, which version {stored.layout!r} packs together"
        )
    whole = InputRange(0, module.in_features, module.in_features)
    for tensor in stored.tensors(whole, outputs):
        found = module.tensors[tensor.suffix]
        dtype = str(tensor.dtype).removeprefix("torch.")
        if (found.shape, found.dtype) != (tensor.shape, dtype):
            _refuse(module, tensor.suffix, f"{dtype} {list(tensor.shape)}", _hint(stored, module, outputs))


def _hint(stored: AwqFormat, module: StoredModule, outputs: int) -> str:
    """What the weight's shape is of, where that is another layout."""
    shapes: dict[Layout, tuple[int, int]] = {
        "gemm": (module.in_features, outputs // PER_WORD),
        "gemv": (outputs, module.in_features // PER_WORD),
        "gemv_fast": (outputs // FAST_ROWS, module.in_features),
    }
    found = module.tensors["qweight"].shape
    others = [layout for layout, shape in shapes.items() if shape == found and layout != stored.layout]
    if others and found != shapes[stored.layout]:
        return f"the weight is stored as version {others[0]} has it: mend `version`"
    return "mend the config, or fetch the checkpoint again"


def _refuse(
    module: StoredModule, suffix: str, expected: str, remedy: str = "fetch the checkpoint again"
) -> None:
    found = module.tensors[suffix]
    raise QuantizationError(
        f"tensor {module.name}.{suffix} is {found.dtype} {list(found.shape)}, expected {expected}: {remedy}"
    )
