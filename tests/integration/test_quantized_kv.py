"""Engines with quantized KV caches: tokens that do not depend on how they are computed, logits, capacity, refusals."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from equivalence import Case, assert_exercised, make_jobs, run_case, values

from quire import LLM, SamplingParams
from quire.api.batch import DeviceInfo, KVCacheDTypeName
from quire.api.errors import ConfigError
from quire.testing.forward import SequenceForward
from quire.testing.tiny_models import write_tiny_llama, write_tiny_qwen3
from quire_kernels.native.bfloat16 import bfloat16_refusal

KINDS: tuple[KVCacheDTypeName, ...] = ("fp8_e4m3", "int8")
VOCAB = 96
CASES = [
    Case(7, "cold", 4, "ample"),
    Case(16, "warm", 16, "ample"),
    Case(16, "off", 4, "scarce"),
    Case(None, "cold", 1, "ample"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen3")
    write_tiny_qwen3(folder, max_position_embeddings=128)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_do_not_depend_on_chunks_prefix_cache_and_preemption(
    folder: Path, kind: KVCacheDTypeName
) -> None:
    """What a step writes itself is read as quantized as what an earlier one wrote."""
    jobs = make_jobs(20, VOCAB, seed=2)
    whole = Case(None, "off", 16, "ample")
    expected = run_case(folder, whole, jobs, kv_cache_dtype=kind)
    assert expected.tokens != run_case(folder, whole, jobs).tokens, "quantizing changed nothing"
    for case in CASES:
        outcome = run_case(folder, case, jobs, kv_cache_dtype=kind)
        assert_exercised(case, jobs, outcome)
        assert outcome.tokens == expected.tokens, str(case)


@pytest.mark.parametrize("kind", KINDS)
def test_drafts_of_a_model_with_a_quantized_cache_change_no_token(
    folder: Path, kind: KVCacheDTypeName
) -> None:
    jobs, case = make_jobs(6, VOCAB, seed=3), Case(16, "cold", 4, "ample")
    plain = run_case(folder, case, jobs, kv_cache_dtype=kind)
    drafts = {"model": str(folder), "num_speculative_tokens": 2, "adaptive": False}
    drafted = run_case(folder, case, jobs, kv_cache_dtype=kind, speculative_config=drafts)
    assert drafted.tokens == plain.tokens
    assert drafted.counters["spec_decode_num_accepted_tokens"] > 0


@pytest.mark.parametrize(("kind", "tolerance"), [("int8", 0.02), ("fp8_e4m3", 0.08)])
def test_logits_are_close_to_those_of_the_models_dtype(
    folder: Path, kind: KVCacheDTypeName, tolerance: float
) -> None:
    """The differences' spread, as a part of the logits'; about twice what was seen in a model of random weights."""
    token_ids = [(7 * i) % VOCAB for i in range(60)]
    found = []
    for dtype in ("auto", kind):
        forward = SequenceForward(folder, "float32", max_len=64, kv_cache_dtype=dtype)
        parts = [forward.logits(token_ids[:40]), forward.logits(token_ids[40:50])]
        parts += [forward.logits([token]) for token in token_ids[50:]]
        found.append(torch.cat(parts))
    plain, quantized = found
    difference = float((quantized - plain).std() / plain.std())
    assert tolerance / 10 < difference < tolerance, difference


@pytest.mark.skipif(
    bfloat16_refusal(DeviceInfo("cpu"), "bfloat16") is not None, reason="steps are recorded in bfloat16"
)
@pytest.mark.parametrize("kind", get_args(KVCacheDTypeName))
def test_recorded_steps_give_the_same(
    folder: Path, kind: KVCacheDTypeName, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="quire")
    jobs, case = make_jobs(8, VOCAB, seed=4), Case(16, "cold", 4, "ample")
    tokens = []
    for eager in (True, False):
        outcome = run_case(folder, case, jobs, kv_cache_dtype=kind, dtype="bfloat16", enforce_eager=eager)
        tokens.append(outcome.tokens)
    assert tokens[0] == tokens[1]
    assert "attention native-paged" in caplog.text and "steps: replayed by native-replay" in caplog.text


def test_quantized_caches_hold_about_twice_as_much(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Heads of 64: 68 bytes each instead of 128; the log says so."""
    caplog.set_level(logging.INFO, logger="quire")
    write_tiny_llama(tmp_path, head_dim=64)
    blocks: dict[str, int] = {}
    for kind in ("auto", "fp8", "int8"):
        settings: dict[str, Any] = {
            "dtype": "bfloat16",
            "kv_cache_memory_bytes": 2_000_000,
            "max_num_seqs": 200,
            "max_model_len": 32,
        }
        with LLM(tmp_path, skip_tokenizer_init=True, kv_cache_dtype=kind, **settings) as llm:
            blocks[kind] = int(values(llm.get_metrics(), "gauge")["num_kv_blocks"])
            llm.generate([{"prompt_token_ids": [1, 2, 3]}], SamplingParams(max_tokens=3), use_tqdm=False)
    assert blocks["fp8"] == blocks["int8"]
    assert 1.85 < blocks["int8"] / blocks["auto"] < 1.95
    for name in ("bfloat16", "fp8_e4m3", "int8"):
        assert f" MiB of {name}, " in caplog.text


def test_other_dtypes_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"kv_cache_dtype='bfloat16': .*set dtype"):
        LLM(folder, kv_cache_dtype="bfloat16")
    with pytest.raises(ConfigError, match=r"kv_cache_dtype='fp8_e5m2': .*'fp8_e4m3' or 'int8'"):
        LLM(folder, kv_cache_dtype="fp8_e5m2")
