"""Every built-in architecture and the native quantized linears in bfloat16: replayed steps against plain ones."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from quire import LLM, SamplingParams
from quire.api.batch import DeviceInfo
from quire.testing import tiny_models
from quire.testing.hf_configs import derive_configs, find_hf_class
from quire_kernels.native.bfloat16 import bfloat16_refusal

REFUSAL = bfloat16_refusal(DeviceInfo("cpu"), "bfloat16")
if REFUSAL is not None:
    pytest.skip(REFUSAL, allow_module_level=True)

SETTINGS: dict[str, Any] = {
    "dtype": "bfloat16",
    "skip_tokenizer_init": True,
    "max_model_len": 64,
    "max_num_seqs": 6,
    "max_num_batched_tokens": 17,
    "block_size": 4,
}
VOCAB = 97
MODELS: dict[str, tuple[Callable[..., Path], Mapping[str, object]]] = {
    "LlamaForCausalLM": (tiny_models.write_tiny_llama, {"attention_bias": True, "mlp_bias": True}),
    "MistralForCausalLM": (tiny_models.write_tiny_mistral, {"sliding_window": 7}),
    "Qwen2ForCausalLM": (tiny_models.write_tiny_qwen2, {}),
    "Qwen3ForCausalLM": (tiny_models.write_tiny_qwen3, {}),
    "GPT2LMHeadModel": (tiny_models.write_tiny_gpt2, {}),
    "MptForCausalLM": (
        tiny_models.write_tiny_mpt,
        {"attn_config": {"clip_qkv": 1.0}, "logit_scale": 0.3},
    ),
}
REPLAYED = re.compile(r"steps: replayed by native-replay: (\d+) calls of layers, \d+ of the head")


@dataclass(frozen=True)
class Outcome:
    """What an engine gave.

    Attributes:
        tokens: of each request. logprobs: of the whole vocabulary, at each token. hits: in the prefix cache.
        summary: the log's line about steps.
    """

    tokens: list[list[int]]
    logprobs: list[list[dict[int, float]]]
    hits: float
    summary: str


def summary_of(log: pytest.LogCaptureFixture) -> str:
    return next(record.getMessage() for record in log.records if record.getMessage().startswith("steps: "))


def generate(folder: Path, log: pytest.LogCaptureFixture, **settings: Any) -> Outcome:
    """Four prompts of mixed lengths, greedy and seeded, over again: in chunks, beside each other, from the cache."""
    draw = random.Random(0)
    common = [draw.randrange(VOCAB) for _ in range(21)]
    prompts = [common[:1], common, common[:13] + [draw.randrange(VOCAB) for _ in range(20)], common[3:12]]
    greedy = SamplingParams(temperature=0.0, max_tokens=9, ignore_eos=True, logprobs=-1)
    seeded = [
        SamplingParams(temperature=0.9, top_p=0.95, seed=seed, max_tokens=12, ignore_eos=True, logprobs=-1)
        for seed in range(4)
    ]
    log.clear()
    with LLM(folder, **{**SETTINGS, **settings}) as llm:
        requests = [{"prompt_token_ids": prompt} for prompt in prompts * 2]
        outputs = llm.generate(requests, [greedy] * 4 + seeded, use_tqdm=False)
        metrics = {metric.name: metric.value for metric in llm.get_metrics() if not metric.labels}
    samples = [output.outputs[0] for output in outputs]
    return Outcome(
        tokens=[list(sample.token_ids) for sample in samples],
        logprobs=[
            [{token: entry.logprob for token, entry in step.items()} for step in sample.logprobs or []]
            for sample in samples
        ],
        hits=metrics["quire:prefix_cache_hits"],
        summary=summary_of(log),
    )


def assert_replays(folder: Path, log: pytest.LogCaptureFixture, **settings: Any) -> None:
    """Replayed, and token for token and bit for bit what the same engine gives without."""
    log.set_level(logging.INFO, "quire")
    replayed = generate(folder, log, **settings)
    assert REPLAYED.match(replayed.summary), replayed.summary
    plain = generate(folder, log, enforce_eager=True, **settings)
    assert plain.summary == "steps: call by call (enforce_eager)"
    assert replayed.tokens == plain.tokens
    assert replayed.logprobs == plain.logprobs
    assert [len(steps) for steps in plain.logprobs] == [9] * 4 + [12] * 4
    assert len(plain.logprobs[0][0]) >= VOCAB
    assert replayed.hits == plain.hits > 0


@pytest.mark.parametrize("name", MODELS)
def test_replayed_steps_equal_plain_ones(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write, fields = MODELS[name]
    assert_replays(write(tmp_path, **fields), caplog)


@pytest.mark.parametrize(("method", "num_calls"), [(None, 8), ("int8", 9)])
def test_the_calls_of_a_layer(
    method: str | None, num_calls: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two norms, four linears and two of attention; after quantized linears the activation is a call too."""
    caplog.set_level(logging.INFO, "quire")
    counts = []
    for num_layers in (2, 5):
        folder = tmp_path / str(num_layers)
        tiny_models.write_tiny_llama(
            folder, num_hidden_layers=num_layers, hidden_size=64, intermediate_size=128
        )
        caplog.clear()
        with LLM(folder, quantization=method, **SETTINGS):
            matched = REPLAYED.match(summary_of(caplog))
        assert matched is not None
        counts.append(int(matched[1]))
    assert counts[1] - counts[0] == 3 * num_calls


