"""Whether a module's tensors in the checkpoint are what its config says."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quire.api.errors import QuantizationError
from quire.api.quantization import StoredModule, StoredTensor
from quire.nn.linear_method import TensorSlot

FLOATS = ("float16", "bfloat16", "float32")
"""Dtypes of scales."""

REMEDY = "check that config.json belongs to these weights, or fetch the checkpoint again"


def is_unquantized(module: StoredModule, own: tuple[str, ...]) -> bool:
    """Whether a module has a plain weight, and none of a method's own tensors.

    Args:
        module: asked for its tensors.
        own: suffixes of the method's, none of them "weight".

    Raises:
        QuantizationError: it has both.
    """
    stored = [suffix for suffix in own if suffix in module.tensors]
    if stored and "weight" in module.tensors:
        raise QuantizationError(
            f"both weight and {', '.join(stored)} are stored; a module is quantized or it is not: delete one of them"
        )
    return "weight" in module.tensors


def require(
    module: StoredModule,
    suffix: str,
    dtypes: tuple[str, ...],
    *shapes: tuple[int, ...],
    remedy: str = REMEDY,
) -> StoredTensor:
    """One of a module's tensors.

    Args:
        module: asked for its tensor.
        suffix: the tensor's name after the module's.
        dtypes: those that it may have.
        *shapes: likewise; none: any.
        remedy: what to do otherwise.

    Raises:
        QuantizationError: it is missing, or of another dtype or shape.
    """
    found = module.tensors.get(suffix)
    expected = " ".join(filter(None, (_or(dtypes), _or(shapes))))
    if found is None:
        there = ", ".join(sorted(module.tensors)) or "none of its tensors"
        raise QuantizationError(
            f"the checkpoint lacks the module's tensor {suffix!r}, expected {expected}; found {there}: {remedy}"
        )
    if found.dtype not in dtypes or (shapes and found.shape not in shapes):
        raise QuantizationError(
            f"tensor {suffix!r} is {found.dtype} {list(found.shape)}, expected {expected}: {remedy}"
        )
    return found


def require_finite(tensor: Tensor, suffix: str) -> None:
    """Refuse numbers that no product survives.

    Args:
        tensor: of floats, as it was loaded.
        suffix: the tensor's name after the module's.

    Raises:
        QuantizationError: it has NaN or infinite values.
    """
    damaged = int((~tensor.isfinite()).sum())
    if damaged:
        raise QuantizationError(
            f"{damaged} of {tensor.numel()} {suffix} values are NaN or infinite, expected none: fetch the checkpoint "
            "again, or quantize anew"
        )


def store_finite(target: Tensor, suffix: str) -> Callable[[Tensor], None]:
    """A TensorSlot's `store` that copies a tensor of floats into `target`, once it is found to be finite."""

    def store(tensor: Tensor) -> None:
        require_finite(tensor, suffix)
        target.copy_(tensor)

    return store


def unused_bias(width: int, dtype: torch.dtype) -> TensorSlot:
    """The slot of a bias that the model does not have: tools write zeros for it, and other values are refused."""
    return TensorSlot(
        "bias", torch.empty(width, dtype=dtype, device="meta"), 0, store=_check_zero, is_optional=True
    )


def _check_zero(bias: Tensor) -> None:
    if bool(bias.any()):
        largest = float(bias.abs().max())
        raise QuantizationError(
            f"the model has no bias here; expected zeros, found values up to {largest:.4g}: check that config.json "
            "belongs to these weights"
        )


def outputs_of(module: StoredModule, suffix: str, dim: int = 0) -> int:
    """The module's outputs: the model's, or where several parts share the module, those that a tensor has."""
    tensor = module.tensors.get(suffix)
    if module.out_features is not None or tensor is None or len(tensor.shape) <= dim:
        return module.out_features or 0
    return tensor.shape[dim]


def _or(values: tuple[object, ...]) -> str:
    return " or ".join(str(list(value)) if isinstance(value, tuple) else str(value) for value in values)
