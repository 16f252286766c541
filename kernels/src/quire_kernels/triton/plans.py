"""How a product over tiles is cut into programs: block sizes and splits, by shape and device. No run-time tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Grouping = Literal["one", "steps", "words"]

_MOST_SPLITS = 16
_START_STEPS = 2
"""What filling its pipeline costs a program, in steps."""
_SUM_STEPS = 16
"""What summing splits costs, in steps: one more launch. An estimate, to be fitted where GPUs are."""


@dataclass(slots=True, frozen=True)
class Device:
    """What plans ask of a GPU.

    Attributes:
        processors: streaming multiprocessors or compute units.
        is_cuda: neither ROCm nor the interpreter.
    """

    processors: int
    is_cuda: bool


@dataclass(slots=True, frozen=True)
class Plan:
    """Block sizes of `tiled_product`.

    Attributes:
        grouping: see the kernel.
        block_rows, block_outputs, block_words: of one step of a program.
        splits: programs that share the words of a block of outputs.
        is_packed: unpack two values at a time, in PTX.
    """

    grouping: Grouping
    block_rows: int
    block_outputs: int
    block_words: int
    splits: int
    is_packed: bool
    num_warps: int
    num_stages: int


def make_plan(rows: int, outputs: int, words: int, words_per_group: int, device: Device) -> Plan:
    """The plan of a product of `rows` rows with `outputs` outputs over `words` words."""
    grouping, block_words = _group(words, words_per_group)
    least = 8 if device.is_cuda else 16
    block_rows = min(max(least, 1 << (rows - 1).bit_length()), 128)
    row_blocks = -(-rows // block_rows)
    is_wide = row_blocks * -(-outputs // 128) >= 2 * device.processors
    block_outputs = 128 if is_wide or block_rows > 32 else 64
    programs = row_blocks * -(-outputs // block_outputs)
    return Plan(
        grouping,
        block_rows,
        block_outputs,
        block_words,
        _splits(programs, -(-words // block_words), device.processors),
        is_packed=device.is_cuda,
        num_warps=8 if block_rows > 32 else 4,
        num_stages=2 if not device.is_cuda else 4 if block_rows <= 32 else 3,
    )


def _group(words: int, words_per_group: int) -> tuple[Grouping, int]:
    """Where scales go in, and the words of a step: a matrix product takes at least 8 (16 inputs of a field)."""
    if words_per_group == words:
        return "one", 16
    if words_per_group % 16 == 0:
        return "steps", 16
    return ("steps", 8) if words_per_group % 8 == 0 else ("words", 16)


def _splits(programs: int, steps: int, processors: int) -> int:
    """The power of two with the least time of the busiest processor, which needs two programs to be busy."""

    def cost(splits: int) -> int:
        rounds = max(2, -(-programs * splits // processors))
        return rounds * (-(-steps // splits) + _START_STEPS) + (_SUM_STEPS if splits > 1 else 0)

    candidates = [1]
    while candidates[-1] < _MOST_SPLITS and steps >= 8 * candidates[-1]:
        candidates.append(2 * candidates[-1])
    return min(candidates, key=cost)
