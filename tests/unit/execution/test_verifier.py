"""The verifier against one token at a time, each sampled by a sampler that knows nothing of drafts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from quire.api.request import SamplingParams
from quire.api.step import SlotAssignment, TokenLogprobs
from quire.execution.processors import LoadedProcessor, ProcessorTable
from quire.execution.sampler import Sampler
from quire.execution.sampling_state import SamplingState
from quire.execution.verifier import DraftedRow, VerifiedRow, Verifier
from quire.plugins.calls import PluginCalls

V = 40
PROMPT = [1, 2, 3, 2]
STOPS = frozenset([5, 7])
PARAMS: list[dict[str, object]] = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5, "logprobs": 2},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 0.9, "min_p": 0.05, "logprobs": 0},
    {"temperature": 0.0, "repetition_penalty": 1.5, "frequency_penalty": 0.5},
    {"temperature": 0.8, "presence_penalty": 1.0, "logit_bias": {3: 2.0}, "logprobs": 3},
    {"temperature": 0.0, "min_tokens": 4, "logprobs": 1},
    {"temperature": 1.0, "min_tokens": 9, "repetition_penalty": 0.6},
    {"temperature": 0.0, "extra_args": {"history": {}}, "logprobs": 1},
    {"temperature": 1.0, "extra_args": {"history": {}}, "frequency_penalty": 0.3},
]
Process = Callable[[Sequence[int], Sequence[int], Tensor], Tensor]


def history(prompt: Sequence[int], output: Sequence[int], logits: Tensor) -> Tensor:
    """Makes a token likelier that depends on all tokens so far."""
    logits[(sum(prompt) + 31 * sum(output) + 7 * len(output)) % V] += 3.0
    return logits


class Factory:
    def __init__(self, process: Process) -> None:
        self.process = process

    def for_request(self, arguments: object, params: object) -> Process:
        return self.process


def assign(
    state: SamplingState,
    slot: int,
    params: dict[str, object],
    output: Sequence[int] = (),
    process: Process = history,
) -> None:
    names = ("history",) if "extra_args" in params else ()
    given = SlotAssignment(
        slot,
        str(slot),
        [*PROMPT, *output],
        len(PROMPT),
        SamplingParams(max_tokens=99, **params),  # type: ignore[arg-type]  # fields by name
        100 + slot,
        STOPS,
        names,
    )
    # for mypy: a fake
    loaded = {"history": LoadedProcessor("history", "plugin-h", "plugin 'plugin-h'", Factory(process))}  # type: ignore[arg-type]
    state.assign(slot, given, ProcessorTable(loaded, PluginCalls().call).bind(given) if names else None)


class Model:
    """Logits that depend on the last two tokens."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(3)
        self.tables = torch.randn(2, V, V, generator=generator).to(dtype) * 1.5

    def logits(self, tokens: Sequence[int]) -> Tensor:
        return self.tables[0, tokens[-1]] + self.tables[1, tokens[-2]]


def one_by_one(
    model: Model, slot: int, params: dict[str, object], count: int
) -> tuple[list[int], list[TokenLogprobs | None]]:
    """Tokens and log-probabilities of a request alone; the state is made anew for each token."""
    output: list[int] = []
    entries = []
    for _ in range(count):
        state = SamplingState(slot + 1, V)
        assign(state, slot, params, output)
        found = Sampler().sample(model.logits([*PROMPT, *output])[None], [slot], state)
        assert found.token_ids[0] is not None
        output.append(found.token_ids[0])
        entries.append(found.logprobs[0])
    return output, entries


