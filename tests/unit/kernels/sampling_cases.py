"""Rows of logits and parameters that fast sampling is held against the reference with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = [torch.bfloat16, torch.float32]


@dataclass(frozen=True)
class Params:
    """Of one row."""

    temperature: float = 1.0
    min_p: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    draw: float = 0.5


def tensors(rows: list[Params], device: str = "cpu") -> list[Tensor]:
    """What `sample_tokens` takes after the logits."""
    return [
        torch.tensor([getattr(row, name) for row in rows], dtype=dtype, device=device)
        for name, dtype in (
            ("temperature", torch.float64),
            ("min_p", torch.float64),
            ("top_k", torch.int64),
            ("top_p", torch.float64),
            ("draw", torch.float64),
        )
    ]


def random_rows(size: int, num_rows: int, seed: int) -> tuple[Tensor, list[Params]]:
    """Float32 logits of one kind (flat, usual or peaked, with ties or without, some masked) and any parameters."""
    random = torch.Generator().manual_seed(seed)

    def one() -> float:
        return torch.rand((), generator=random, dtype=torch.float64).item()

    def below(limit: int) -> int:
        return int(torch.randint(limit, (), generator=random))

    logits = torch.randn(num_rows, size, generator=random) * (0.0, 0.1, 3.0, 20.0)[below(4)]
    if below(3) == 0:
        logits = logits.round()
    logits[torch.rand(num_rows, size, generator=random) < (0.0, 0.01, 0.9)[below(3)]] = -torch.inf
    rows = [
        Params(
            temperature=(0.0, 0.01, 0.7, 1.0, 1.5)[below(5)],
            min_p=one() if below(4) == 0 else 0.0,
            top_k=1 + below(size + 2 if below(2) else min(size, 60)) if below(2) else 0,
            top_p=0.001 + 0.998 * one() if below(2) else 1.0,
            draw=one(),
        )
        for _ in range(num_rows)
    ]
    return logits, rows


def special_rows(size: int) -> Iterator[tuple[str, Tensor, list[Params]]]:
    """One kind of logits each, at the ends of parameters and of draws."""
    last = 1.0 - 2.0**-53
    ends = [Params(draw=0.0), Params(draw=last)]
    equal = [
        *ends,
        Params(draw=0.37),
        Params(top_k=1, draw=last),
        Params(top_k=3, draw=last),
        Params(top_k=size, draw=last),
        Params(top_k=size + 1, draw=last),
        Params(top_p=1e-9, draw=last),
        Params(top_p=0.4567, draw=last),
        Params(top_k=4, top_p=0.55, draw=last),
        Params(min_p=1.0, draw=last),
        Params(temperature=0.0, top_k=3, draw=last),
    ]
    yield "all equal", torch.full((len(equal), size), -2.5), equal
    alone = torch.full((len(equal), size), -torch.inf)
    alone[:, size // 2] = 1.5
    yield "one token", alone, equal
    few = torch.full((len(equal), size), -torch.inf)
    few[:, :: max(1, size // 3)] = 0.25
    yield "a few equal tokens", few, equal
    far = torch.arange(size, dtype=torch.float32).flip(0).expand(len(equal), size) * -1e30
    yield "far apart", far.contiguous(), equal
    broken = torch.zeros(len(equal), size)
    broken[0::3, -1], broken[1::3, 0], broken[2::3] = torch.nan, torch.inf, -torch.inf
    yield "no token", broken, equal


def penalties(size: int, lengths: list[int], seed: int) -> list[Tensor]:
    """What `apply_penalties` takes: float32 logits, and distinct tokens of each row."""
    random = torch.Generator().manual_seed(seed)
    ids = [torch.randperm(size, generator=random)[:length] for length in lengths]
    numbers = [torch.rand(len(lengths), generator=random) for _ in range(3)]
    logits = 3 * torch.randn(len(lengths), size, generator=random)
    logits[:, ::5] = -torch.inf
    return [
        logits,
        torch.cat([torch.empty(0, dtype=torch.int64), *ids]),
        torch.randint(0, 4, (sum(lengths),), generator=random),
        torch.tensor([0, *lengths]).cumsum(0),
        0.5 + numbers[0],
        numbers[1] - 0.5,
        numbers[2] - 0.5,
    ]
