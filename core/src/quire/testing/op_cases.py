"""Arguments to try ops with: those of core's ops, and what can be made from a schema alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quire.testing.conformance import ConformanceError

SHAPES = ((5, 33), (1, 1), (1, 2), (64, 96), (2, 3, 66), (3, 7), (0, 8), (17, 4))
"""Rows and features: odd, single, several leading dimensions, empty."""


@dataclass(frozen=True)
class OpCase:
    """One call of an op.

    Attributes:
        name: what is special about it, for messages. arguments: positional, as the schema orders them.
        is_rowwise: rows (the first dimension of all tensors that have as many) do not depend on each other.
    """

    name: str
    arguments: tuple[Any, ...]
    is_rowwise: bool = False


@dataclass(frozen=True)
class OpArgument:
    """An argument or a result of a schema.

    Attributes:
        type: "Tensor", "Optional[Tensor]", "float", "int", "bool" ... alias: the name of its alias set, or "".
        is_written: whether the schema says that the op writes it, as in "Tensor(a!)".
    """

    name: str
    type: str
    alias: str = ""
    is_written: bool = False


@dataclass(frozen=True)
class OpSchema:
    """A parsed schema."""

    arguments: tuple[OpArgument, ...]
    results: tuple[OpArgument, ...]


def parse_schema(name: str, schema: str) -> OpSchema:
    """Parse an OpSpec's schema; ConformanceError when torch does not understand it."""
    try:
        parsed = torch._C.parse_schema(name + schema)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ConformanceError(f"the schema {schema!r} of {name!r} is malformed: {reason}") from error
    return OpSchema(
        tuple(_argument(entry) for entry in parsed.arguments),
        tuple(_argument(entry) for entry in parsed.returns),
    )


def core_cases(op: str, dtype: torch.dtype) -> Iterator[OpCase] | None:
    """Calls of one of core's ops; None for other ops."""
    maker = _MAKERS.get(op)
    return None if maker is None else maker(dtype)


def generic_cases(schema: OpSchema, dtype: torch.dtype) -> Iterator[OpCase]:
    """Calls by schema alone: all tensors of one shape, numbers 1, flags False, optional tensors left out."""
    random = torch.Generator().manual_seed(0)
    for shape in SHAPES:
        yield OpCase(
            f"shape {list(shape)}",
            tuple(_generic(argument, shape, dtype, random) for argument in schema.arguments),
        )


def _generic(
    argument: OpArgument, shape: tuple[int, ...], dtype: torch.dtype, random: torch.Generator
) -> object:
    values: dict[str, object] = {"float": 1.0, "int": 1, "bool": False}
    if argument.type == "Tensor":
        return _random(shape, dtype, random)
    return values.get(argument.type)


def _argument(entry: Any) -> OpArgument:
    alias = entry.alias_info
    names = sorted(alias.before_set) if alias is not None else []
    return OpArgument(entry.name, str(entry.type), names[0] if names else "", bool(alias and alias.is_write))


def _random(shape: tuple[int, ...], dtype: torch.dtype, random: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)


def _rows_with_gaps(x: Tensor) -> Tensor:
    """The same values as a view of wider rows, as the parts of a fused product are."""
    wide = torch.full((*x.shape[:-1], x.shape[-1] + 6), 7.0, dtype=x.dtype)
    wide[..., 3:-3] = x
    return wide[..., 3:-3]


def _elementwise(dtype: torch.dtype, *, is_halved: bool = False) -> Iterator[OpCase]:
    random = torch.Generator().manual_seed(0)
    for shape in SHAPES:
        full = (*shape[:-1], shape[-1] * 2) if is_halved else shape
        x = 3 * _random(full, dtype, random)
        yield OpCase(f"shape {list(full)}", (x,), is_rowwise=True)
        yield OpCase(f"shape {list(full)}, rows with gaps", (_rows_with_gaps(0.7 * x),), is_rowwise=True)
    x = 3 * _random((6, 10), dtype, random)
    yield OpCase("transposed", (x.t(),))
    yield OpCase("every other row", (_random((10, 6), dtype, random)[::2],), is_rowwise=True)
    large = torch.tensor([[0.0, -0.0, 1e-20, 50.0, -50.0, 300.0, -300.0, 30.0]], dtype=dtype)
    yield OpCase("extremes", (large,))