@pytest.mark.parametrize("method", ["int8", "int4"])
def test_quantized_while_loading(method: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tiny_models.write_tiny_llama(tmp_path, hidden_size=64, intermediate_size=128)
    assert_replays(folder, caplog, quantization=method)


@pytest.mark.parametrize(
    "name",
    [
        "awq-gemm-w4g128-autoawq",
        "gptq-w4g128-sym-desc",
        "gptq-w8g128-sym",
        "tiny-ct-w4a16-g32-actorder",
        "tiny-ct-w8a8-dynamic",
    ],
)
def test_quantized_checkpoints(
    name: str, quantized_checkpoint: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    assert_replays(quantized_folder(name, quantized_checkpoint), caplog)


def quantized_folder(name: str, assembled: Callable[[str], Path]) -> Path:
    """The tiny ones are whole as they lie there."""
    return Path(__file__).parents[1] / "checkpoints" / name if name.startswith("tiny") else assembled(name)


@pytest.mark.parametrize("architecture", MODELS)
def test_traits_of_the_architectures(
    architecture: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each trait of its configuration that is served is replayed, but for dynamic scalings of positions."""
    caplog.set_level(logging.INFO, "quire")
    hf_class = find_hf_class(architecture)
    for label, fields in derive_configs(hf_class).items():
        folder = tmp_path / re.sub(r"\W", "-", label)
        hf_class(hf_class.config_class(**fields)).save_pretrained(folder)
        caplog.clear()
        with LLM(folder, **{**SETTINGS, "max_model_len": 16}):
            pass
        if label == "rope-dynamic":
            reason = "torch's aten.arange.start_step cannot be recorded (in quire.nn.rope_frequencies."
            assert reason in summary_of(caplog)
        else:
            assert REPLAYED.match(summary_of(caplog)), (label, summary_of(caplog))


LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4,
    "original_max_position_embeddings": 32,
    "factor": 2.0,
}


def test_a_scaling_by_the_contexts_length_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "quire")
    tiny_models.write_tiny_llama(tmp_path, rope_parameters=LONG_ROPE)
    with LLM(tmp_path, **SETTINGS):
        pass
    reason = "torch's aten.gt.Scalar cannot be recorded (in quire.nn.rotary.RotaryEmbedding.rows)"
    assert summary_of(caplog) == f"steps: call by call (native-replay: {reason})"


def test_fp8_says_why_it_is_not_replayed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "quire")
    folder = Path(__file__).parents[1] / "checkpoints" / "tiny-ct-fp8-dynamic"
    with LLM(folder, **SETTINGS):
        pass
    assert "call by call (native-replay: the native fp8_linear" in summary_of(caplog)
    assert "(in quire_kernels.fp8_linear.native.fp8_linear)" in summary_of(caplog)
