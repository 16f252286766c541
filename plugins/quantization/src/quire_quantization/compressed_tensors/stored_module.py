"""What else lies beside a module's weights than its scheme says."""

from __future__ import annotations

from quire.api.errors import QuantizationError
from quire.api.quantization import StoredModule
from quire_quantization.tensor_checks import FLOATS, REMEDY

ONE = ((1,), ())
"""Shapes of one scale for a whole tensor."""

_PLAIN = (*FLOATS, "float64")


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


def refuse_others(module: StoredModule, known: tuple[str, ...]) -> None:
    """Refuse tensors that the module's scheme has no use for: passed over, they would change results."""
    others = sorted(set(module.tensors) - {*known, "bias"})
    if others:
        raise QuantizationError(
            f"the module has {', '.join(map(repr, others))}, which its scheme does not know; expected "
            f"{', '.join(known)}: {REMEDY}"
        )
