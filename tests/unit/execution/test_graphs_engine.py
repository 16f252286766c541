"""The engine with captured steps of decodes against the same engine call by call, in float32: equal tokens."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from graph_cases import DevicePaged
from run_again_graphs import RunAgainGraphs

from quire import LLM, SamplingParams
from quire.api.config import PluginSettings
from quire.api.hookspecs import hookimpl
from quire.api.specs import AttentionBackendSpec, PluginInfo, StepCaptureSpec
from quire.execution.graphs import CudaGraphCapture
from quire.plugins import PluginHost
from quire.testing.tiny_models import write_tiny_llama

PROMPTS = [[5, 4, 3], [7] * 11, [1], list(range(3, 30)), [5, 4, 3, 5, 4, 3, 5, 4]]


class Graphs:
    """Captures on any device; keeps what it made, and counts replays after the start."""

    name = "graphs-anywhere"

    def __init__(self) -> None:
        self.made: list[RunAgainGraphs] = []
        self.num_replays = 0

    @hookimpl
    def quire_plugin_info(self) -> PluginInfo:
        return PluginInfo(api=">=1,<2", description="graphs that run again")

    @hookimpl
    def quire_register_attention_backends(self) -> list[AttentionBackendSpec]:
        return [AttentionBackendSpec("device-paged", DevicePaged, lambda device, dtype: None)]

    @hookimpl
    def quire_register_step_captures(self) -> list[StepCaptureSpec]:
        def make(device: torch.device) -> RunAgainGraphs:
            self.made.append(RunAgainGraphs(device))
            return self.made[-1]

        return [StepCaptureSpec("graphs", lambda: CudaGraphCapture(make), lambda device, dtype: None)]


def tokens_of(folder: Path, plugin: Graphs, **settings: Any) -> list[list[int]]:
    """Per prompt 9 greedy tokens; prompts are computed in chunks, beside decodes."""
    denied = PluginSettings(deny=("native-kernels", "triton-kernels"))
    with LLM(
        folder,
        host=PluginHost.discover(denied, [plugin]),
        attention_backend="device-paged",
        device="cpu",
        dtype="float32",
        skip_tokenizer_init=True,
        max_model_len=64,
        max_num_batched_tokens=12,
        max_num_seqs=7,
        block_size=4,
        **settings,
    ) as llm:
        params = SamplingParams(temperature=0.0, max_tokens=9, ignore_eos=True)
        before = sum(graphs.num_replays for graphs in plugin.made)
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in PROMPTS], params, use_tqdm=False)
        plugin.num_replays = sum(graphs.num_replays for graphs in plugin.made) - before
    return [output.outputs[0].token_ids for output in outputs]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"async_scheduling": True},
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2, "adaptive": False}},
    ],
    ids=["plain", "ahead", "drafts"],
)
def test_tokens_are_equal(settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "quire")
    write_tiny_llama(tmp_path)
    plugin = Graphs()
    drafts = settings.get("speculative_config")
    expected = tokens_of(tmp_path, plugin, enforce_eager=True, speculative_config=drafts)
    assert not plugin.made
    assert "steps: call by call (enforce_eager)" in caplog.text
    found = tokens_of(tmp_path, plugin, **settings)
    assert "steps: replayed by graphs: " in caplog.text
    assert len(plugin.made) == 1
    assert plugin.num_replays >= 3
    assert found == expected
