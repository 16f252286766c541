"""Where the buffers of a recorded run lie."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from quire_kernels.replay.program import plan_offsets
from quire_kernels.replay.recorder import Buffer

NUM_TOKENS = 13
NOTHING = torch.empty(0)


def buffer(size: int, first: int, last: int, *, is_given: bool = False) -> Buffer:
    """Of `size` bytes a token."""
    return Buffer(NOTHING, 0, size * NUM_TOKENS, is_given, first, last)


@st.composite
def buffers(draw: st.DrawFn) -> list[Buffer]:
    made = []
    for _ in range(draw(st.integers(0, 25))):
        first = draw(st.integers(-1, 30))
        last = -1 if first < 0 else first + draw(st.integers(0, 12))
        size = draw(st.integers(1, 400))
        made.append(buffer(size, first, last, is_given=draw(st.integers(0, 9)) == 0))
    return made


@given(buffers())
def test_buffers_that_are_alive_together_never_overlap(made: list[Buffer]) -> None:
    offsets, total = plan_offsets(made, NUM_TOKENS)
    assert len(offsets) == len(made) and all(offset % 64 == 0 for offset in offsets)
    used = [index for index, each in enumerate(made) if each.first >= 0 and not each.is_given]
    ends = {index: offsets[index] + made[index].num_bytes / NUM_TOKENS for index in used}
    assert all(end <= total for end in ends.values())
    for one in used:
        for other in used:
            together = made[one].first <= made[other].last and made[other].first <= made[one].last
            if one != other and together:
                assert ends[one] <= offsets[other] or ends[other] <= offsets[one]


def test_memory_is_used_again() -> None:
    chain = [buffer(100, index, index + 1) for index in range(20)]
    assert plan_offsets(chain, NUM_TOKENS)[1] == 2 * 128
    apart = [buffer(100, index, index) for index in range(20)]
    assert plan_offsets(apart, NUM_TOKENS) == ([0] * 20, 128)


def test_a_small_buffer_goes_into_a_gap() -> None:
    made = [buffer(256, 0, 1), buffer(64, 0, 9), buffer(64, 5, 9)]
    assert plan_offsets(made, NUM_TOKENS) == ([0, 256, 0], 320)


def test_unused_and_given_buffers_take_nobody_s_place() -> None:
    made = [buffer(100, -1, -1), buffer(500, 0, 3, is_given=True), buffer(700, 0, 3), buffer(64, 2, 2)]
    offsets, total = plan_offsets(made, NUM_TOKENS)
    assert offsets[2:] == [0, 704] and total == 768
    assert plan_offsets([], NUM_TOKENS) == ([], 0)
