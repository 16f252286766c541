"""Layers of indices and lookup tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from quire.api.errors import QuantizationError
from quire.api.protocols import Ops
from quire.nn.linear_method import LinearShape, TensorSlot
from quire_quantization.squeezellm.linear_ops import PER_WORD, TABLE_SIZE
from quire_quantization.tensor_checks import store_finite


class SqueezeLLMWeights(nn.Module):
    """Indices [N, K / 8], the checkpoint's transposed, and tables [N, 16] in their stored dtype."""

    qweight: Tensor
    lookup_table: Tensor
    bias: Tensor | None

    def __init__(self, shape: LinearShape, table_dtype: torch.dtype, ops: Ops) -> None:
        """Uninitialized tensors.

        Raises:
            QuantizationError: the slice of a rank does not begin and end with a word.
        """
        super().__init__()
        if shape.input_start % PER_WORD or shape.in_features % PER_WORD:
            raise QuantizationError(
                f"a rank is to hold {shape.in_features} inputs from {shape.input_start} on, and words hold {PER_WORD}: "
                "use fewer ranks"
            )
        self._shape = shape
        self._op = ops.squeezellm_linear
        size, words = shape.out_features, shape.in_features // PER_WORD
        self.register_buffer("qweight", torch.empty(size, words, dtype=torch.int32, device=shape.device))
        self.register_buffer(
            "lookup_table", torch.empty(size, TABLE_SIZE, dtype=table_dtype, device=shape.device)
        )
        bias = torch.empty(size, dtype=shape.dtype, device=shape.device)
        self.register_buffer("bias", bias if shape.has_bias else None)

    def tensor_slots(self, part: str | None) -> Sequence[TensorSlot]:
        """See LinearWeights."""
        rows = self._shape.rows(part)
        table = self.lookup_table[rows]
        slots = [
            TensorSlot(
                "qweight", self.qweight[rows].t(), output_dim=1, input_dim=0, inputs_per_element=PER_WORD
            ),
            TensorSlot("lookup_table", table, output_dim=0, store=store_finite(table, "lookup_table")),
        ]
        if self.bias is not None:
            slots.append(TensorSlot("bias", self.bias[rows], output_dim=0))
        return slots

    def process_after_loading(self) -> None:
        """See LinearWeights; nothing to do."""

    def product(self) -> Callable[[Tensor], Tensor]:
        """See LinearWeights."""
        op, buffers = self._op, (self.qweight, self.lookup_table, self.bias)
        return lambda x: op(x, *buffers)


@dataclass(slots=True, frozen=True)
class SqueezeLLMLinear:
    """The LinearMethod of modules that are stored as indices."""

    table_dtype: torch.dtype
    ops: Ops = field(compare=False, repr=False)
    name: ClassVar[str] = "squeezellm"
    op: ClassVar[str] = "squeezellm_linear"
    fuses: ClassVar[bool] = True

    def create(self, shape: LinearShape) -> SqueezeLLMWeights:
        """See LinearMethod."""
        return SqueezeLLMWeights(shape, self.table_dtype, self.ops)
