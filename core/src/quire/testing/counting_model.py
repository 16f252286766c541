"""A toy model that counts within sixes, with slips: text that drafters can foresee, and not always."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from quire.testing.toy_model import VOCAB_SIZE, write_toy_checkpoint

_HIDDEN = 64
_SCALE = 2.45  # squared, how much likelier the next number is: about four of five when sampled


def next_number(token_id: int) -> int:
    """What mostly follows: 0, 1, 2, 3, 4, 5, 0, 1 ... or 6, 7, ..., 11, 6 ... and so on; 60 follows itself."""
    if token_id == VOCAB_SIZE - 1:
        return token_id
    return token_id - 5 if token_id % 6 == 5 else token_id + 1


def counted(first: int, length: int) -> tuple[int, ...]:
    """So many numbers, counted from the first."""
    numbers = [first]
    while len(numbers) < length:
        numbers.append(next_number(numbers[-1]))
    return tuple(numbers[:length])


def write_counting_checkpoint(folder: Path, *, slips: float = 0.4) -> Path:
    """Write a toy model that counts; returns the folder.

    Args:
        folder: made when missing.
        slips: the scale of its attention, which leads it astray.
    """
    numbers = torch.arange(VOCAB_SIZE)
    following = torch.tensor([next_number(number) for number in range(VOCAB_SIZE)])
    embedding, head = (torch.zeros(VOCAB_SIZE, _HIDDEN) for _ in range(2))
    embedding[numbers, numbers] = _SCALE
    head[following, numbers] = _SCALE
    random = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {"embedding.weight": embedding, "lm_head.weight": head}
    for part in ("q", "k", "v"):
        tensors[f"layers.0.{part}.weight"] = slips * torch.randn(_HIDDEN, _HIDDEN, generator=random)
    return write_toy_checkpoint(folder, tensors=tensors, config={"hidden_size": _HIDDEN})
