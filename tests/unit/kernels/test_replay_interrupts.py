"""An interrupt at any line of a replayed step leaves a program that computes the right values."""

from __future__ import annotations

import sys
from contextlib import suppress
from types import FrameType
from typing import Any

import pytest
import torch
from replay_cases import NUM_TOKENS, record
from torch import Tensor

from quire_kernels.replay import program as program_module

TABLE = torch.randn(100, 8)
IDS = torch.arange(64)


def interrupt_at(line: int) -> Any:
    count = 0

    def step(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        if frame.f_code.co_filename != program_module.__file__:
            return None
        if event in ("line", "return"):
            count += 1
            if count == line:
                raise KeyboardInterrupt
        return step

    return step


def doubled() -> Tensor:
    x = TABLE[IDS[:NUM_TOKENS]]
    return x + x


@pytest.mark.parametrize("line", range(1, 25))
def test_an_interrupt_at_any_line(line: int) -> None:
    program = record(doubled)
    program.run(20)
    previous = sys.gettrace()
    sys.settrace(interrupt_at(line))
    try:
        with suppress(KeyboardInterrupt):
            program.run(5)
    finally:
        sys.settrace(previous)
    for num_tokens in (5, 20, 5):
        result = program.run(num_tokens)
        assert result.shape == (num_tokens, 8)
        assert result.equal(2 * TABLE[:num_tokens])


def test_no_tokens_at_once() -> None:
    program = record(doubled)
    with pytest.raises(ValueError, match="0 tokens: this program is for 1 to 64"):
        program.run(0)
