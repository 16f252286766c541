"""What may last seconds in a step counts its parts: a watchdog takes a step without a count for a hang."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from quire import LLM, SamplingParams
from quire.execution.logprobs import token_logprobs
from quire.execution.progress import PROGRESS

NUM_REQUESTS = 8


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("tiny", dtype="float32", num_kv_blocks=64, max_num_seqs=NUM_REQUESTS, max_model_len=128) as made:
        yield made


def counted_in_a_step(llm: LLM, params: SamplingParams, prompt: list[int]) -> int:
    """What the step counts in which all requests get their first token."""
    for _ in range(NUM_REQUESTS):
        llm.engine.add_request(prompt, params)
    before = PROGRESS.count
    llm.engine.step()
    counted = PROGRESS.count - before
    assert not llm.engine.has_unfinished
    llm.reset_prefix_cache()
    for name in llm.engine.ended_requests():
        llm.engine.discard(name)
    return counted


def test_a_step_counts_layers_logits_and_requests(llm: LLM) -> None:
    counted = counted_in_a_step(llm, SamplingParams(temperature=0.0, max_tokens=1), [5, 6])
    num_layers = len(llm.engine._executor.runner._model.layers)  # type: ignore[attr-defined]  # a look inside
    assert counted == num_layers + 1 + NUM_REQUESTS


@pytest.mark.parametrize(
    ("keywords", "num_more"),
    [
        ({"top_k": 5}, NUM_REQUESTS),
        ({"top_p": 0.5}, NUM_REQUESTS),
        ({"repetition_penalty": 1.5}, NUM_REQUESTS),
        ({"logprobs": 20}, NUM_REQUESTS),
        ({"prompt_logprobs": 20}, NUM_REQUESTS * 4),
    ],
)
def test_sampling_and_logprobs_count_rows(llm: LLM, keywords: dict[str, float], num_more: int) -> None:
    plain = counted_in_a_step(llm, SamplingParams(max_tokens=1, temperature=1.0, seed=1), [5, 6, 7, 8, 9])
    params = SamplingParams(max_tokens=1, temperature=1.0, seed=1, **keywords)  # type: ignore[arg-type]  # of several types
    assert counted_in_a_step(llm, params, [5, 6, 7, 8, 9]) == plain + num_more


def test_logprobs_of_all_tokens_count_each_row() -> None:
    before = PROGRESS.count
    token_logprobs(torch.zeros(20, 50), [1] * 20, [-1] * 20)
    assert PROGRESS.count == before + 20
