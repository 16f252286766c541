"""The draft model's books: which KV is there, what is computed in which order, and how drafts are sampled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from quire.api.errors import ConfigError, NumericalError
from quire.api.request import SamplingParams
from quire.api.speculation import DraftRequest
from quire.api.step import BlockTableUpdate, PlanRow, SlotAssignment, StepPlan
from quire.execution.batch_builder import BatchBuilder, BatchLimits
from quire.execution.drafting.draft_model import DraftRuntime, PagedDraftModel
from quire.execution.drafting.draft_sampler import DraftSampler, fit_width
from quire.execution.drafting.draft_slots import DraftSlots
from quire.execution.model_builder import BuiltModel
from quire.execution.sampler import Sampler
from quire.execution.sampling_state import SamplingState

VOCAB = 13
BLOCK = 4


class Successor(nn.Module):
    """After each token comes the next number; remembers what it computed."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.vocab_size = vocab_size
        self.calls: list[list[tuple[int, int]]] = []

    def embed(self, batch: Any) -> torch.Tensor:
        tokens = batch.token_ids
        self.calls.append(list(zip(tokens.tolist(), batch.slot_mapping.tolist(), strict=True)))
        return nn.functional.one_hot((tokens + 1) % self.vocab_size, self.vocab_size).double()

    def finish(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


class NoAttention:
    """Nothing to prepare."""

    def prepare(self, batch: object) -> None:
        return None


class Running:
    """A draft model over slots of 16 blocks each, with `budget` tokens a step."""

    def __init__(
        self, budget: int = 100, vocab_size: int = VOCAB, max_len: int = 60, num_slots: int = 3
    ) -> None:
        limits = BatchLimits(num_slots, budget, 60, BLOCK, max_drafts=5)
        self.builder = BatchBuilder(limits, torch.device("cpu"))
        self.state = SamplingState(num_slots, VOCAB)
        self.tokens: list[list[int]] = [[] for _ in range(num_slots)]
        self.module = Successor(vocab_size)
        built = BuiltModel(cast(Any, self.module), (), vocab_size, torch.float64, torch.device("cpu"))
        sampler = DraftSampler()
        self.model = PagedDraftModel("small", built, cast(Any, NoAttention()), sampler, max_len)
        sampler.bind(self.state, self.slot_of)
        runtime = DraftRuntime(self.builder, limits, 16 * num_slots, VOCAB, self.slot_of)
        self.model.bind(runtime)

    def slot_of(self, request: DraftRequest) -> int:
        return int(request.request_id)

    def start(self, slot: int, token_ids: Sequence[int]) -> None:
        """A request whose tokens but the last the target has computed."""
        params = SamplingParams(temperature=0.0, max_tokens=50)
        assignment = SlotAssignment(slot, str(slot), list(token_ids), len(token_ids), params, 0, frozenset())
        self.builder.assign(assignment)
        self.state.assign(slot, assignment)
        update = BlockTableUpdate(slot, 0, list(range(16 * slot, 16 * slot + 15)))
        plan = StepPlan(0, [assignment], [update], [], [])
        self.builder.apply(plan)
        self.model.apply(plan)
        self.run_rows(PlanRow(slot, 0, len(token_ids) - 1, False) if len(token_ids) > 1 else None)
        self.tokens[slot] = list(token_ids)

    def run_target(self, slot: int, draft_ids: Sequence[int], accepted: Sequence[int]) -> None:
        """A step of the target: verifies drafts, and adds tokens."""
        num_tokens = len(self.tokens[slot])
        self.builder.set_tokens(slot, num_tokens, list(draft_ids))
        self.run_rows(PlanRow(slot, num_tokens - 1, 1 + len(draft_ids), True, len(draft_ids)), draft_ids)
        self.tokens[slot] += accepted
        self.builder.set_tokens(slot, num_tokens, list(accepted))

    def run_rows(self, row: PlanRow | None, draft_ids: Sequence[int] = ()) -> None:
        """The target computes a row."""
        if row is not None:
            self.model.note_target(self.builder.build(StepPlan(0, [], [], [], [row])), [draft_ids])

    def request(self, slot: int, max_drafts: int = 5) -> DraftRequest:
        ids = np.array(self.tokens[slot], dtype=np.int32)
        return DraftRequest(str(slot), ids, len(ids), max_drafts, SamplingParams(temperature=0.0))

    def next_tokens(self, *asked: tuple[int, list[int]]) -> list[int | None]:
        requests = [self.request(slot) for slot, _ in asked]
        return self.model.next_tokens(requests, [drafts for _, drafts in asked])

    def computed(self, call: int = -1) -> list[int]:
        """The tokens that a call computed."""
        return [token for token, _ in self.module.calls[call]]


def test_the_whole_context_is_computed_once_then_token_by_token() -> None:
    running = Running()
    running.start(0, [3, 1, 4, 1, 5])
    assert running.next_tokens((0, [])) == [6]
    assert running.computed() == [3, 1, 4, 1, 5]
    assert running.next_tokens((0, [6])) == [7]
    assert running.computed() == [6]
    assert running.next_tokens((0, [6, 2])) == [3]
    assert running.computed() == [2]
    assert running.next_tokens((0, [8])) == [9], "another draft at the same place"
    assert running.computed() == [8]


@pytest.mark.parametrize(
    ("verified", "accepted", "expected"),
    [
        ([6, 7, 8], [6, 7, 8, 9], [8, 9]),  # the last draft was proposed, not computed
        ([6, 7, 8], [6, 2], [2]),
        ([6], [6, 7], [7]),  # the others were trimmed
        ([], [11], [11]),
        ([2, 7], [2, 7, 1], [2, 7, 1]),  # somebody else's drafts
    ],
)
def test_kv_of_accepted_drafts_is_kept(verified: list[int], accepted: list[int], expected: list[int]) -> None:
    running = Running()
    running.start(0, [3, 1, 4, 1, 5])
    for drafts in ([], [6], [6, 7]):
        running.next_tokens((0, drafts))
    running.run_target(0, verified, accepted)
    running.next_tokens((0, []))
    assert running.computed() == expected


def test_tokens_that_came_without_drafts_are_caught_up() -> None:
    running = Running()
    running.start(0, [3, 1, 4, 1, 5])
    running.next_tokens((0, []))
    for token in (9, 2, 6):
        running.run_target(0, [], [token])
    assert running.next_tokens((0, [])) == [7]
    assert running.computed() == [9, 2, 6], "5 was computed as it is"


def test_a_budget_is_spent_in_order_and_goes_on_later() -> None:
    running = Running(budget=7)
    for slot in range(3):
        running.start(slot, [slot] * 5)
    asked = [(slot, list[int]()) for slot in range(3)]
    assert running.next_tokens(*asked) == [1, None, None]
    assert running.computed() == [0] * 5 + [1] * 2
    assert running.next_tokens(*asked) == [1, 2, None]
    assert sorted(running.computed()) == [0, 1, 1, 1, 2, 2, 2], "a known row again, and what was missing"
    assert running.next_tokens(*asked) == [1, 2, 3]
    assert running.computed()[:2] == [0, 1], "rows of one token first"


def test_rows_are_given_back_in_the_order_of_the_requests() -> None:
    running = Running()
    for slot in range(3):
        running.start(slot, [2 * slot] * (1 + slot))
    running.next_tokens((1, []))
    assert running.next_tokens((2, []), (0, []), (1, [3])) == [5, 1, 4]


def test_replaced_blocks_void_what_was_proposed_into_them() -> None:
    running = Running()
    running.start(0, [3, 1, 4, 1, 5])  # drafts in blocks 1 and 2
    for drafts in ([], [6], [6, 7], [6, 7, 8]):
        running.next_tokens((0, drafts))
    running.model.apply(StepPlan(0, [], [BlockTableUpdate(0, 3, [40])], [], []))
    running.run_target(0, [6, 7, 8], [6, 7, 8, 9])
    running.next_tokens((0, []))
    assert running.computed() == [9], "a block behind them changes nothing"
    for drafts in ([10], [10, 11]):
        running.next_tokens((0, drafts))
    running.model.apply(StepPlan(0, [], [BlockTableUpdate(0, 2, [])], [], []))
    running.run_target(0, [10, 11], [10, 11, 12])
    running.next_tokens((0, []))
    assert running.computed() == [9, 10, 11, 12]


def test_a_recompute_voids_what_was_proposed() -> None:
    running = Running()
    running.start(0, [3, 1, 4, 1, 5])
    for drafts in ([], [6]):
        running.next_tokens((0, drafts))
    running.run_rows(PlanRow(0, 2, 3, True))
    running.tokens[0].append(6)
    running.builder.set_tokens(0, 5, [6])
    running.next_tokens((0, []))
    assert running.computed() == [4, 1, 5, 6]


def test_a_slot_that_another_request_takes_keeps_nothing() -> None:
    running = Running()
    running.start(0, [3, 1, 4, 1, 5])
    running.next_tokens((0, []))
    running.start(0, [3, 1, 4, 2, 5])
    running.run_target(0, [], [6])
    running.next_tokens((0, []))
    assert running.computed() == [3, 1, 4, 2, 5, 6]


def test_nothing_is_drafted_past_the_draft_models_context_nor_its_vocabulary() -> None:
    running = Running(max_len=6, vocab_size=VOCAB - 2)
    running.start(0, [3, 1, 4, 1, 5])
    assert running.next_tokens((0, [])) == [6]
    assert running.next_tokens((0, [6])) == [7]
    assert running.next_tokens((0, [6, 7])) == [None]
    running.start(1, [3, VOCAB - 1, 2])
    running.start(2, [3, 10])
    assert running.next_tokens((1, []), (2, [])) == [None, 0]


def test_misuse_is_refused() -> None:
    running = Running()
    running.start(0, [3, 1])
    with pytest.raises(ValueError, match="has 5 drafts and can use 5"):
        running.next_tokens((0, [1, 2, 3, 4, 5]))
    for junk in (-1, VOCAB, 2**40):
        with pytest.raises(ValueError, match=f"token ids are from 0 to {VOCAB - 1}"):
            running.next_tokens((0, [3, junk]))
    unbound = PagedDraftModel("small", cast(Any, None), cast(Any, None), DraftSampler(), 9)
    with pytest.raises(ConfigError, match="'small' has no KV cache"):
        unbound.next_tokens([running.request(0)], [[]])
    with pytest.raises(ConfigError, match="before the engine runs"):
        DraftSampler().sample([], [], torch.zeros(0, VOCAB))


def test_bits_follow_copies_of_blocks() -> None:
    slots = DraftSlots(num_blocks=4, block_size=2)
    slots.note_computed(np.array([0, 1, 2]))
    slots.copy_blocks([(1, 2), (0, 3)])
    blocks = np.array([3, 2], dtype=np.int32)
    assert slots.first_missing(blocks, 4) == 3
    assert slots.first_missing(blocks, 3) == 3
    assert slots.first_missing(np.array([3, 1, 0], dtype=np.int32), 6) == 3, "the first one, whatever follows"
    assert slots.first_missing(np.array([], dtype=np.int32), 0) == 0


def test_drafts_are_sampled_as_the_target_samples_them() -> None:
    state, plain = SamplingState(4, 300), SamplingState(4, 300)
    edits = {"repetition_penalty": 3.0, "logit_bias": {5: 50.0}, "min_tokens": 40}
    common = [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 20, "top_p": 0.8},
        {"temperature": 1.3, "min_p": 0.02},
    ]
    for slot, fields in enumerate(common):
        for into, params in (
            (state, SamplingParams(max_tokens=50, **fields, **edits)),  # type: ignore[arg-type]  # checked there
            (plain, SamplingParams(max_tokens=50, **fields)),  # type: ignore[arg-type]  # checked there
        ):
            into.assign(slot, SlotAssignment(slot, "r", [1, 2, 3], 2, params, 7 * slot, frozenset([8])))
    sampler = DraftSampler()
    sampler.bind(state, lambda request: int(request.request_id))
    ids = np.array([1, 2, 3], dtype=np.int32)
    requests = [DraftRequest(str(slot), ids, 2, 9, SamplingParams()) for slot in range(4)]
    drafts: list[list[int]] = [[], [4], [5, 6], [7, 8, 9]]
    differing = 0
    for seed in range(20):
        logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
        expected = Sampler().draw(logits, range(4), plain, [0, 1, 2, 3]).token_ids
        assert sampler.sample(requests, drafts, logits) == expected
        differing += expected != Sampler().draw(logits, range(4), plain).token_ids
        wider = torch.cat([logits, torch.full((4, 5), 99.0)], dim=1)
        assert sampler.sample(requests, drafts, wider) == expected, "a padded head is cut"
    assert differing > 10, "the draw must depend on the number of drafts"
    state.append(1, 5)
    plain.append(1, 5)
    assert (
        sampler.sample(requests, drafts, logits)
        == Sampler().draw(logits, range(4), plain, [0, 1, 2, 3]).token_ids
    )


def test_a_narrow_head_and_a_broken_one() -> None:
    narrow = fit_width(torch.ones(2, 3), 5)
    assert narrow.tolist() == [[1, 1, 1, float("-inf"), float("-inf")]] * 2
    running = Running()
    running.start(0, [3, 1])
    running.start(1, [3, 1])
    running.module.logits = lambda hidden: hidden * torch.tensor([[1.0], [float("nan")]])  # type: ignore[method-assign]  # fails for one
    with pytest.raises(NumericalError, match="request '1'"):
        running.next_tokens((0, []), (1, []))
