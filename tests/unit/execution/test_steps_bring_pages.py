"""Steps of an engine bring the memory that they are about to write; threads stay awake between steps."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from functools import partial

import pytest

from quire import LLM, SamplingParams
from quire.execution import runner
from quire.execution.host_memory import BackgroundPages


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux brings pages on demand")
def test_a_step_brings_what_it_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "BackgroundPages", partial(BackgroundPages, delay_s=3600))
    brought: list[tuple[int, int]] = []
    bring = BackgroundPages.bring

    def noted(pages: BackgroundPages, num_first: int, num_all: int) -> None:
        brought.append((num_first, num_all))
        bring(pages, num_first, num_all)

    monkeypatch.setattr(BackgroundPages, "bring", noted)
    with LLM("tiny", device="cpu", max_model_len=128, block_size=16, num_kv_blocks=40) as llm:
        params = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)
        llm.generate({"prompt_token_ids": [5] * 30}, params, use_tqdm=False)
    assert len(brought) == 3 and {num_all for _, num_all in brought} == {40 * 16}
    assert [num_first for num_first, _ in brought] == [30, 31, 32], "one token a step, in the first blocks"


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "5000000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "None")],
)
def test_how_threads_wait_is_set_unless_it_is_given(given: Mapping[str, str], expected: str) -> None:
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in names} | dict(given)
    code = "import os, sys, quire; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == [expected, "False"]
