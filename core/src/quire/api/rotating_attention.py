"""An attention backend that also rotates: a part of the protocol that backends may leave out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from quire.api.attention import AttentionBackend, AttentionParams
from quire.api.batch import ForwardBatch

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class RotatingAttentionBackend(AttentionBackend, Protocol):
    """A backend that also rotates queries and keys, in the pass that writes the step's keys and values.

    Attributes:
        rotary_op: the implementation of the op `rotary` that it stands for, to the last bit: where another one is
            bound, that one is called, then `forward`.
    """

    rotary_op: Callable[..., object]

    def rotate_and_forward(
        self,
        inputs: tuple[Tensor, Tensor, Tensor],
        rows: tuple[Tensor, Tensor],
        interleaved: bool,
        kv_cache: Tensor,
        params: AttentionParams,
        batch: ForwardBatch,
    ) -> Tensor:
        """As `rotary_op(query, key, *rows, interleaved)`, and `forward` of what it gives.

        Args:
            inputs: query, key and value as `forward` takes them; query and key may be overwritten.
            rows: cos and sin, each [T, R / 2], as the op takes them.
            interleaved: likewise.
            kv_cache: as in `forward`.
            params: the layer's constants.
            batch: the step.

        Returns:
            [T, H * D], the query's dtype.
        """
        ...
