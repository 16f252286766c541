"""Captured steps of decodes, with graphs that run again what was captured; see `graph_cases.py`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from graph_cases import BLOCK_SIZE, DevicePaged, Rig, make_rig
from run_again_graphs import RunAgain, RunAgainGraphs
from torch import Tensor
from triton_runs import run_cases

from quire.api.batch import DeviceInfo, ForwardBatch
from quire.api.errors import CaptureError
from quire.api.protocols import AttentionParams
from quire.execution.forward import run_layers
from quire.execution.graph_rows import ladder
from quire.execution.graphs import CudaGraphSteps
from quire.ops.paged_attention import TorchPagedAttention
from quire.plugins.builtin import quire_register_step_captures

PARAMS = AttentionParams(num_heads=4, num_kv_heads=2, head_size=4, scale=0.5)


class WritesPadding(DevicePaged):
    """Takes -1 for the last slot, as Python does."""

    def slots(self, batch: ForwardBatch) -> Tensor:
        return batch.slot_mapping.remainder(2 * BLOCK_SIZE)


class KeepsLengths(DevicePaged):
    """Reads lengths on the host, behind everyone's back: a graph keeps those of its capture."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[int, Tensor] = {}

    def prepare(self, batch: ForwardBatch) -> Any:
        is_hidden = type(batch.context_lens) is not list
        if is_hidden and len(batch.context_lens) not in self.kept:
            self.kept[len(batch.context_lens)] = batch.seq_lens.clone()
        return self.kept[len(batch.context_lens)] if is_hidden else batch.seq_lens


class NotCapturable(RunAgainGraphs):
    """A device that refuses."""

    def capture(self, run: Callable[[], object], pool: object) -> object:
        try:
            raise RuntimeError("operation not permitted when stream is capturing")
        finally:
            raise RuntimeError("capture was invalidated")


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def rig() -> Rig:
    backend = DevicePaged()
    return make_rig([backend, backend], PARAMS)


def decodes(count: int) -> list[tuple[int, int]]:
    return [(1, 1 + (7 * row + 5) % 20) for row in range(count)]


def test_ladder() -> None:
    assert ladder(1) == [1]
    assert ladder(5) == [1, 2, 4, 5]
    assert ladder(24) == [1, 2, 4, 8, 16, 24]
    assert ladder(300)[-5:] == [248, 256, 272, 288, 300]
    assert ladder(10_000) == [1, 2, 4, *range(8, 257, 8), *range(272, 513, 16)]


def test_the_largest_is_captured_first_in_one_pool_and_warmed_up(rig: Rig) -> None:
    graphs: list[RunAgain] = rig.graphs.graphs
    assert [graph.run.args[0] for graph in graphs] == [10, 8, 4, 2, 1]
    assert len({id(graph.pool) for graph in graphs}) == 1
    assert rig.graphs.warmed_up == [graph.launches for graph in graphs]
    found = rig.captured.summary
    assert found.startswith(
        "replayed by cuda-graphs: 5 graphs of decodes, up to 10 rows, 15 MB, captured in "
    )


@pytest.mark.parametrize("count", range(1, 11))
def test_replays_any_number_of_rows_at_any_lengths(rig: Rig, count: int) -> None:
    """And writes no slot but its own, whatever the step before left in the rows that are padding now."""
    rig.check(rig.batch(decodes(count), seed=count))
    rig.check(rig.batch([(1, 48), (1, 1)][:count], seed=20 + count))
    rig.check(rig.batch([(1, 24 - 2 * row) for row in range(count)], seed=40 + count))


def test_padding_has_no_slot_and_no_context(rig: Rig) -> None:
    rig.batch([(1, 40)] * 4)
    batch = rig.batch(decodes(3))
    rig.steps.layers(batch)
    assert batch.seq_lens.as_strided((4,), (1,)).tolist() == [6, 13, 20, 0]
    assert batch.slot_mapping.as_strided((4,), (1,))[3:].tolist() == [-1]


def test_after_prompts(rig: Rig) -> None:
    """Their tokens stay in the buffers behind the rows of the next step."""
    run_layers(rig.model, rig.batch([(30, 30), (30, 40)]))
    rig.check(rig.batch(decodes(5)))


def test_other_steps_are_not_replayed(rig: Rig) -> None:
    before = rig.graphs.num_replays
    for rows in ([(3, 9)], [(1, 5), (2, 2)]):
        batch = rig.batch(rows)
        assert rig.steps.layers(batch) is None
        hidden = rig.model_pass.layers(batch)
        assert torch.equal(hidden, run_layers(rig.model, batch))
    assert rig.graphs.num_replays == before


