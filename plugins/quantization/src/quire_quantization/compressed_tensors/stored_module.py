"""What else lies beside a module's weights than its scheme says."""

from __future__ import annotations

from torch import Tensor

from quire.api.errors import QuantizationError
from quire.api.quantization import StoredModule
from quire.nn.linear_method import TensorSlot
from quire_quantization.tensor_checks import FLOATS, REMEDY, require_finite

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
    extra = sorted(name for name in module.tensors if name.startswith(("weight_", "input_", "activation_")))
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


def require_positive(tensor: Tensor, suffix: str) -> None:
    """Refuse numbers that nothing can be divided by: QuantizationError where some are not finite, or not above 0."""
    require_finite(tensor, suffix)
    least = float(tensor.min())
    if least <= 0:
        raise QuantizationError(
            f"{suffix} has the value {least:.4g}, expected values above 0: fetch the checkpoint again, or quantize anew"
        )


def input_scale_slot(suffix: str, target: Tensor, shape: tuple[int, ...]) -> TensorSlot:
    """The slot of the one scale that inputs are divided by, stored in `shape`, into `target` of one element."""

    def store(source: Tensor) -> None:
        require_positive(source, suffix)
        target.copy_(source.reshape(target.shape))

    return TensorSlot(suffix, target.view(shape), store=store)