def _norm(dtype: torch.dtype, *, has_bias: bool) -> Iterator[OpCase]:
    random = torch.Generator().manual_seed(0)
    for shape in SHAPES:
        x, weight = _random(shape, dtype, random), _random(shape[-1:], dtype, random)
        bias = _random(shape[-1:], dtype, random)
        biases: list[tuple[Tensor | None, ...]] = [(bias,), (None,)] if has_bias else [()]
        for eps, extra in itertools.product((1e-5, 0.3), biases):
            name = f"shape {list(shape)}, eps {eps}{', no bias' if extra == (None,) else ''}"
            yield OpCase(name, (x, weight, *extra, eps), is_rowwise=True)
        gaps = (_rows_with_gaps(0.7 * x), weight, *biases[0], 1e-5)
        yield OpCase(f"shape {list(shape)}, rows with gaps", gaps, is_rowwise=True)


def _added_norm(dtype: torch.dtype, *, has_bias: bool) -> Iterator[OpCase]:
    """What norms are tried with, and a residual with other gaps."""
    random = torch.Generator().manual_seed(1)
    for case in _norm(dtype, has_bias=has_bias):
        x, *others = case.arguments
        residual = _random(x.shape, dtype, random)
        yield OpCase(case.name, (x, residual, *others), is_rowwise=True)
        yield OpCase(
            f"{case.name}, residual with gaps", (x, _rows_with_gaps(residual), *others), is_rowwise=True
        )


def _embedding(dtype: torch.dtype) -> Iterator[OpCase]:
    random = torch.Generator().manual_seed(0)
    for tokens, rows, size in ((5, 7, 33), (1, 1, 1), (64, 300, 96), (0, 4, 8), (3, 2, 2049)):
        ids = torch.randint(0, rows, (tokens,), generator=random)
        ids[:1], ids[1:2] = rows - 1, 0
        weight = _random((rows, size), dtype, random)
        weight[0, 0] = torch.nan
        yield OpCase(f"{tokens} of {rows} rows of {size}", (ids, weight))
        apart = ids.repeat_interleave(2)[::2]
        yield OpCase(f"{tokens} of {rows} rows of {size} with gaps", (apart, _rows_with_gaps(weight)))


def _copied_blocks(dtype: torch.dtype) -> Iterator[OpCase]:
    random = torch.Generator().manual_seed(0)
    for pairs, shape in (
        (1, (2, 1, 1, 1)),
        (3, (9, 4, 2, 5)),
        (4, (8, 16, 8, 64)),
        (0, (3, 2, 2, 4)),
        (2, (5, 3, 2, 3, 7)),
    ):
        ids = torch.randperm(shape[0], generator=random)
        cache = _random(shape, dtype, random)
        cache[ids[0]] = torch.nan
        destinations = ids[shape[0] - pairs :]
        sources = ids[: shape[0] - pairs][torch.arange(pairs) % max(1, min(pairs - 1, shape[0] - pairs))]
        yield OpCase(f"{pairs} blocks of {list(shape)}", (cache, sources, destinations))
        columns = torch.stack([sources, destinations], dim=1).unbind(1)
        yield OpCase(f"{pairs} blocks of {list(shape)}, ids in columns", (cache, *columns))


