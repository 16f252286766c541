"""The same engine on a GPU, through the torch reference ops."""

from __future__ import annotations

from pathlib import Path

import pytest
from equivalence import make_jobs, reference_tokens

from quire import LLM, SamplingParams
from quire.testing.tiny_models import write_tiny_gpt2, write_tiny_llama, write_tiny_qwen2

FAMILIES = {"llama": write_tiny_llama, "qwen2": write_tiny_qwen2, "gpt2": write_tiny_gpt2}

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("budget", [7, 2048])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_greedy_tokens_equal_transformers(family: str, budget: int, tmp_path: Path) -> None:
    limit = {"n_positions": 128} if family == "gpt2" else {"max_position_embeddings": 128}
    folder = FAMILIES[family](tmp_path, **limit)
    jobs = make_jobs(20, vocab_size=96, seed=2)
    with LLM(
        folder,
        device="cuda",
        dtype="float64",
        skip_tokenizer_init=True,
        max_model_len=96,
        max_num_batched_tokens=budget,
        num_kv_blocks=20,
        block_size=8,
    ) as llm:
        params = [SamplingParams(temperature=0.0, max_tokens=job.max_tokens, ignore_eos=True) for job in jobs]
        outputs = llm.generate([{"prompt_token_ids": job.prompt} for job in jobs], params, use_tqdm=False)
    assert [output.outputs[0].token_ids for output in outputs] == reference_tokens(folder, jobs)


def test_seeded_choices_equal_those_of_the_cpu(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path, max_position_embeddings=128)
    params = SamplingParams(n=3, temperature=0.9, top_k=30, top_p=0.95, seed=5, max_tokens=12, logprobs=3)
    found = []
    for device in ("cpu", "cuda"):
        with LLM(folder, device=device, dtype="float64", skip_tokenizer_init=True) as llm:
            output = llm.generate([list(range(20))], params, use_tqdm=False)[0]
            found.append([choice.token_ids for choice in output.outputs])
    assert found[0] == found[1]


def test_bfloat16_runs_a_mixed_batch(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path, max_position_embeddings=128)
    jobs = make_jobs(20, vocab_size=96, seed=3)
    with LLM(
        folder, device="cuda", dtype="bfloat16", skip_tokenizer_init=True, max_num_batched_tokens=32
    ) as llm:
        outputs = llm.generate(
            [job.prompt for job in jobs],
            [SamplingParams(max_tokens=job.max_tokens, ignore_eos=True, seed=1) for job in jobs],
            use_tqdm=False,
        )
    assert [len(output.outputs[0].token_ids) for output in outputs] == [job.max_tokens for job in jobs]