def verify(
    model: Model, verifier: Verifier, rows: dict[int, list[int]], known: dict[int, list[int]]
) -> list[VerifiedRow]:
    """One call for these slots' drafts."""
    logits = [
        model.logits([*PROMPT, *known[slot], *drafts[:index]])
        for slot, drafts in rows.items()
        for index in range(len(drafts) + 1)
    ]
    return verifier.verify(torch.stack(logits), [DraftedRow(slot, drafts) for slot, drafts in rows.items()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tokens_and_logprobs_are_those_of_one_at_a_time(dtype: torch.dtype) -> None:
    model, draw, kinds = Model(dtype), random.Random(0), Counter[str]()
    wanted = [one_by_one(model, slot, params, 40) for slot, params in enumerate(PARAMS)]
    state = SamplingState(len(PARAMS), V)
    for slot, params in enumerate(PARAMS):
        assign(state, slot, params)
    verifier = Verifier(Sampler(), state)
    known: dict[int, list[int]] = {slot: [] for slot in range(len(PARAMS))}
    entries: dict[int, list[TokenLogprobs]] = {slot: [] for slot in known}
    while min(len(tokens) for tokens in known.values()) < 30:
        slots = draw.sample([slot for slot, tokens in known.items() if len(tokens) < 30], k=1) + [
            slot for slot, tokens in known.items() if len(tokens) < 30 and draw.random() < 0.6
        ]
        rows = {}
        for slot in dict.fromkeys(slots):
            coming = wanted[slot][0][len(known[slot]) :][: draw.randrange(6)]
            rows[slot] = [token if draw.random() < 0.75 else draw.randrange(V) for token in coming]
        for (slot, drafts), found in zip(rows.items(), verify(model, verifier, rows, known), strict=True):
            assert found.error is None and 1 <= len(found.token_ids) <= len(drafts) + 1
            known[slot] += found.token_ids
            entries[slot] += found.logprobs or []
            assert state.num_output_tokens[slot] == len(known[slot])
            if drafts:
                num_accepted = len(found.token_ids) - 1
                kinds[
                    "rejected" if not num_accepted else "all" if num_accepted == len(drafts) else "partly"
                ] += 1
    for slot, params in enumerate(PARAMS):
        tokens, logprobs = wanted[slot]
        assert known[slot] == tokens[: len(known[slot])]
        assert entries[slot] == ([] if "logprobs" not in params else logprobs[: len(known[slot])])
    assert min(kinds[kind] for kind in ("rejected", "partly", "all")) >= 10, kinds


def setup_row(
    params: dict[str, object], num_right: int, *more: int, process: Process = history
) -> tuple[SamplingState, Tensor, DraftedRow, list[int]]:
    """A row whose first drafts are right, its logits, and the tokens that it would give."""
    model = Model()
    tokens, _ = one_by_one(model, 0, params, num_right + len(more) + 1)
    drafts = [*tokens[:num_right], *more]
    state = SamplingState(1, V)
    assign(state, 0, params, process=process)
    logits = torch.stack([model.logits([*PROMPT, *drafts[:index]]) for index in range(len(drafts) + 1)])
    return state, logits, DraftedRow(0, drafts), tokens


PLAIN: dict[str, object] = {"temperature": 1.0, "logprobs": 1}
STEPWISE: dict[str, object] = {"temperature": 1.0, "logprobs": 1, "presence_penalty": 0.2}
BOTH = pytest.mark.parametrize("params", [PLAIN, STEPWISE], ids=["plain", "stepwise"])


def wrong(tokens: Sequence[int], index: int) -> int:
    return (tokens[index] + 1) % V


@BOTH
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_follows_a_rejected_draft_may_be_anything(params: dict[str, object], bad: float) -> None:
    tokens = one_by_one(Model(), 0, params, 3)[0]
    state, logits, row, _ = setup_row(params, 1, wrong(tokens, 1), 3)
    logits[2:] = bad
    [found] = Verifier(Sampler(), state).verify(logits, [row])
    assert (found.token_ids, found.error) == (tokens[:2], None)
    assert found.logprobs is not None and [entry.token_id for entry in found.logprobs] == tokens[:2]


@BOTH
def test_a_row_that_fails_after_accepted_drafts_keeps_them(params: dict[str, object]) -> None:
    state, logits, row, tokens = setup_row(params, 3)
    logits[2] = float("nan")
    [found] = Verifier(Sampler(), state).verify(logits, [row])
    assert (found.token_ids, found.error) == (tokens[:2], None)
    assert found.logprobs is not None and len(found.logprobs) == 2
    assert state.num_output_tokens[0] == 2


@BOTH
def test_a_row_that_fails_at_once_fails_alone(params: dict[str, object]) -> None:
    state, logits, row, tokens = setup_row(params, 2)
    both = SamplingState(2, V)
    assign(both, 0, params)
    assign(both, 1, params)
    both.seeds[1] = both.seeds[0]
    broken = logits.clone()
    broken[0, 3] = float("nan")
    found = Verifier(Sampler(), both).verify(torch.cat([broken, logits]), [row, DraftedRow(1, row.draft_ids)])
    assert found[0].token_ids == [] and "not finite" in str(found[0].error) and found[0].logprobs is None
    assert found[1].token_ids == tokens and found[1].error is None
    assert both.num_output_tokens.tolist() == [0, 3]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_processor_that_fails(at: int) -> None:
    def failing(prompt: Sequence[int], output: Sequence[int], logits: Tensor) -> Tensor:
        if len(output) == at:
            raise RuntimeError("planted")
        return history(prompt, output, logits)

    params: dict[str, object] = {"temperature": 0.0, "extra_args": {"history": {}}}
    state, logits, row, tokens = setup_row(params, 3, process=failing)
    [found] = Verifier(Sampler(), state).verify(logits, [row])
    assert found.token_ids == tokens[:at]
    if at:
        assert (found.error, found.failed_plugin) == (None, None)
    else:
        assert "planted" in str(found.error) and found.failed_plugin == "plugin-h"


def test_processors_see_verified_tokens_only() -> None:
    seen = []

    def watching(prompt: Sequence[int], output: Sequence[int], logits: Tensor) -> Tensor:
        seen.append((tuple(prompt), tuple(output)))
        return history(prompt, output, logits)

    params: dict[str, object] = {"temperature": 0.0, "extra_args": {"history": {}}}
    tokens = one_by_one(Model(), 0, params, 4)[0]
    state, logits, row, _ = setup_row(params, 2, wrong(tokens, 2), 3, process=watching)
    Verifier(Sampler(), state).verify(logits, [row])
    assert seen == [(tuple(PROMPT), tuple(tokens[:count])) for count in range(3)]


def test_min_tokens_is_reached_within_accepted_drafts() -> None:
    """The stop token is masked at the rows before it, and no longer after."""
    logits = torch.zeros(4, V)
    logits[:, 5], logits[:, 9] = 50.0, 25.0
    state = SamplingState(1, V)
    assign(state, 0, {"temperature": 0.0, "min_tokens": 2})
    [found] = Verifier(Sampler(), state).verify(logits, [DraftedRow(0, [9, 9, 5])])
    assert found.token_ids == [9, 9, 5, 5]


def test_rows_without_drafts_are_what_the_sampler_gives() -> None:
    model = Model()
    logits = torch.stack([model.logits([slot, 2 * slot]) for slot in range(len(PARAMS))])
    states = [SamplingState(len(PARAMS), V) for _ in range(2)]
    for state in states:
        for slot, params in enumerate(PARAMS):
            assign(state, slot, params, [4, 4, 1])
    slots = list(range(len(PARAMS)))
    wanted = Sampler().sample(logits, slots, states[0])
    found = Verifier(Sampler(), states[1]).verify(logits, [DraftedRow(slot) for slot in slots])
    assert [row.token_ids for row in found] == [[token] for token in wanted.token_ids]
    assert [row.logprobs for row in found] == [None if one is None else [one] for one in wanted.logprobs]
    assert states[1].num_output_tokens.tolist() == [4] * len(PARAMS)


def test_logits_are_not_changed() -> None:
    state, logits, row, _ = setup_row(PARAMS[6], 3)
    before = logits.clone()
    Verifier(Sampler(), state).verify(logits, [row])
    assert torch.equal(logits, before)