def _rotary(dtype: torch.dtype) -> Iterator[OpCase]:
    random = torch.Generator().manual_seed(0)
    for tokens in (1, 7, 37, 0):
        for size, rotated in ((8, 8), (8, 4), (10, 10), (64, 64), (80, 32)):
            for interleaved in (False, True):
                cos, sin = (_random((tokens, rotated // 2), dtype, random) for _ in range(2))
                fused = _random((tokens, 6, size), dtype, random)
                query, key, _ = torch.split(fused, [3, 2, 1], dim=1)
                name = f"{tokens} tokens, {rotated} of {size} features, interleaved={interleaved}"
                yield OpCase(name + ", fused", (query, key, cos, sin, interleaved), is_rowwise=True)
                parts = (query.clone(), key.clone(), cos, sin, interleaved)
                yield OpCase(name, parts, is_rowwise=True)


def _logits(dtype: torch.dtype, random: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    """[R, V]: odd widths, rows with gaps, ties, masked tokens, and rows that hold no token."""
    for rows, size in ((1, 1), (3, 2), (5, 33), (4, 257), (3, 1000), (0, 8)):
        x = 3 * _random((rows, size), dtype, random)
        yield f"{rows} rows of {size}", x
        yield f"{rows} rows of {size} with gaps", _rows_with_gaps(0.7 * x)
        yield f"{rows} rows of {size} with ties", x.round()
    masked = _random((4, 40), dtype, random)
    masked[:, ::3], masked[1], masked[2, 5], masked[3, 7] = -torch.inf, -torch.inf, torch.inf, torch.nan
    yield "masked tokens, rows without any, +inf, NaN", masked


def _greedy(dtype: torch.dtype) -> Iterator[OpCase]:
    for name, logits in _logits(dtype, torch.Generator().manual_seed(0)):
        yield OpCase(name, (logits,), is_rowwise=True)
    yield OpCase("transposed", (_random((6, 10), dtype, torch.Generator().manual_seed(0)).t(),))


def _sampled(dtype: torch.dtype) -> Iterator[OpCase]:
    random = torch.Generator().manual_seed(0)
    for name, logits in _logits(dtype, random):
        rows = logits.shape[0]
        for temperature, min_p, top_k, top_p in (
            (1.0, 0.0, 0, 1.0),
            (0.7, 0.05, 0, 1.0),
            (1.3, 0.0, 3, 1.0),
            (0.9, 0.0, 0, 0.8),
            (1.0, 0.01, 5, 0.7),
            (0.0, 0.5, 2, 0.1),
        ):
            numbers = [
                torch.full((rows,), value, dtype=torch.float64) for value in (temperature, min_p, top_p)
            ]
            if temperature:
                numbers[0][2:3] = 0.0
            draws = torch.rand(rows, generator=random, dtype=torch.float64)
            arguments = (logits, *numbers[:2], torch.full((rows,), top_k), numbers[2], draws)
            what = f"{name}, temperature {temperature}, min_p {min_p}, top_k {top_k}, top_p {top_p}"
            yield OpCase(what, arguments, is_rowwise=True)


def _penalised(dtype: torch.dtype) -> Iterator[OpCase]:
    random = torch.Generator().manual_seed(0)
    for rows, size, most in ((1, 1, 1), (3, 7, 4), (4, 1000, 700), (2, 33, 0), (0, 8, 0)):
        lengths = [row % (most + 1) if row else most for row in range(rows)]
        ids = [torch.randperm(size, generator=random)[:length] for length in lengths]
        counts = torch.randint(0, 4, (sum(lengths),), generator=random)
        offsets = torch.tensor([0, *itertools.accumulate(lengths)])
        factors = (1.0 + torch.rand(rows, generator=random, dtype=torch.float64)).to(dtype)
        others = [0.5 * _random((rows,), dtype, random) for _ in range(2)]
        arguments = (torch.cat([torch.empty(0, dtype=torch.int64), *ids]), counts, offsets, factors, *others)
        x = 3 * _random((rows, size), dtype, random)
        yield OpCase(f"{most} of {size} tokens", (x, *arguments), is_rowwise=True)
        yield OpCase(
            f"{most} of {size} tokens, rows with gaps",
            (_rows_with_gaps(0.7 * x), *arguments),
            is_rowwise=True,
        )


_MAKERS: dict[str, Callable[[torch.dtype], Iterator[OpCase]]] = {
    "rms_norm": lambda dtype: _norm(dtype, has_bias=False),
    "layer_norm": lambda dtype: _norm(dtype, has_bias=True),
    "add_rms_norm": lambda dtype: _added_norm(dtype, has_bias=False),
    "add_layer_norm": lambda dtype: _added_norm(dtype, has_bias=True),
    "embedding": _embedding,
    "copy_blocks": _copied_blocks,
    "rotary": _rotary,
    "apply_penalties": _penalised,
    "greedy_tokens": _greedy,
    "sample_tokens": _sampled,
    "silu_and_mul": lambda dtype: _elementwise(dtype, is_halved=True),
    **dict.fromkeys(("silu", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu"), _elementwise),
}
