"""`quire plugins list` with twenty plugins installed: no torch, and no more than half a second.

Processor time is counted, not the clock: the list runs in one thread and waits for nothing, so on an
idle machine the two are equal, and on a busy one the clock measures the others.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

MakePlugin = Callable[..., Path]

LIMIT_S = 0.5
YARDSTICK_S = 0.15
"""What importing pydantic takes where the limit holds as it is; on a machine that takes longer it grows as much."""
BODY = """
from pydantic import BaseModel, Field

class Options(BaseModel):
    size: int = Field(1, description="a size")

@hookimpl
def quire_register_models():
    return [ModelSpec("Model{0}ForCausalLM", "model{0}:Model")]

@hookimpl
def quire_register_logits_processors():
    return [LogitsProcessorSpec("processor{0}", "model{0}:Processor")]
"""
PROGRAM = """
import sys
from quire.cli.main import main
status = main(["plugins", "list", "--json"])
assert "torch" not in sys.modules, "torch was imported"
assert "transformers" not in sys.modules, "transformers was imported"
sys.exit(status)
"""


def _processor_s(program: str, environment: dict[str, str]) -> tuple[float, str]:
    """Processor time of a Python program in a process of its own, and its output."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def test_listing_twenty_plugins(make_plugin: MakePlugin, site: Path) -> None:
    for index in range(20):
        make_plugin(f"plug{index:02}", BODY.format(index))
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    environment.pop("QUIRE_PLUGINS", None)
    seconds = []
    for _ in range(5):  # the best of several: the first one writes byte code
        yardstick_s, _ = _processor_s("from pydantic import BaseModel", environment)
        second, output = _processor_s(PROGRAM, environment)
        seconds.append(second * min(1.0, YARDSTICK_S / yardstick_s))
        listed = {entry["name"]: entry["status"] for entry in json.loads(output)["plugins"]}
        assert [listed.get(f"plug{index:02}") for index in range(20)] == ["enabled"] * 20
        if seconds[-1] < LIMIT_S:
            return
    raise AssertionError(f"quire plugins list took {min(seconds):.2f} s at best, the limit is {LIMIT_S} s")
