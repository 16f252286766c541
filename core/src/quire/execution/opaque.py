"""What `torch.compile` does not look into: kernels, linear layers and attention, as custom ops of torch.

Each engine that compiles has a `torch.library` namespace of its own, which ends with it. A result's shape, strides and
dtype are functions of the arguments alone: compiled code is kept on disk under a key that knows nothing else.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.library import Library, register_fake

from quire.api.batch import ForwardBatch
from quire.api.errors import ShapeError
from quire.api.protocols import AttentionBackend, AttentionParams
from quire.api.rotating_attention import RotatingAttentionBackend
from quire.execution.progress import PROGRESS
from quire.nn.attention import Attention
from quire.nn.linear import Linear, LinearShape
from quire.nn.rotary import RotaryEmbedding
from quire.ops.table import REFERENCE, OpDescription, OpTable

_NUMBERS = itertools.count()
"""Of namespaces: the same ones in each process, so that compiled code is found again."""
_KERNEL = "CompositeExplicitAutograd"
_LINEAR = "linear_layer(Tensor x, int layer, int out_features) -> Tensor"
_ATTENTION = (
    "attention_layer(Tensor(a!) query, Tensor(b!) key, Tensor value, int layer, bool is_rotating) -> Tensor"
)

Op = Callable[..., object]
Numbering = Callable[[nn.Module], int]


class OpaqueCalls:
    """The custom ops of one engine.

    Attributes:
        ops: the engine's op table. Traced, what writes in place and what is not the reference is a custom op, whose
            result is described by the reference; other references are torch's own calls, which are compiled.
        batch: the step that attention layers compute, prepared by their backend; set before each compiled run.
    """

    def __init__(self, ops: OpTable, backend: AttentionBackend) -> None:
        """Declare the ops.

        Args:
            ops: the op table.
            backend: the attention backend of all layers; where it stands for the bound op `rotary`, it does so for the
                one of `self.ops` from now on.
        """
        self._name = f"quire_{next(_NUMBERS)}"
        self._library = Library(self._name, "DEF")  # type: ignore[no-untyped-call]  # torch has no types for it
        self.ops = ops.replaced(self._custom)
        self.batch: ForwardBatch | None = None
        self._layers: weakref.WeakValueDictionary[int, nn.Module] = weakref.WeakValueDictionary()
        self._numbering = _numbering(self._layers)
        if isinstance(backend, RotatingAttentionBackend) and backend.rotary_op is ops.rotary:
            backend.rotary_op = self.ops.rotary
        this = weakref.ref(self)  # torch keeps the functions: with a reference to this they would never end
        self._linear = self._define(_LINEAR, lambda *args: _living(this)._run_linear(*args), _linear_like)
        self._attend = self._define(
            _ATTENTION, lambda *args: _living(this)._run_attention(*args), _attention_like
        )

    def linear(self, shape: LinearShape) -> Linear:
        """A linear layer that is one custom op."""
        return OpaqueLinear(shape, self._linear, self._numbering)

    def attention(self, params: AttentionParams, backend: AttentionBackend) -> Attention:
        """An attention layer that is one custom op."""
        return OpaqueAttention(params, backend, self._attend, self._numbering)

    def _run_linear(self, x: Tensor, layer: int, out_features: int) -> Tensor:
        # not the layer's own `forward`: what is put over that is traced, and calls this
        return Linear.forward(cast(Linear, self._layers[layer]), x).contiguous()

    def _run_attention(
        self, query: Tensor, key: Tensor, value: Tensor, layer: int, is_rotating: bool
    ) -> Tensor:
        batch = cast(ForwardBatch, self.batch)
        attention = cast(OpaqueAttention, self._layers[layer])
        rotary = attention.rotary if is_rotating else None
        PROGRESS.count += 1
        return Attention.forward(attention, query, key, value, batch, rotary).contiguous()

    def _define(self, schema: str, run: Op, like: Op) -> Op:
        name = self._library.define(schema, tags=(torch.Tag.needs_exact_strides,))  # type: ignore[no-untyped-call]  # torch has no types for it
        self._library.impl(name, run, _KERNEL)  # type: ignore[no-untyped-call]  # torch has no types for it
        register_fake(f"{self._name}::{name}", like, lib=self._library)
        return cast(Op, getattr(getattr(torch.ops, self._name), name).default)

    def _custom(self, op: OpDescription, function: Op, reference: Op) -> Op:
        """An op's implementation, as it is; traced, a custom op where torch shall not look into it."""
        try:
            parsed = torch._C.parse_schema(f"{self._name}::{op.op}{op.schema}")
        except RuntimeError:
            return function  # a model that calls it will say so when it is traced
        written = [(at, each.name) for at, each in enumerate(parsed.arguments) if each.alias_info is not None]
        if not written and op.bound.name == REFERENCE:
            return function
        if written:
            arguments, _, _ = op.schema.rpartition("->")
            custom = self._define(f"{op.op}{arguments}-> ()", _in_place(function), lambda *args: None)
        else:
            custom = self._define(f"{op.op}{op.schema}", _dense(function), _dense_like(reference))

        def traced(*args: object, **keywords: object) -> object:
            if not torch.compiler.is_compiling():
                return function(*args, **keywords)
            result = custom(*args, **keywords)
            if not written:
                return result
            changed = [args[at] if at < len(args) else keywords[name] for at, name in written]
            return changed[0] if len(changed) == 1 else tuple(changed)

        return traced


