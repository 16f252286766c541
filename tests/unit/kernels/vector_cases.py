"""Cases for a library that is compiled without bfloat16 instructions; see test_native_vectors.py, which runs them."""

from __future__ import annotations

import collections
import ctypes
import logging
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from quire import LLM, SamplingParams
from quire.api.batch import DeviceInfo
from quire.testing.tiny_models import write_tiny_llama
from quire_kernels.native import bfloat16
from quire_kernels.native.kernel import Kernel
from quire_kernels.native_plugin import quire_register_ops
from quire_kernels.paged_attention.native import NativePagedAttention

CPU = DeviceInfo("cpu")
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.3}  # logits of 10 are rounded to sixteenths
EVERYWHERE = {"paged_attention", "write_kv", "rms_norm", "silu_and_mul"}


def test_what_serves_and_why() -> None:
    assert bfloat16.vector_name() == "AVX2 and FMA" and bfloat16.instructions() == bfloat16.VECTORS
    said = "compiled for AVX2 and FMA, without bfloat16 dot products (AVX512_BF16)"
    specs = {(spec.op, spec.name): spec.supports for spec in quire_register_ops() if hasattr(spec, "op")}
    for op in ("linear", "w4a16_linear", "w8a16_linear"):
        assert specs[op, "native"](CPU, "bfloat16") == said
        assert specs[op, "native-vectors"](CPU, "bfloat16") is None
        assert specs[op, "native-vectors"](CPU, "float32") == "the kernel serves bfloat16, not float32"
    assert "AVX512_BF16" in str(specs["fp8_linear", "native"](CPU, "bfloat16"))
    assert "VNNI" in str(specs["w8a8_linear", "native"](CPU, "bfloat16"))


@dataclass(frozen=True)
class Outcome:
    """Of each request its tokens, and the log-probabilities of the whole vocabulary at each."""

    tokens: list[list[int]]
    logprobs: list[list[dict[int, float]]]


def generate(folder: Path, dtype: str, deny: list[str], *, enforce_eager: bool = False) -> Outcome:
    draw = random.Random(0)
    prompts = [[draw.randrange(90) for _ in range(draw.randrange(1, 50))] for _ in range(9)]
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, logprobs=-1)
    with LLM(
        folder,
        dtype=dtype,
        skip_tokenizer_init=True,
        max_model_len=64,
        max_num_seqs=6,
        max_num_batched_tokens=40,
        block_size=4,
        enforce_eager=enforce_eager,
        plugins={"deny": deny},
    ) as llm:
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
    completions = [output.outputs[0] for output in outputs]
    return Outcome(
        [list(each.token_ids) for each in completions],
        [
            [{token: e.logprob for token, e in step.items()} for step in each.logprobs or []]
            for each in completions
        ],
    )


def compare(found: Outcome, wanted: Outcome, tolerance: float) -> int:
    """How many tokens are equal; where one is not, torch's two best must be too close to each other to tell."""
    compared = 0
    for row, tokens in enumerate(wanted.tokens):
        for step, token in enumerate(tokens):
            expected, values = wanted.logprobs[row][step], found.logprobs[row][step]
            assert max(abs(values[each] - expected[each]) for each in expected) < tolerance
            if found.tokens[row][step] != token:
                best, second = sorted(expected.values(), reverse=True)[:2]
                assert best - second < 2 * tolerance
                break
            compared += 1
    return compared


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_an_engine(
    dtype: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "quire")
    write_tiny_llama(tmp_path, initializer_range=0.3)
    plain = generate(tmp_path, dtype, ["native-kernels"])
    assert "attention torch-paged" in caplog.text and "native-vectors" not in caplog.text
    calls: collections.Counter[str] = collections.Counter()
    call = Kernel.__call__

    def counted(kernel: Kernel, arguments: ctypes.Structure) -> None:
        calls[kernel.name] += 1
        call(kernel, arguments)

    monkeypatch.setattr(Kernel, "__call__", counted)
    monkeypatch.setattr(NativePagedAttention, "attend_group", None)  # torch's way
    caplog.clear()
    eager = generate(tmp_path, dtype, [], enforce_eager=True)
    assert set(calls) >= EVERYWHERE and min(calls[name] for name in EVERYWHERE) >= 8
    is_native = dtype == "bfloat16"
    assert (calls["linear"] > 8 * 4) == is_native
    assert ("; native-vectors linear, w4a16_linear, w8a16_linear" in caplog.text) == is_native
    assert compare(eager, plain, TOLERANCES[dtype]) > 40
    caplog.clear()
    replayed = generate(tmp_path, dtype, [])
    assert ("steps: replayed by native-replay" in caplog.text) == is_native
    assert replayed == eager
