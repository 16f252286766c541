"""The implementation that is bound where `supports` says so. Put your kernel here."""

from __future__ import annotations

from torch import Tensor


def my_op(x: Tensor) -> Tensor:
    """See the reference. Squaring in place saves a tensor; one product is rounded once, as there."""
    positive = x.clamp(min=0)
    return positive.mul_(positive)
