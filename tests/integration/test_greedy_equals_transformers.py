"""Token equality with transformers over chunk sizes, cache states, block sizes and preemption."""

from __future__ import annotations

from pathlib import Path

import pytest
from equivalence import (
    Case,
    Job,
    all_cases,
    assert_exercised,
    make_jobs,
    pairwise_cases,
    reference_tokens,
    run_case,
)

from quire.testing.tiny_models import (
    write_tiny_gpt2,
    write_tiny_llama,
    write_tiny_mistral,
    write_tiny_mpt,
    write_tiny_qwen2,
    write_tiny_qwen3,
)

FAMILIES = {
    "llama": write_tiny_llama,
    "qwen2": write_tiny_qwen2,
    "qwen3": write_tiny_qwen3,
    "mistral": write_tiny_mistral,
    "gpt2": write_tiny_gpt2,
    "mpt": write_tiny_mpt,
}
TRAITS: dict[str, dict[str, object]] = {
    "llama": {"max_position_embeddings": 128},
    "qwen2": {"max_position_embeddings": 128},
    "qwen3": {
        "max_position_embeddings": 128,
        "use_sliding_window": True,
        "sliding_window": 7,
        "max_window_layers": 1,
    },
    "mistral": {"max_position_embeddings": 128, "sliding_window": 9, "head_dim": 12},
    "gpt2": {"n_positions": 128},
    "mpt": {"max_seq_len": 128, "n_heads": 6, "d_model": 48, "attn_config": {"clip_qkv": 2.0}},
}
"""Windows shorter than most prompts, six heads with alibi: beside what the writers choose."""
Prepared = tuple[Path, list[Job], list[list[int]]]


def _prepare(family: str, folder: Path, count: int) -> Prepared:
    FAMILIES[family](folder, **TRAITS[family])
    jobs = make_jobs(count, vocab_size=96, seed=1)
    return folder, jobs, reference_tokens(folder, jobs)


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return _prepare(request.param, tmp_path_factory.mktemp(request.param), 20)


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def full(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return _prepare(request.param, tmp_path_factory.mktemp(request.param), 200)


@pytest.mark.parametrize("case", pairwise_cases(), ids=str)
def test_pairwise(small: Prepared, case: Case) -> None:
    _check(small, case)


@pytest.mark.nightly
@pytest.mark.parametrize("case", all_cases(), ids=str)
def test_all_combinations(full: Prepared, case: Case) -> None:
    _check(full, case)


def _check(prepared: Prepared, case: Case) -> None:
    folder, jobs, expected = prepared
    outcome = run_case(folder, case, jobs)
    assert outcome.tokens == expected
    assert_exercised(case, jobs, outcome)
