"""Checkpoints of GPTQModel, AutoAWQ and llm-compressor through `LLM`: logits, the start-up summary, settings."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from quantized_checkpoints import TOLERANCES, expected
from quire import LLM, SamplingParams
from quire.api.errors import ConfigError, UnsupportedModelError

Folder = Callable[[str], Path]

SETTINGS = {"dtype": "float32", "skip_tokenizer_init": True, "device": "cpu"}


def prompt_logprobs(llm: LLM, ids: list[int]) -> torch.Tensor:
    """Log-probabilities [T - 1, V] of every token after each prefix of the prompt."""
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=-1)
    [output] = llm.generate([{"prompt_token_ids": ids}], params, use_tqdm=False)
    assert output.prompt_logprobs is not None
    rows = [row for row in output.prompt_logprobs if row is not None]
    return torch.tensor([[row[token].logprob for token in range(len(row))] for row in rows])


@pytest.mark.parametrize("name", TOLERANCES)
def test_the_tools_own_logits(name: str, quantized_checkpoint: Folder) -> None:
    ids, logits = expected(name)
    with LLM(str(quantized_checkpoint(name)), max_num_batched_tokens=11, block_size=4, **SETTINGS) as llm:
        found = prompt_logprobs(llm, ids)
    reference = logits[:-1].double()
    # Log-probabilities are logits up to a constant for each row.
    shifted = found.double() + reference.logsumexp(-1, keepdim=True)
    assert float((shifted - reference).norm() / reference.norm()) < TOLERANCES[name]


def test_the_start_up_summary(quantized_checkpoint: Folder, caplog: pytest.LogCaptureFixture) -> None:
    folder = quantized_checkpoint("gptq-w4g128-sym")
    with caplog.at_level(logging.INFO, logger="quire"), LLM(str(folder), **SETTINGS):
        pass
    text = caplog.text
    assert "quantization: gptq-marlin of plugin 'gptq-marlin' (quire-quantization 0.1.0) claims gptq" in text
    assert "28 modules gptq-marlin (w4a16_linear: reference)" in text and "1 modules unquantized" in text
    assert "quantization: gptq does not serve: gptq-marlin claims it first" in text
    assert "lm_head by unquantized, since" in text
    assert "the quantized linears take" in text and "in 16 bits" in text


def test_a_fallback_is_visible(quantized_checkpoint: Folder, caplog: pytest.LogCaptureFixture) -> None:
    folder = quantized_checkpoint("gptq-w3g32-sym")
    with caplog.at_level(logging.INFO, logger="quire"), LLM(str(folder), **SETTINGS):
        pass
    assert "28 modules gptq (gptq_linear: reference)" in caplog.text
    assert "quantization: gptq-marlin does not serve" in caplog.text


@pytest.mark.parametrize(
    ("setting", "plugins", "method"),
    [
        ("gptq", {}, "gptq-marlin"),
        ("gptq_marlin", {}, "gptq-marlin"),
        ("marlin", {}, "gptq-marlin"),
        (None, {"deny": ["gptq-marlin"]}, "gptq"),
    ],
)
def test_settings(
    quantized_checkpoint: Folder,
    caplog: pytest.LogCaptureFixture,
    setting: str | None,
    plugins: dict[str, object],
    method: str,
) -> None:
    folder = quantized_checkpoint("gptq-w4g128-sym")
    with (
        caplog.at_level(logging.INFO, logger="quire"),
        LLM(str(folder), quantization=setting, plugins=plugins, **SETTINGS),
    ):
        pass
    assert f"28 modules {method} (" in caplog.text


@pytest.mark.parametrize(
    ("setting", "error", "words"),
    [
        ("awq", ConfigError, "quantization='awq' contradicts the checkpoint"),
        ("int8", ConfigError, "quantization='int8' contradicts the checkpoint"),
        ("gtpq", ConfigError, "no quantization method is called 'gtpq'"),
    ],
)
def test_contradictions(
    quantized_checkpoint: Folder, setting: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        LLM(str(quantized_checkpoint("gptq-w4g128-sym")), quantization=setting, **SETTINGS)


def test_without_the_plugins(quantized_checkpoint: Folder) -> None:
    plugins = {"deny": ["gptq", "gptq-marlin"]}
    with pytest.raises(
        UnsupportedModelError, match=r"quant_method='gptq'.*Installed and off: .*gptq \(denied"
    ):
        LLM(str(quantized_checkpoint("gptq-w4g128-sym")), plugins=plugins, **SETTINGS)


def test_prefix_hits_preemption_and_forks_change_nothing(quantized_checkpoint: Folder) -> None:
    """Sixteen requests with common prefixes in a scarce cache, against each alone."""
    folder = str(quantized_checkpoint("gptq-w4g128-sym-desc"))
    ids = expected("gptq-w4g128-sym-desc")[0]
    prompts = [ids[: 8 + i] + [7 * i % 2048] for i in range(16)]
    params = SamplingParams(max_tokens=12, temperature=0.8, seed=3, ignore_eos=True)
    settings = {**SETTINGS, "dtype": "float64", "block_size": 4}
    requests = [{"prompt_token_ids": prompt} for prompt in prompts]
    with LLM(folder, num_kv_blocks=36, max_num_batched_tokens=24, max_model_len=64, **settings) as llm:
        together = llm.generate(requests, params, use_tqdm=False)
        metrics = {metric.name: metric.value for metric in llm.get_metrics() if not metric.labels}
    assert metrics["quire:num_preemptions"] > 0 and metrics["quire:prefix_cache_hits"] > 0
    with LLM(folder, enable_prefix_caching=False, **settings) as llm:
        alone = [llm.generate([request], params, use_tqdm=False)[0] for request in requests]
    for first, second in zip(together, alone, strict=True):
        assert first.outputs[0].token_ids == second.outputs[0].token_ids
