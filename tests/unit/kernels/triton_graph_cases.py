"""Captured steps of decodes with Triton's paged attention: on a GPU, or interpreted where TRITON_INTERPRET=1 is set.

Triton reads that variable when kernels are defined: `test_graphs.py` runs this file in its own process.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import triton
from graph_cases import Rig, make_rig
from run_again_graphs import RunAgainGraphs
from torch.utils._python_dispatch import _disable_current_modes
from triton_attention_cases import short_items

from quire.api.protocols import AttentionParams
from quire.execution.graph_device import TorchGraphs
from quire_kernels.kv_write import triton as write_module
from quire_kernels.paged_attention import triton as backend_module
from quire_kernels.paged_attention.triton import TritonPagedAttention

IS_INTERPRETED = triton.knobs.runtime.interpret
PARAMS = AttentionParams(num_heads=3, num_kv_heads=1, head_size=16, scale=0.25)
KERNELS = ("write_kv", "schedule_items", "attend", "merge_partials")


class CountedGraphs(TorchGraphs):
    """A GPU's, which count as those that run again do."""

    num_replays = 0

    def replay(self, graph: object) -> None:
        self.num_replays += 1
        super().replay(graph)


@pytest.fixture(autouse=True)
def inference(poisoned_memory: None, mended_interpreter: None) -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(
    params=[pytest.param(False, id="whole", marks=pytest.mark.nightly), pytest.param(True, id="cut")]
)
def rig(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """Of a model; its contexts are cut into items, or not."""
    if request.param:
        monkeypatch.setattr(backend_module, "make_plan", short_items(5))
    backend = TritonPagedAttention()
    if not IS_INTERPRETED:
        return make_rig([backend, backend], PARAMS, max_num_seqs=4, device="cuda", make_graphs=CountedGraphs)
    for name in KERNELS:
        module = write_module if name == "write_kv" else backend_module
        monkeypatch.setattr(module, name, noted(name, getattr(module, name)))
    rig = make_rig([backend, backend], PARAMS, max_num_seqs=4)
    for graph in rig.graphs.graphs:
        kernels = [entry[0] for entry in graph.launches if entry[0] in KERNELS]
        attend = ["write_kv", "attend", *["merge_partials"] * request.param]
        assert kernels == ["write_kv", "schedule_items", *attend[1:], *attend], "one schedule for both layers"
    return rig


def noted(name: str, kernel: Any) -> Any:
    """The kernel, whose launches are among those that a graph may not change."""

    class Noted:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            def launch(*arguments: Any, **keywords: Any) -> None:
                if RunAgainGraphs.active is not None:
                    RunAgainGraphs.active.note(name, [grid, *arguments], keywords)
                with _disable_current_modes():  # what the interpreter does, a GPU does not launch
                    kernel[grid](*arguments, **keywords)

            return launch

    return Noted()


def test_replays_any_number_of_rows_at_any_lengths(rig: Rig) -> None:
    assert rig.captured.summary.startswith("replayed by cuda-graphs: 3 graphs of decodes, up to 4 rows, ")
    for count in (1, 3, 4):
        rig.check(rig.batch([(1, 1 + (7 * row + 5) % 20) for row in range(count)], seed=count))
        rig.check(rig.batch([(1, 40 - 7 * row) for row in range(count)], seed=10 + count))
    assert rig.steps.layers(rig.batch([(20, 20), (9, 40)])) is None
    rig.check(rig.batch([(1, 33), (1, 2), (1, 17)]))