class _Numbered(nn.Module):
    """A layer that its custom op knows by a number. A copy is another layer, and gets another number."""

    _numbering: Numbering
    _number: int

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Called for copies, shallow ones and deep ones."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch has no types for it
        self._number = self._numbering(self)

    def _enter(self, numbering: Numbering) -> None:
        self._numbering = numbering
        self._number = numbering(self)


class OpaqueLinear(Linear, _Numbered):
    """A linear layer whose product is not traced, whatever its method makes it of."""

    def __init__(self, shape: LinearShape, op: Op, numbering: Numbering) -> None:
        super().__init__(shape)
        self._op = op
        self._width = shape.out_features
        self._enter(numbering)

    def forward(self, x: Tensor) -> Tensor:
        """See Linear."""
        if torch.compiler.is_compiling():
            return cast(Tensor, self._op(x, self._number, self._width))
        return super().forward(x)


class OpaqueAttention(Attention, _Numbered):
    """An attention layer that is not traced: it reads the batch that its engine computes.

    Attributes:
        rotary: what it was last called with when it was not traced, which comes first.
    """

    def __init__(
        self, params: AttentionParams, backend: AttentionBackend, op: Op, numbering: Numbering
    ) -> None:
        super().__init__(params, backend)
        self._op = op
        self._rotary: tuple[RotaryEmbedding | None] = (None,)  # in a tuple: it is not a part of this module
        self._enter(numbering)

    @property
    def rotary(self) -> RotaryEmbedding | None:
        """See the class."""
        return self._rotary[0]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        batch: ForwardBatch,
        rotary: RotaryEmbedding | None = None,
    ) -> Tensor:
        """See Attention; ShapeError where it is traced with another rotary embedding than it ran with."""
        if not torch.compiler.is_compiling():
            self._rotary = (rotary,)
            return super().forward(query, key, value, batch, rotary)
        if rotary is not self._rotary[0]:
            raise ShapeError("an attention layer was traced with another rotary embedding than it ran with")
        return cast(Tensor, self._op(query, key, value, self._number, rotary is not None))


def _numbering(layers: weakref.WeakValueDictionary[int, nn.Module]) -> Numbering:
    """Gives layers numbers, of which none comes twice, and puts them into `layers`."""
    numbers = itertools.count()

    def number(layer: nn.Module) -> int:
        found = next(numbers)
        layers[found] = layer
        return found

    return number


def _living(reference: weakref.ref[OpaqueCalls]) -> OpaqueCalls:
    found = reference()
    if found is None:
        raise RuntimeError("a compiled model ran after its engine's end")
    return found


def _linear_like(x: Tensor, layer: int, out_features: int) -> Tensor:
    return x.new_empty((x.shape[0], out_features))


def _attention_like(query: Tensor, key: Tensor, value: Tensor, layer: int, is_rotating: bool) -> Tensor:
    return query.new_empty((query.shape[0], math.prod(query.shape[1:])))


def _in_place(function: Op) -> Op:
    def run(*args: object) -> None:
        function(*args)

    return run


def _dense(function: Op) -> Op:
    """A function of new tensors, with contiguous ones: what `_dense_like` describes."""

    def run(*args: object) -> object:
        result = function(*args)
        return result.contiguous() if isinstance(result, Tensor) else [each.contiguous() for each in result]  # type: ignore[attr-defined]  # else a tuple of tensors

    return run


def _dense_like(reference: Op) -> Op:
    def run(*args: object) -> object:
        result = reference(*args)
        if isinstance(result, Tensor):
            return torch.empty_like(result, memory_format=torch.contiguous_format)
        return [torch.empty_like(each, memory_format=torch.contiguous_format) for each in result]  # type: ignore[attr-defined]  # as above

    return run
