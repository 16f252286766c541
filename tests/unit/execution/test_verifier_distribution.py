"""What the verifier gives is distributed as the target says, whatever was drafted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from quire.api.request import SamplingParams
from quire.api.step import SlotAssignment
from quire.execution.sampler import Sampler
from quire.execution.sampling_state import SamplingState
from quire.execution.verifier import DraftedRow, Verifier

V = 24
NUM_CONTEXTS = 20
BATCH = 2000
LEAST_EXPECTED = 5.0
VARIANTS: tuple[Mapping[str, float], ...] = (
    {"temperature": 1.0},
    {"temperature": 0.6},
    {"temperature": 1.4, "top_k": 7},
    {"temperature": 1.0, "top_p": 0.85},
    {"temperature": 0.8, "top_k": 12, "top_p": 0.9},
)
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def target(logits: Floats, temperature: float, top_k: int = 0, top_p: float = 1.0) -> Floats:
    """The distribution of a token, [V], from logits without ties: in the plain way."""
    weights = np.exp((logits - logits.max()) / temperature)
    order = np.argsort(-weights)
    if top_k:
        weights[order[top_k:]] = 0.0
    weights /= weights.sum()
    if top_p < 1.0:
        before = np.cumsum(weights[order]) - weights[order]
        weights[order[before >= top_p]] = 0.0
    return weights / weights.sum()


@dataclass
class Context:
    """Logits of the first token [V], and of the second by the first [V, V]."""

    first: Tensor
    second: Tensor
    variant: Mapping[str, float]

    @classmethod
    def make(cls, index: int) -> Context:
        generator = torch.Generator().manual_seed(index)
        tables = torch.randn(V + 1, V, generator=generator, dtype=torch.float64) * (1.0 + index % 3)
        return cls(tables[0], tables[1:], VARIANTS[index % len(VARIANTS)])


def make_state(variant: Mapping[str, float]) -> SamplingState:
    state = SamplingState(BATCH, V)
    params = SamplingParams(**variant)  # type: ignore[arg-type]  # fields by name
    for slot in range(BATCH):
        state.assign(slot, SlotAssignment(slot, str(slot), [0], 1, params, 0, frozenset()))
    return state


Draft = Callable[[Tensor, SamplingState], Ints]


def one_hot(logits: Tensor, state: SamplingState) -> Ints:
    """One of the likelier tokens, always the same for a slot: it depends on no draw."""
    likely = torch.argsort(logits, dim=-1, descending=True)[:, :4].numpy()
    return np.take_along_axis(likely, (np.arange(BATCH) % 4)[:, None], 1)[:, 0]


def same_noise(logits: Tensor, state: SamplingState) -> Ints:
    """A token of another distribution, drawn with the target's own draw."""
    generator = torch.Generator().manual_seed(1)
    other = logits + torch.randn(V, generator=generator, dtype=torch.float64)
    return np.array(Sampler().draw(other, list(range(BATCH)), state).token_ids)


def draw_pairs(context: Context, count: int, draft: Draft) -> tuple[Ints, Ints, float]:
    """First and second tokens of `count` requests, and the share of accepted drafts."""
    state = make_state(context.variant)
    verifier = Verifier(Sampler(), state)
    firsts, seconds, num_accepted = [], [], 0
    for start in range(0, count, BATCH):
        state.seeds[:] = np.arange(start, start + BATCH)
        state.num_output_tokens[:] = 0
        drafts = draft(context.first.expand(BATCH, -1), state)
        rows = torch.stack([context.first.expand(BATCH, -1), context.second[drafts]], 1).flatten(0, 1)
        verified = verifier.verify(rows, [DraftedRow(s, [d]) for s, d in enumerate(drafts.tolist())])
        first = np.array([row.token_ids[0] for row in verified])
        second = np.array([row.token_ids[1] if len(row.token_ids) > 1 else -1 for row in verified])
        num_accepted += int((first == drafts).sum())
        assert ((second >= 0) == (first == drafts)).all()
        waiting = np.flatnonzero(second < 0)
        drafts = draft(context.second[first], state)[waiting]
        rows = context.second[first[waiting]].repeat_interleave(2, 0)
        pairs = zip(waiting.tolist(), drafts.tolist(), strict=True)
        verified = verifier.verify(rows, [DraftedRow(slot, [token]) for slot, token in pairs])
        second[waiting] = [row.token_ids[0] for row in verified]
        firsts.append(first)
        seconds.append(second)
    return np.concatenate(firsts), np.concatenate(seconds), num_accepted / count


