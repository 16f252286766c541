"""Whether a module's tensors in the checkpoint are what its config says."""

from __future__ import annotations

from quire.api.errors import QuantizationError
from quire.api.quantization import StoredModule, StoredTensor

FLOATS = ("float16", "bfloat16", "float32")
"""Dtypes of scales."""

ONE = ((1,), ())
"""Shapes of one scale for a whole tensor."""

_PLAIN = (*FLOATS, "float64")
_REMEDY = "check that config.json belongs to these weights, or fetch the checkpoint again"


def is_plain(module: StoredModule) -> bool:
    """Whether a module is stored unquantized.

    Raises:
        QuantizationError: its weight is in a float dtype, with scales beside it: meant to be rounded when it is run.
    """
    weight = module.tensors.get("weight")
    if weight is None or weight.dtype not in _PLAIN:
        return False
    extra = sorted(name for name in module.tensors if name.startswith(("weight_", "input_")))
    if extra:
        raise QuantizationError(
            f"tensor 'weight' is {weight.dtype} and {', '.join(map(repr, extra))} lie beside it: the checkpoint was "
            "saved before its weights were quantized; expected integers or float8_e4m3fn: save it with "
            "save_compressed=True"
        )
    return True


def require(
    module: StoredModule, suffix: str, dtypes: tuple[str, ...], *shapes: tuple[int, ...]
) -> StoredTensor:
    """One of a module's tensors.

    Args:
        module: asked for its tensor.
        suffix: the tensor's name after the module's.
        dtypes: those that it may have.
        *shapes: likewise.

    Raises:
        QuantizationError: it is missing, or of another dtype or shape.
    """
    found = module.tensors.get(suffix)
    if found is None:
        there = ", ".join(sorted(module.tensors)) or "none of its tensors"
        raise QuantizationError(
            f"the checkpoint lacks the module's tensor {suffix!r}, expected {_or(dtypes)} {_or(shapes)}; "
            f"found {there}: {_REMEDY}"
        )
    if found.dtype not in dtypes or found.shape not in shapes:
        raise QuantizationError(
            f"tensor {suffix!r} is {found.dtype} {list(found.shape)}, expected {_or(dtypes)} {_or(shapes)}: {_REMEDY}"
        )
    return found


def outputs_of(module: StoredModule, suffix: str) -> int:
    """The module's outputs: the model's, or where several parts share the module, those that its weight has."""
    weight = module.tensors.get(suffix)
    if module.out_features is not None or weight is None or not weight.shape:
        return module.out_features or 0
    return weight.shape[0]


def refuse_others(module: StoredModule, known: tuple[str, ...]) -> None:
    """Refuse tensors that the module's scheme has no use for: passed over, they would change results."""
    others = sorted(set(module.tensors) - {*known, "bias"})
    if others:
        raise QuantizationError(
            f"the module has {', '.join(map(repr, others))}, which its scheme does not know; expected "
            f"{', '.join(known)}: {_REMEDY}"
        )


def _or(values: tuple[object, ...]) -> str:
    return " or ".join(str(list(value)) if isinstance(value, tuple) else str(value) for value in values)
