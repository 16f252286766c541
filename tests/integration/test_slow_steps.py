"""A step that lasts longer than the watchdog allows, while the engine computes, is no hang."""

from __future__ import annotations

import asyncio
import textwrap
from pathlib import Path

import pytest

from quire import SamplingParams
from quire.api.client import EngineRequest
from quire.api.commands import EngineProcessOptions
from quire.api.config import EngineConfig
from quire.engine.supervisor import SupervisedEngine

WATCHDOG_S = 1.5

SLOW = """
import os, time
from quire.api.hookspecs import hookimpl
from quire.api.specs import LogitsProcessorSpec, PluginInfo

@hookimpl
def quire_plugin_info():
    return PluginInfo(api=">=1,<2", description="computes for a long time")

def compute(prompt, output, logits):
    end = time.process_time() + 2.5 if not output else 0.0
    while time.process_time() < end:
        sum(range(1000))
    return logits

class Slow:
    def for_request(self, arguments, params):
        return None if arguments is None else compute

@hookimpl
def quire_register_logits_processors():
    return [LogitsProcessorSpec(name="slow", factory=lambda context: Slow())]
"""


def test_an_op_that_takes_long_is_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slowplugin.py").write_text(textwrap.dedent(SLOW))
    info = tmp_path / "quire_slowplugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: quire-slowplugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[quire]\nslowplugin = slowplugin\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    async def main() -> tuple[int, int]:
        config = EngineConfig.from_keywords({"model": "tiny"})
        client = await SupervisedEngine.start(config, EngineProcessOptions(WATCHDOG_S, 1))
        params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True, extra_args={"slow": {}})
        try:
            deltas = [delta async for delta in client.stream(EngineRequest("r", [5, 6, 7], params))]
            return sum(len(delta.choices[0].token_ids) for delta in deltas), client.status().num_restarts
        finally:
            await client.close()

    assert asyncio.run(main()) == (4, 0)
