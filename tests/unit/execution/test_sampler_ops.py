"""Which ops the sampler calls, with what, and that fast ones sample the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from quire.api.batch import DeviceInfo
from quire.api.request import SamplingParams
from quire.api.specs import Registration
from quire.api.step import SlotAssignment
from quire.execution.logprobs import NOT_FINITE
from quire.execution.sampler import NOTHING_LEFT, Sampler, SamplingOps
from quire.execution.sampling_state import SamplingState
from quire.ops.specs import core_op_specs
from quire.ops.table import OpTable
from quire.plugins.registry import resolve_factory
from quire_kernels.native.library import native_refusal
from quire_kernels.native_plugin import quire_register_ops

V = 1000
MIXED: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 0.9, "min_p": 0.05},
    {"top_k": 50, "top_p": 0.9, "min_p": 0.01},
    {"temperature": 0.0, "repetition_penalty": 1.5, "frequency_penalty": 0.5},
    {"temperature": 0.8, "presence_penalty": 1.0, "logit_bias": {3: 5.0}, "logprobs": 3},
    {"temperature": 0.0, "min_tokens": 5, "max_tokens": 9},
]


def make_state(params: Sequence[dict[str, Any]], stop: Sequence[int] = ()) -> SamplingState:
    """A slot each, whose prompt is 1, 2, 3 and output 2, 4, 4."""
    state = SamplingState(len(params), V)
    for slot, each in enumerate(params):
        assigned = SlotAssignment(
            slot, str(slot), [1, 2, 3, 2, 4, 4], 3, SamplingParams(**each), 100 + slot, frozenset(stop)
        )
        state.assign(slot, assigned)
    return state


def native_ops() -> SamplingOps:
    """Of a table with the native kernels."""
    refusal = native_refusal(DeviceInfo("cpu"), "float32")
    if refusal is not None:
        pytest.skip(refusal)
    specs = [*core_op_specs(), *quire_register_ops()]
    known = [Registration(spec, "test", "test", "0") for spec in specs]
    return SamplingOps.of(OpTable(known, DeviceInfo("cpu"), "float32", resolve_factory))


class Watched:
    """Sampling ops that note their calls."""

    def __init__(self, ops: SamplingOps) -> None:
        self.calls: list[tuple[str, Tensor]] = []
        names = [each.name for each in fields(SamplingOps)]
        self.ops = SamplingOps(**{name: self._watch(name, getattr(ops, name)) for name in names})

    def _watch(self, name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def watched(logits: Tensor, *rest: Tensor) -> Tensor:
            self.calls.append((name, logits))
            return function(logits, *rest)

        return watched


@pytest.fixture
def logits() -> Tensor:
    return 3 * torch.randn(len(MIXED), V, generator=torch.Generator().manual_seed(0))


def test_the_table_gives_the_fast_ops() -> None:
    ops = native_ops()
    for each in fields(SamplingOps):
        assert getattr(ops, each.name).__module__ == "quire_kernels.sampling.native"
        assert getattr(SamplingOps(), each.name).__module__ == "quire.ops.sampling"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_fast_ops_sample_the_same_tokens(logits: Tensor, dtype: torch.dtype) -> None:
    watched, state = Watched(native_ops()), make_state(MIXED, stop=[7])
    rows, logits = list(range(len(MIXED))), logits.to(dtype)
    for position in range(20):
        state.num_output_tokens[:] = position
        expected = Sampler().sample(logits, rows, state)
        assert Sampler(watched.ops).sample(logits, rows, state) == expected
    assert {name for name, _ in watched.calls} == {"apply_penalties", "sample_tokens"}


def test_rows_that_nothing_changes_are_read_where_they_lie(logits: Tensor) -> None:
    watched = Watched(SamplingOps())
    state = make_state([{"temperature": 0.0}] * len(MIXED))
    Sampler(watched.ops).draw(logits, range(len(MIXED)), state)
    state.temperature[3] = 0.5
    Sampler(watched.ops).draw(logits, range(len(MIXED)), state)
    assert [name for name, _ in watched.calls] == ["greedy_tokens", "sample_tokens"]
    assert all(given is logits for _, given in watched.calls)


def test_one_call_for_the_penalties_of_all_rows(logits: Tensor) -> None:
    watched = Watched(SamplingOps())
    state = make_state([{"presence_penalty": 0.5 * (slot % 3)} for slot in range(6)])
    Sampler(watched.ops).draw(logits[:6], range(6), state)
    assert [name for name, _ in watched.calls].count("apply_penalties") == 1
    penalised = next(given for name, given in watched.calls if name == "apply_penalties")
    assert len(penalised) == np.count_nonzero(state.has_edits) == 4


@pytest.mark.parametrize("is_fast", [False, True])
def test_rows_without_a_token_fail_alone(is_fast: bool, logits: Tensor) -> None:
    ops = native_ops() if is_fast else SamplingOps()
    state = make_state([{"min_tokens": 9}, {"presence_penalty": 1.0}, {"temperature": 0.0}, {}], stop=[7])
    rows = logits[:4].clone()
    rows[0], rows[1, 5], rows[2] = -torch.inf, torch.nan, torch.inf
    rows[0, 7] = 1.0
    found = Sampler(ops).draw(rows, range(4), state)
    assert found.errors == [NOTHING_LEFT, NOT_FINITE, NOT_FINITE, None]
    assert found.token_ids[:3] == [None] * 3
    assert found.token_ids[3] == Sampler().draw(logits[:4], range(4), state).token_ids[3]
