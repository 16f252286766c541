"""Cases of steps that replay the launches of others, with Triton's paged attention: what captured graphs rest on.

Triton reads TRITON_INTERPRET when kernels are defined: `test_triton_attention.py` runs this file in its own process.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_cases import Shape, attend_naively, make_case
from torch import Tensor
from torch.nn import functional as F
from triton_attention_cases import attend, check, on_device, short_items

from quire.api.protocols import AttentionParams
from quire_kernels.kv_write import triton as write_module
from quire_kernels.paged_attention import triton as backend_module
from quire_kernels.paged_attention.triton import TritonPagedAttention

pytestmark = pytest.mark.usefixtures("poisoned_memory", "mended_interpreter")


def test_replays_at_other_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches are the same for all lengths of equally many rows and tokens, padding included.

    And no length is read on the host: there, the second batch has those of the first.
    """
    monkeypatch.setattr(backend_module, "make_plan", short_items(5))
    launches: list[list[object]] = []
    for name in ("write_kv", "schedule_items", "attend", "merge_partials"):
        module = write_module if name == "write_kv" else backend_module
        monkeypatch.setattr(module, name, recorder(getattr(module, name), launches))
    shape, params = Shape(3, 1, 16, 16, torch.float32), AttentionParams(3, 1, 16, 0.4)
    first = make_case([(1, 60), (1, 7), (1, 60), (9, 60), (5, 40)], shape)
    attend(first, params)
    count = len(launches)
    other = make_case([(1, 3), (1, 58), (1, 1), (2, 2), (12, 60)], shape, seed=1)
    other.batch.seq_lens[2], other.batch.slot_mapping[2] = 0, -1
    host = {name: getattr(first.batch, name) for name in ("query_lens", "context_lens")}
    found = attend(replace(other, batch=replace(other.batch, **host)), params)
    assert launches[:count] == launches[count:]
    assert count == 1 + 2 * 3
    real = [token for token in range(17) if token != 2]
    torch.testing.assert_close(
        found[real].double(), attend_naively(other, params)[real], atol=1e-5, rtol=1e-5
    )


def test_contexts_too_short_to_be_cut_are_not_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    launches: list[list[object]] = []
    monkeypatch.setattr(backend_module, "merge_partials", recorder(backend_module.merge_partials, launches))
    for context, count in ((128, 0), (129, 1)):
        check(make_case([(1, context)], Shape(1, 1, 16, 16, torch.float32)), AttentionParams(1, 1, 16, 0.4))
        assert len(launches) == count


def recorder(kernel: Any, launches: list[list[object]]) -> Any:
    """The kernel, which notes its grid and all arguments, of tensors their strides."""

    class Recorder:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            def launch(*arguments: Any, **keywords: Any) -> None:
                given = [x.stride() if isinstance(x, Tensor) else x for x in arguments]
                launches.append([grid, *given, keywords])
                kernel[grid](*arguments, **keywords)

            return launch

    return Recorder()


@pytest.mark.gpu
def test_captured_graphs_replay_other_lengths() -> None:
    """Every context of the replayed step is another than that of the captured one."""
    shape, params = Shape(8, 2, 64, 16, torch.float16), AttentionParams(8, 2, 64, 0.125)
    other = make_case([(1, 17), (1, 3000), (1, 900)], shape, seed=1)
    captured, replayed = on_device(make_case([(1, 3000), (1, 40), (1, 1)], shape)), on_device(other)
    padding = (0, 0, 0, 0, 0, 0, 0, 500 - captured.cache.shape[0])
    captured = replace(captured, cache=F.pad(captured.cache, padding, value=float("nan")))
    backend = TritonPagedAttention()
    graph = torch.cuda.CUDAGraph()
    arguments = (captured.query, captured.key, captured.value, captured.cache, params, captured.batch)

    def step() -> Tensor:
        captured.batch.attention = backend.prepare(captured.batch)
        return backend.forward(*arguments)

    step()
    with torch.cuda.graph(graph):
        out = step()
    for name in ("query", "key", "value"):
        getattr(captured, name).copy_(getattr(replayed, name))
    captured.cache[: replayed.cache.shape[0]] = replayed.cache
    for name in ("seq_lens", "slot_mapping", "block_tables"):
        getattr(captured.batch, name).copy_(getattr(replayed.batch, name))
    graph.replay()
    torch.testing.assert_close(out.cpu().double(), attend_naively(other, params), atol=4e-3, rtol=4e-3)
