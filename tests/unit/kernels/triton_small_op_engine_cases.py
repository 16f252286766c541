"""The engine with the small Triton ops against the same engine with the references, in float32.

On a GPU, or where TRITON_INTERPRET=1 is set on a CPU: `test_triton_small_ops.py` runs this file in its own process.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import triton

from quire import LLM, SamplingParams
from quire.api.config import PluginSettings
from quire.api.hookspecs import hookimpl
from quire.api.specs import OpImplSpec, OpSpec, PluginInfo
from quire.plugins import PluginHost
from quire.testing.tiny_models import write_tiny_gpt2, write_tiny_llama
from quire_kernels import triton_plugin

pytestmark = [pytest.mark.nightly, pytest.mark.usefixtures("mended_interpreter")]

DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"
TOLERANCE = 1e-4


class SmallOps:
    """The plugin's small ops, and nothing else of it, on any device."""

    name = "small-ops"

    @hookimpl
    def quire_plugin_info(self) -> PluginInfo:
        return PluginInfo(api=">=1,<2", description="small Triton ops on any device")

    @hookimpl
    def quire_register_ops(self) -> list[OpSpec | OpImplSpec]:
        return [
            dataclasses.replace(spec, name="small", supports=lambda device, dtype: None)
            for spec in triton_plugin.quire_register_ops()
            if isinstance(spec, OpImplSpec) and spec.supports is triton_plugin.small_op_refusal
        ]


def logprobs_of(folder: Path, plugins: Sequence[object]) -> list[list[dict[int, float]]]:
    """Per prompt, the log-probabilities of the whole vocabulary at each of 8 greedy steps."""
    settings = PluginSettings(deny=("native-kernels", "triton-kernels"))
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, logprobs=-1)
    prompts = [[5, 4, 3], [7] * 11, [1], list(range(3, 20))]
    with LLM(
        folder,
        host=PluginHost.discover(settings, plugins),
        device=DEVICE,
        dtype="float32",
        skip_tokenizer_init=True,
        max_model_len=64,
        max_num_batched_tokens=12,
        block_size=4,
    ) as llm:
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
    return [
        [{token: entry.logprob for token, entry in step.items()} for step in output.outputs[0].logprobs or []]
        for output in outputs
    ]


@pytest.mark.parametrize(
    ("write", "ops"),
    [
        (write_tiny_llama, ["add_rms_norm", "embedding", "rms_norm", "rotary", "silu_and_mul"]),
        (write_tiny_gpt2, ["add_layer_norm", "embedding", "gelu_new", "layer_norm"]),
    ],
)
def test_logprobs_agree(
    write: Callable[[Path], object], ops: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "quire")
    write(tmp_path)
    plain = logprobs_of(tmp_path, [])
    assert "small " not in caplog.text
    found = logprobs_of(tmp_path, [SmallOps()])
    line = next(line for line in caplog.text.splitlines() if "; small " in line)
    assert all(op in line for op in ops)
    compared = 0
    for steps, others in zip(found, plain, strict=True):
        for step, other in zip(steps, others, strict=True):
            assert step == pytest.approx(other, abs=TOLERANCE)
            compared += 1
            ranked = sorted(other.values(), reverse=True)
            if ranked[0] - ranked[1] < 2 * TOLERANCE:
                break  # a tie: from here on the two may go different ways
    assert compared > 24
