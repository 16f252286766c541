"""The engine with Triton's paged attention against the same engine with the reference, in float32: equal tokens.

On a GPU, or where TRITON_INTERPRET=1 is set on a CPU: `test_triton_attention.py` runs this file in its own process.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import triton
from triton_attention_cases import short_items

from quire import LLM, SamplingParams
from quire.api.config import PluginSettings
from quire.api.hookspecs import hookimpl
from quire.api.specs import AttentionBackendSpec, PluginInfo
from quire.plugins import PluginHost
from quire.testing.tiny_models import (
    write_tiny_llama,
    write_tiny_mistral,
    write_tiny_mpt,
    write_tiny_qwen2,
)
from quire_kernels import triton_plugin
from quire_kernels.paged_attention import triton as backend_module

pytestmark = pytest.mark.usefixtures("mended_interpreter")

DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"
PROMPTS = [[5, 4, 3], [7] * 11, [1], list(range(3, 30))]


class AnyDevice:
    """The plugin's attention backend on any device."""

    name = "any-device"

    @hookimpl
    def quire_plugin_info(self) -> PluginInfo:
        return PluginInfo(api=">=1,<2", description="Triton's paged attention on any device")

    @hookimpl
    def quire_register_attention_backends(self) -> list[AttentionBackendSpec]:
        specs = triton_plugin.quire_register_attention_backends()
        return [dataclasses.replace(spec, supports=lambda device, dtype: None) for spec in specs]


def tokens_of(folder: Path, backend: str) -> list[list[int]]:
    """Per prompt 8 greedy tokens; prompts are computed in chunks, beside decodes."""
    settings = PluginSettings(deny=("native-kernels", "triton-kernels"))
    with LLM(
        folder,
        host=PluginHost.discover(settings, [AnyDevice()]),
        attention_backend=backend,
        device=DEVICE,
        dtype="float32",
        skip_tokenizer_init=True,
        max_model_len=64,
        max_num_batched_tokens=12,
        block_size=4,
    ) as llm:
        params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in PROMPTS], params, use_tqdm=False)
    return [output.outputs[0].token_ids for output in outputs]


@pytest.mark.parametrize(
    "write",
    [
        write_tiny_llama,
        *(
            pytest.param(x, marks=pytest.mark.nightly)
            for x in (write_tiny_qwen2, write_tiny_mistral, write_tiny_mpt)
        ),
    ],
)
def test_tokens_are_equal(
    write: Callable[[Path], object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "quire")
    write(tmp_path)
    expected = tokens_of(tmp_path, "torch-paged")
    assert "kernels: attention torch-paged; " in caplog.text
    calls: Counter[str] = Counter()
    attend, schedule_rows = backend_module.attend_rows, backend_module.make_schedule

    def counted_attend(layer: Any, rows: Any, *rest: Any) -> None:
        calls["decodes" if rows.is_decode else "prompts"] += 1
        calls["behind decodes"] += rows.first_row > 0
        attend(layer, rows, *rest)

    def counted_schedule(*arguments: Any) -> Any:
        schedule = schedule_rows(*arguments)
        calls["merges"] += int((schedule.merges[:, 0] > 0).sum())
        return schedule

    monkeypatch.setattr(backend_module, "attend_rows", counted_attend)
    monkeypatch.setattr(backend_module, "make_schedule", counted_schedule)
    monkeypatch.setattr(backend_module, "make_plan", short_items(4))
    found = tokens_of(tmp_path, "triton-paged")
    assert "kernels: attention triton-paged; " in caplog.text
    assert [len(tokens) for tokens in found] == [8] * 4
    assert found == expected
    assert all(calls[kind] > 0 for kind in ("decodes", "prompts", "behind decodes", "merges")), calls
