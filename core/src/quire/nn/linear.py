"""Linear layers of named parts, and the LM head; how their weights are kept is their methods' matter."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from quire.api.errors import ShapeError
from quire.nn.linear_method import LinearMethod, LinearShape, LinearWeights, TensorSlot
from quire.nn.unquantized import UnquantizedMethod, make_product

__all__ = ["LMHead", "Linear", "LinearMethod", "LinearShape", "LinearWeights", "TensorSlot"]


class Linear(nn.Module):
    """A linear layer whose output is named parts side by side; see BuildContext.linear.

    Call it with [T, in_features]; it gives [T, sum of widths], a new tensor, in the input's dtype.
    It gets its methods after it is built (`assign`), and can be called after `process_after_loading`.

    Attributes:
        weights: one LinearWeights for each run of parts whose methods agree; usually one in all.
        runs: the method of each of them, and the shape of its parts.
    """

    def __init__(self, shape: LinearShape) -> None:
        super().__init__()
        self.shape = shape
        self.weights = nn.ModuleList()
        self.runs: tuple[tuple[LinearMethod, LinearShape], ...] = ()
        self._of_part: tuple[int, ...] = ()
        self._product: Callable[[Tensor], Tensor] = _not_loaded

    def assign(self, methods: Sequence[LinearMethod]) -> None:
        """Create the weights.

        Args:
            methods: one for each part; neighbours that are equal and fuse share their weights.
        """
        starts: list[int] = []
        of_part = []
        for index, method in enumerate(methods):
            if not (starts and methods[starts[-1]] == method and method.fuses):
                starts.append(index)
            of_part.append(len(starts) - 1)
        ends = [*starts[1:], len(methods)]
        self.runs = tuple(
            (methods[first], self.shape.select(first, last)) for first, last in zip(starts, ends, strict=True)
        )
        made = [method.create(shape) for method, shape in self.runs]
        self.weights = nn.ModuleList(made)  # type: ignore[arg-type]  # LinearWeights are modules; a Protocol cannot say so
        self._of_part = tuple(of_part)

    def tensor_slots(self, part: str | None) -> Sequence[TensorSlot]:
        """The checkpoint tensors that fill a part (None: the only part)."""
        weights = self._weights(self._of_part[self.shape.index(part)])
        return weights.tensor_slots(part)

    def process_after_loading(self) -> None:
        """Make the layer callable, once its tensors are filled; later calls do nothing."""
        if self._product is not _not_loaded:
            return
        products = []
        for index in range(len(self.weights)):
            weights = self._weights(index)
            weights.process_after_loading()
            products.append(weights.product())
        self._product = products[0] if len(products) == 1 else _side_by_side(products)

    def forward(self, x: Tensor) -> Tensor:
        """[T, in_features] to [T, out_features]."""
        return self._product(x)

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        parts = ", ".join(f"{name}={width}" for name, width in self.shape.parts)
        return f"in_features={self.shape.in_features}, {parts}, bias={self.shape.has_bias}"

    def _weights(self, index: int) -> LinearWeights:
        return self.weights[index]  # type: ignore[return-value]  # a ModuleList forgets what its modules are


class LMHead(Linear):
    """The output projection, [L, in_features] to [L, vocab_size].

    Untied it loads like a linear with a single part. Tied, it takes the embedding's weight when it
    is processed, and a model's weight map does not name it. Where weights are prepacked (bfloat16 on
    a CPU) or quantized the packed copy is separate from the embedding's: one more time
    `vocab_size * in_features * 2` bytes (57 MB at 49152 x 576) in 16 bits; elsewhere the weight is shared.
    """

    def __init__(self, shape: LinearShape, tied_to: nn.Module | None = None) -> None:
        """Build the head.

        Args:
            shape: with a single part.
            tied_to: the embedding whose `weight` [vocab_size, in_features] is used, or None.

        Raises:
            ShapeError: a tied head with a bias.
        """
        super().__init__(shape)
        if tied_to is not None and shape.has_bias:
            raise ShapeError("a tied LM head has no bias: drop `bias` or `tied_to`")
        self._embedding = (tied_to,)  # in a tuple, so that it is not registered as a submodule

    @property
    def is_tied(self) -> bool:
        """Whether the weight is the embedding's."""
        return self._embedding[0] is not None

    def assign(self, methods: Sequence[LinearMethod]) -> None:
        """See Linear; a tied head in 16 bits has no weights of its own."""
        if self.is_tied and isinstance(methods[0], UnquantizedMethod):
            self.runs = ((methods[0], self.shape),)
        else:
            super().assign(methods)

    def tensor_slots(self, part: str | None) -> Sequence[TensorSlot]:
        """The checkpoint tensors that fill it: none when tied."""
        return () if self.is_tied else super().tensor_slots(part)

    def process_after_loading(self) -> None:
        """Make the head callable; the embedding that it is tied to must be loaded."""
        if self.is_tied and self._product is _not_loaded:
            weight = self._tied_weight()
            if not len(self.weights):
                self._product, _ = make_product(weight, None, self.shape.multiply)
                return
            for slot in super().tensor_slots(None):
                _fill_from_embedding(slot, weight)
        super().process_after_loading()

    def _tied_weight(self) -> Tensor:
        weight = getattr(self._embedding[0], "weight", None)
        expected = (self.shape.out_features, self.shape.in_features)
        if not isinstance(weight, Tensor) or tuple(weight.shape) != expected:
            found = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
            raise ShapeError(f"the LM head is tied to a weight {found}; it needs {expected}")
        return weight.data


def _fill_from_embedding(slot: TensorSlot, weight: Tensor) -> None:
    if slot.suffix != "weight":
        raise ShapeError(
            f"the LM head is tied to the embedding; its method asks for {slot.suffix!r}: leave tied heads in 16 bits"
        )
    if slot.store is not None:
        slot.store(weight)
    else:
        slot.target.copy_(weight)


def _side_by_side(products: Sequence[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.cat([product(x) for product in products], dim=-1)


def _not_loaded(x: Tensor) -> Tensor:
    raise RuntimeError("the layer was called before process_after_loading")
