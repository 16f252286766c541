"""Engines with `compile=True` against engines without: equal greedy tokens, and what the log says."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import psutil
import pytest
from compile_cases import MODELS, write_model
from torch._inductor import config as inductor_config
from torch._inductor.utils import fresh_cache

from quire import LLM, SamplingParams

SETTINGS: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": 64,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 24,
    "block_size": 4,
    "num_kv_blocks": 96,
}
COMPILED = re.compile(
    r"steps: compiled by torch\.compile in \d+\.\d s, one graph; call by call \(native-replay: "
)
MARGIN = 1e-3
"""Nats by which a token must be likelier than the next one to be sure of: float32, in other orders."""


def generate(model: str | Path, log: pytest.LogCaptureFixture, **settings: Any) -> tuple[list[Any], str]:
    """Five prompts, greedy, with two logprobs; and the log's line about steps."""
    log.set_level(logging.INFO, "quire")
    log.clear()
    params = SamplingParams(temperature=0.0, max_tokens=9, ignore_eos=True, logprobs=2)
    prompts = [{"prompt_token_ids": ids} for ids in ([5, 4, 3], [7] * 11, [1], list(range(3, 40)), [9, 8])]
    with LLM(model, **{**SETTINGS, **settings}) as llm:
        outputs = llm.generate(prompts, params, use_tqdm=False)
    (summary,) = [text for record in log.records if (text := record.getMessage()).startswith("steps: ")]
    assert not [record for record in log.records if record.levelno >= logging.WARNING]
    return [output.outputs[0] for output in outputs], summary


def assert_same(model: str | Path, log: pytest.LogCaptureFixture, **settings: Any) -> None:
    compiled, summary = generate(model, log, compile=True, **settings)
    assert COMPILED.match(summary), summary
    plain, summary = generate(model, log, compile=True, enforce_eager=True, **settings)
    assert summary == "steps: call by call (enforce_eager)"
    num_equal = 0
    for one, other in zip(compiled, plain, strict=True):
        for position, entries in enumerate(other.logprobs):
            first, second = sorted((entry.logprob for entry in entries.values()), reverse=True)[:2]
            if first - second <= MARGIN:
                break
            assert one.token_ids[position] == other.token_ids[position]
            num_equal += 1
    assert num_equal >= 20


def test_the_embedded_model(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    with inductor_config.patch(compile_threads=2), fresh_cache(dir=str(tmp_path)):
        assert_same("tiny", caplog)
    assert {process.pid for process in psutil.Process().children(recursive=True)} <= before, "workers stay"


@pytest.mark.nightly
@pytest.mark.parametrize("name", MODELS)
def test_every_architecture(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert_same(write_model(name, tmp_path), caplog, skip_tokenizer_init=True)


@pytest.mark.nightly
@pytest.mark.parametrize(
    "settings",
    [
        {"quantization": "int8", "dtype": "bfloat16"},
        {"kv_cache_dtype": "int8"},
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
        {"async_scheduling": True},
    ],
    ids=["int8", "quantized KV", "drafts", "ahead"],
)
def test_with_other_settings(settings: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    assert_same("tiny", caplog, **settings)
