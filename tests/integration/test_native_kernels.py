"""The engine with native kernels against the same engine on torch's, in float32."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from quire import LLM, SamplingParams
from quire.testing.tiny_models import write_tiny_gpt2, write_tiny_llama, write_tiny_qwen2

TOLERANCE = 1e-4


def logprobs_of(
    folder: Path, prompts: list[list[int]], deny: list[str], log: pytest.LogCaptureFixture
) -> list[list[dict[int, float]]]:
    """Per prompt, the log-probabilities of the whole vocabulary at each of 12 greedy steps."""
    log.clear()
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True, logprobs=-1)
    with LLM(
        folder,
        dtype="float32",
        skip_tokenizer_init=True,
        max_model_len=64,
        max_num_seqs=8,
        max_num_batched_tokens=40,
        block_size=4,
        plugins={"deny": deny},
    ) as llm:
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
    return [
        [{token: entry.logprob for token, entry in step.items()} for step in output.outputs[0].logprobs or []]
        for output in outputs
    ]


@pytest.mark.parametrize("write", [write_tiny_llama, write_tiny_qwen2, write_tiny_gpt2])
def test_native_kernels_agree_with_torch(
    write: Callable[[Path], object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "quire")
    write(tmp_path)
    draw = random.Random(0)
    prompts = [[draw.randrange(90) for _ in range(draw.randrange(1, 50))] for _ in range(12)]
    plain = logprobs_of(tmp_path, prompts, ["native-kernels"], caplog)
    assert "kernels: attention torch-paged; " in caplog.text
    assert "native add_layer_norm" not in caplog.text
    native = logprobs_of(tmp_path, prompts, [], caplog)
    ops = (
        "add_layer_norm, add_rms_norm, apply_penalties, copy_blocks, embedding, gelu, gelu_fast, gelu_new, "
        "gelu_pytorch_tanh, greedy_tokens, layer_norm, relu, rms_norm, rotary, sample_tokens, silu, silu_and_mul"
    )
    assert f"kernels: attention native-paged; native {ops}" in caplog.text
    compared = 0
    for found, wanted in zip(native, plain, strict=True):
        for step, other in zip(found, wanted, strict=True):
            for token, value in step.items():
                assert value == pytest.approx(other[token], abs=TOLERANCE)
            compared += 1
            ranked = sorted(other.values(), reverse=True)
            if ranked[0] - ranked[1] < 2 * TOLERANCE:
                break  # a tie: from here on the two may go different ways
    assert compared > 10 * len(prompts)
