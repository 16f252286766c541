"""What native-replay records of a model: steps of every kind have the bits of plain ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_cases import LIMITS, SIZE, VOCAB, NativeModel, capture, make_samples
from torch import Tensor

from quire.api.batch import ForwardBatch
from quire.api.errors import CaptureError
from quire.api.protocols import CapturedSteps
from quire.execution.forward import run_head, run_layers
from quire_kernels.rms_norm.native import rms_norm

FACTORS = torch.randn(LIMITS.max_model_len, SIZE)
ROWS = st.lists(
    st.one_of(
        st.tuples(st.just(1), st.integers(1, 300)),
        st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(n, n + 90))),
    ),
    min_size=1,
    max_size=LIMITS.max_num_seqs,
)


@pytest.fixture(autouse=True)
def keep_threads() -> Iterator[None]:
    torch.manual_seed(0)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def assert_equal_to_plain(model: NativeModel, steps: CapturedSteps, batch: ForwardBatch) -> None:
    with torch.inference_mode():
        hidden = steps.layers(batch)
        assert hidden is not None
        kept, expected = hidden.clone(), run_layers(model, batch)
        assert kept.equal(expected) and hidden.equal(expected)
        logits = steps.logits(kept, batch)
        assert logits is not None and logits.equal(run_head(model, kept, batch))
        assert hidden.equal(expected), "the head wrote over the hidden states"


def test_it_says_what_it_recorded() -> None:
    summary = capture(NativeModel()).summary
    assert re.fullmatch(
        r"replayed by native-replay: \d+ calls of layers, \d of the head; the largest steps take \d+ MB",
        summary,
    )


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, threads=st.integers(1, 3))
def test_any_step(rows: list[tuple[int, int]], threads: int) -> None:
    samples = make_samples()
    if not samples.fits(rows):
        rows = rows[:1]
    model = NativeModel()
    captured = capture(model, samples=samples)
    assert captured.steps is not None
    torch.set_num_threads(threads)
    assert_equal_to_plain(model, captured.steps, samples(rows))


def test_one_request_and_many_rows_of_logits() -> None:
    """Of one request with drafts more rows are sampled than there are requests."""
    limits = replace(LIMITS, max_num_seqs=1, max_drafts=7)
    model, samples = NativeModel(), make_samples(limits)
    captured = capture(model, limits, samples)
    assert captured.steps is not None, captured.summary
    batch = samples([(30, 30)])
    rows = batch.logits_rows.as_strided((8,), (1,))
    rows.copy_(torch.arange(20, 28))
    batch = replace(batch, logits_rows=rows)
    assert_equal_to_plain(model, captured.steps, batch)


def test_batches_of_other_builders_are_refused() -> None:
    samples = make_samples()  # kept, so that no other buffer comes to lie in its place
    steps = capture(NativeModel(), samples=samples).steps
    assert steps is not None
    other = make_samples()([(1, 5)])
    with torch.inference_mode():
        with pytest.raises(CaptureError, match="does not lie in the buffers"):
            steps.layers(other)
        with pytest.raises(CaptureError, match="does not lie in the buffers"):
            steps.logits(torch.zeros(1, SIZE), other)


def test_other_backends_steps_are_not_replayed() -> None:
    samples = make_samples()
    captured = capture(NativeModel(), samples=samples)
    assert captured.steps is not None
    batch = samples([(1, 5)])
    batch.attention = object()
    assert captured.steps.layers(batch) is None


def test_hidden_states_with_gaps_are_not_replayed() -> None:
    samples = make_samples()
    captured = capture(NativeModel(), samples=samples)
    assert captured.steps is not None
    assert captured.steps.logits(torch.zeros(2, 2 * SIZE)[:, :SIZE], samples([(1, 5)])) is None


def test_steps_of_too_few_tokens() -> None:
    captured = capture(NativeModel(), replace(LIMITS, max_num_batched_tokens=12))
    assert captured.summary == "call by call (native-replay: steps and contexts are of less than 13 tokens)"


def test_one_request_at_a_time_is_compared_with_prompts_too() -> None:
    """With one request no sample has a prompt beside others."""

    def wrong_of_prompts(x: Tensor, batch: ForwardBatch) -> Tensor:
        return x if batch.num_tokens in (1, 13) else x + x

    limits = replace(LIMITS, max_num_seqs=1)
    assert "of 1 rows differ" in capture(NativeModel(wrong_of_prompts), limits).summary


class Caching:
    """Keeps a tensor that it makes when first called, as attention backends keep slopes."""

    def __init__(self) -> None:
        self.kept: Tensor | None = None

    def __call__(self, x: Tensor, batch: ForwardBatch) -> Tensor:
        if self.kept is None:
            self.kept = torch.tensor([float(i) for i in range(SIZE)])
        return rms_norm(x, self.kept, 1e-5)


def test_what_the_first_step_makes_is_not_made_while_recording() -> None:
    model = NativeModel(Caching())
    assert_step_of(model)


def test_what_layers_share_by_scratch() -> None:
    def shared(x: Tensor, batch: ForwardBatch) -> Tensor:
        if "factors" not in batch.scratch:
            batch.scratch["factors"] = FACTORS[batch.positions]
        factors = batch.scratch["factors"]
        assert isinstance(factors, Tensor)
        return x * factors

    assert_step_of(NativeModel(lambda x, batch: shared(shared(x, batch), batch)))


def assert_step_of(model: NativeModel) -> None:
    samples = make_samples()
    captured = capture(model, samples=samples)
    assert captured.steps is not None, captured.summary
    for rows in ([(1, 5)], [(1, 9), (40, 60)], [(100, 100)]):
        assert_equal_to_plain(model, captured.steps, samples(rows))


def test_token_ids_of_every_row_are_read_anew() -> None:
    samples = make_samples()
    model = NativeModel()
    captured = capture(model, samples=samples)
    assert captured.steps is not None
    batch = samples([(40, 40)])
    for shift in range(3):
        batch.token_ids.copy_((torch.arange(40) + shift) % VOCAB)
        assert_equal_to_plain(model, captured.steps, batch)