def chi_square(counts: Ints, distribution: Floats) -> tuple[float, int]:
    """The statistic and its degrees of freedom; rare tokens are counted together."""
    assert not counts[distribution == 0.0].any(), "a token came up that cannot"
    expected = distribution * counts.sum()
    is_rare = expected < LEAST_EXPECTED
    seen = np.append(counts[~is_rare], counts[is_rare].sum())
    wanted = np.append(expected[~is_rare], expected[is_rare].sum())
    seen, wanted = seen[wanted > 0.5], wanted[wanted > 0.5]
    return float(((seen - wanted) ** 2 / wanted).sum()), len(wanted) - 1


def tail(statistic: float, freedom: int) -> float:
    """The chance of a chi-square at least this large."""
    halves = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(halves[0], halves[1]))


def p_values(context: Context, count: int, draft: Draft) -> tuple[float, float]:
    """Of first tokens, and of second tokens given the first; drafts must be accepted and rejected."""
    first, second, accepted = draw_pairs(context, count, draft)
    assert 0.02 < accepted < 0.98, "nothing was accepted, or all"
    # for mypy: fields by name
    found = chi_square(np.bincount(first, minlength=V), target(context.first.numpy(), **context.variant))  # type: ignore[arg-type]
    statistic, freedom = 0.0, 0
    for token in np.unique(first):
        counts = np.bincount(second[first == token], minlength=V)
        # for mypy: fields by name
        part = chi_square(counts, target(context.second[token].numpy(), **context.variant))  # type: ignore[arg-type]
        statistic, freedom = statistic + part[0], freedom + part[1]
    return tail(*found), tail(statistic, freedom)


def check(count: int, draft: Draft, contexts: range) -> None:
    values = [p for index in contexts for p in p_values(Context.make(index), count, draft)]
    assert min(values) > 0.001 / len(values), values


def test_the_chi_square_is_one() -> None:
    assert tail(3.841458821, 1) == pytest.approx(0.05, rel=1e-6)
    assert tail(31.41043284, 20) == pytest.approx(0.05, rel=1e-6)
    assert chi_square(np.array([10, 30, 0]), np.array([0.5, 0.5, 0.0])) == (10.0, 1)


def test_a_wrong_distribution_is_found() -> None:
    """A shift of three hundredths between two tokens is seen in the small sample."""
    context = Context.make(0)
    first, _, _ = draw_pairs(context, 10_000, one_hot)
    wanted = target(context.first.numpy(), **context.variant)  # type: ignore[arg-type]  # fields by name
    biased = wanted.copy()
    biased[np.argsort(wanted)[-2:]] += (-0.03, 0.03)
    assert tail(*chi_square(np.bincount(first, minlength=V), biased)) < 1e-6


@pytest.mark.parametrize(("draft", "start"), [(one_hot, 0), (same_noise, 1)])
def test_small_sample(draft: Draft, start: int) -> None:
    check(10_000, draft, range(start, NUM_CONTEXTS, 4))  # each variant once


@pytest.mark.nightly
@pytest.mark.parametrize("draft", [one_hot, same_noise])
def test_large_sample(draft: Draft) -> None:
    check(100_000, draft, range(NUM_CONTEXTS))