def test_the_head_is_plain(rig: Rig) -> None:
    batch = rig.batch(decodes(3))
    hidden = rig.model_pass.layers(batch)
    assert rig.steps.logits(hidden, batch) is None
    logits = rig.model_pass.logits(hidden, batch)
    torch.testing.assert_close(logits, rig.model.head(run_layers(rig.model, batch)))


def test_results_are_valid_until_the_next_pass(rig: Rig) -> None:
    """All steps have theirs in one place."""
    first = rig.steps.layers(rig.batch(decodes(3)))
    kept = first.clone()
    batch = rig.batch(decodes(5), seed=1)
    assert torch.equal(first, kept), "building a batch changes nothing"
    second = rig.steps.layers(batch)
    assert second.data_ptr() == first.data_ptr()
    assert not torch.equal(first, kept)


def test_other_buffers_are_refused(rig: Rig) -> None:
    batch = rig.batch(decodes(2))
    for name in ("token_ids", "seq_lens", "slot_mapping", "block_tables"):
        moved = dataclasses.replace(batch, **{name: getattr(batch, name).clone()})
        with pytest.raises(CaptureError, match="does not lie in the buffers"):
            rig.steps.layers(moved)


def test_before_trim_only_full_graphs_are_replayed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bits of a step that is filled up are those of as many rows, which plain steps are not compared with."""
    monkeypatch.setattr(CudaGraphSteps, "trim", lambda self: None)
    backend = DevicePaged()
    rig = make_rig([backend, backend], PARAMS)
    assert rig.steps.layers(rig.batch(decodes(3))) is None
    rig.check(rig.batch(decodes(4)))


def test_every_size_is_compared_full_and_filled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    replay, compared = CudaGraphSteps.replay, []

    def noted(self: CudaGraphSteps, batch: ForwardBatch, size: int) -> Tensor:
        compared.append((batch.num_requests, size))
        return replay(self, batch, size)

    monkeypatch.setattr(CudaGraphSteps, "replay", noted)
    backend = DevicePaged()
    make_rig([backend, backend], PARAMS, max_num_seqs=16)
    # 48 tokens of context are 12 blocks: no more rows have blocks of their own, as far as the capture knows
    assert compared[:8] == [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (8, 8), (9, 16), (12, 16)]


def test_tokens_that_are_verified_are_rows_too() -> None:
    """More of them than requests."""
    backend = DevicePaged()
    rig = make_rig([backend, backend], PARAMS, max_num_seqs=4, max_drafts=2)
    assert "up to 12 rows" in rig.captured.summary
    batch = rig.batch([(3, 9), (1, 5), (3, 20)], drafts=2)
    assert batch.num_requests == 7
    rig.check(batch)


def test_reading_lengths_on_the_host_is_refused() -> None:
    backend = TorchPagedAttention()
    assert make_rig([backend, backend], PARAMS).captured.summary == (
        "call by call (cuda-graphs: the attention backend torch-paged: "
        "reading a batch's context_lens on the host cannot be replayed)"
    )


def test_writing_the_kv_of_padding_is_refused() -> None:
    backend = WritesPadding()
    found = make_rig([backend, backend], PARAMS).captured.summary
    assert "it writes the KV of rows whose slot is -1" in found


def test_lengths_of_the_capture_are_noticed() -> None:
    backend = KeepsLengths()
    found = make_rig([backend, backend], PARAMS).captured
    assert found.steps is None
    assert "decodes differ from the model's own when the graph of" in found.summary


def test_several_backends_are_refused() -> None:
    found = make_rig([DevicePaged(), DevicePaged()], PARAMS).captured.summary
    assert "2 attention backends, expected one" in found


def test_what_cannot_be_captured_is_said() -> None:
    backend = DevicePaged()
    found = make_rig([backend, backend], PARAMS, make_graphs=NotCapturable).captured.summary
    assert found == (
        "call by call (cuda-graphs: a step of 10 decodes cannot be captured: "
        "operation not permitted when stream is capturing)"
    )


def test_only_on_devices_with_graphs() -> None:
    (spec,) = quire_register_step_captures()
    assert spec.name == "cuda-graphs"
    assert spec.supports(DeviceInfo("cuda"), "bfloat16") is None
    assert spec.supports(DeviceInfo("cpu"), "bfloat16") == "needs a CUDA or ROCm device, not cpu"


def test_tritons_attention_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    run_cases("triton_graph_cases.py", "-m", "not nightly", interpret=True)


@pytest.mark.nightly
def test_tritons_attention_of_whole_contexts_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    run_cases("triton_graph_cases.py", "-m", "nightly", interpret=True)


@pytest.mark.gpu
def test_graphs_of_a_gpu() -> None:
    run_cases("triton_graph_cases.py", interpret=False)
