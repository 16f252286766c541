"""Whether a module's tensors in the checkpoint are what its config says."""

from __future__ import annotations

from quire.api.errors import QuantizationError
from quire.api.quantization import StoredModule, StoredTensor

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


def outputs_of(module: StoredModule, suffix: str, dim: int = 0) -> int:
    """The module's outputs: the model's, or where several parts share the module, those that a tensor has."""
    tensor = module.tensors.get(suffix)
    if module.out_features is not None or tensor is None or len(tensor.shape) <= dim:
        return module.out_features or 0
    return tensor.shape[dim]


def _or(values: tuple[object, ...]) -> str:
    return " or ".join(str(list(value)) if isinstance(value, tuple) else str(value) for value in values)
