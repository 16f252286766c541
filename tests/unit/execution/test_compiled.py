"""Compiled models against their own calls: one graph for steps of all sizes, or a reason why there is none."""

from __future__ import annotations

import gc
import logging
import re
import time
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from compile_cases import LIMITS, MODELS, Rig, every_size, make_rig, write_model
from graph_cases import DevicePaged
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from quire.api.batch import DeviceInfo, ForwardBatch
from quire.api.errors import CaptureError
from quire.api.specs import Registration, StepCaptureSpec
from quire.execution.capture import Captured, StepCaptures
from quire.execution.compiled import CompiledModel
from quire.execution.forward import run_layers
from quire.execution.graphs import CudaGraphCapture
from quire.execution.progress import PROGRESS
from quire_kernels.replay.capture import NativeCapture

COMPILED = re.compile(r"compiled by torch\.compile in \d+\.\d s, one graph")


@pytest.fixture(autouse=True)
def _count_anew() -> None:
    counters.clear()


def assert_one_graph_for_all(rig: Rig, backend: str) -> None:
    """Nothing is compiled after the start, without breaks, and results are the model's."""
    found = rig.compile(backend)
    assert COMPILED.fullmatch(found.summary), found.summary
    assert found.model is not rig.model
    with torch.compiler.set_stance("fail_on_recompile"):
        for rows in every_size():
            rig.assert_equal(found.model, rows)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"] and not counters["unimplemented"]


@pytest.mark.nightly
@pytest.mark.parametrize("is_native", [True, False], ids=["native", "references"])
@pytest.mark.parametrize("name", MODELS)
def test_traced_models(name: str, is_native: bool, tmp_path: Path) -> None:
    assert_one_graph_for_all(make_rig(write_model(name, tmp_path), is_native=is_native), "aot_eager")


def rotate_first(model: Any) -> None:
    """Let attention of a Llama rotate by itself, as models may: attention layers then get no rotary embedding."""
    for layer in model.layers:
        layer.attention.forward = partial(_attend_rotated, layer.attention)


def _attend_rotated(attention: Any, x: Tensor, batch: ForwardBatch) -> Tensor:
    parts = attention.qkv(x).split(attention.sizes, dim=-1)
    query, key, value = (part.unflatten(-1, (-1, attention.head_size)) for part in parts)
    query, key = attention.rotary(query, key, batch)
    return attention.out(attention.attention(query, key, value, batch))


@pytest.mark.nightly
@pytest.mark.parametrize("is_native", [True, False], ids=["native", "references"])
def test_rotation_by_the_model(is_native: bool, tmp_path: Path) -> None:
    rig = make_rig(write_model("llama", tmp_path), is_native=is_native, change=rotate_first)
    assert_one_graph_for_all(rig, "aot_eager")


def test_inductor(tmp_path: Path) -> None:
    assert_one_graph_for_all(make_rig(write_model("llama", tmp_path), is_native=False), "inductor")


@pytest.mark.nightly
@pytest.mark.parametrize("is_native", [True, False], ids=["native", "references"])
@pytest.mark.parametrize("name", MODELS)
def test_inductor_compiles_every_architecture(name: str, is_native: bool, tmp_path: Path) -> None:
    assert_one_graph_for_all(make_rig(write_model(name, tmp_path), is_native=is_native), "inductor")


def over_layer(run: Callable[[Any, Tensor, ForwardBatch], Tensor]) -> Callable[[Any], object]:
    """Puts code over the last layer: run(layer, x, batch), x being what the layer gives."""

    def change(model: Any) -> None:
        layer = model.layers[-1]
        own = layer.forward
        layer.forward = lambda x, batch: run(layer, own(x, batch), batch)

    return change


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (lambda layer, x, batch: x * batch.context_lens[0], "the model's code depends on more of a step"),
        (lambda layer, x, batch: x * 2 if x.sum() > 1e6 else x, "Unsupported: Data-dependent branching"),
        (lambda layer, x, batch: x * 2 if torch.compiler.is_compiling() else x, "tokens differ by 1"),
    ],
    ids=["a number of the step", "a tensor's value", "another result"],
)
def test_what_cannot_be_compiled(run: Any, reason: str, tmp_path: Path) -> None:
    rig = make_rig(write_model("llama", tmp_path), change=over_layer(run))
    found = rig.compile()
    assert found.model is rig.model
    assert found.summary.startswith("not compiled (torch.compile: ") and reason in found.summary
    assert "\n" not in found.summary


def test_a_backend_that_fails(tmp_path: Path) -> None:
    def fail(graph: object, inputs: object) -> None:
        raise ValueError("no such luck\nat all")

    rig = make_rig(write_model("gpt2", tmp_path))
    found = rig.compile(fail)
    assert found.model is rig.model
    assert found.summary == "not compiled (torch.compile: ValueError: no such luck)"


def test_where_torch_does_not_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **keywords: object) -> None:
        raise RuntimeError("torch.compile is not supported on this Python")

    monkeypatch.setattr(torch, "compile", refuse)
    rig = make_rig(write_model("gpt2", tmp_path))
    found = rig.compile()
    assert found.model is rig.model
    assert (
        found.summary
        == "not compiled (torch.compile: RuntimeError: torch.compile is not supported on this Python)"
    )


@pytest.mark.nightly
def test_without_a_compiler(tmp_path: Path) -> None:
    import torch._inductor.config as config

    rig = make_rig(write_model("gpt2", tmp_path), is_native=False)
    with config.patch({"cpp.cxx": (None, "/no/such/compiler"), "fx_graph_cache": False}):
        found = rig.compile("inductor")
    assert found.model is rig.model
    assert found.summary.startswith(
        "not compiled (torch.compile: InvalidCxxCompiler: No working C++ compiler"
    )


def test_compiling_is_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quire.execution.compiled._COUNT_S", 0.001)
    counts = []

    def wait(graph: object, inputs: object) -> None:
        before, end = PROGRESS.count, time.monotonic() + 20
        while PROGRESS.count < before + 3 and time.monotonic() < end:
            time.sleep(0.001)
        counts.append(PROGRESS.count - before)
        raise ValueError("enough")

    make_rig(write_model("gpt2", tmp_path)).compile(wait)
    assert counts[0] >= 3


def test_switched_off(tmp_path: Path) -> None:
    rig = make_rig(write_model("gpt2", tmp_path))
    with torch.compiler.set_stance("force_eager"):
        found = rig.compile()
    assert found.model is rig.model
    assert found.summary == "not compiled (torch.compile: it is switched off, or does not serve this Python)"


def test_a_model_that_changes_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def prepare(model: Any) -> None:
        model.layers[-1].factor = 1.0
        over_layer(lambda layer, x, batch: x * layer.factor)(model)

    rig = make_rig(write_model("llama", tmp_path), change=prepare)
    compiled = rig.compiled()
    rig.assert_equal(compiled, [(3, 3)])
    rig.model.layers[-1].factor = 3.0
    with torch.compiler.set_stance("fail_on_recompile"):  # nor traced
        for _ in range(2):
            rig.assert_equal(compiled, [(3, 3)])
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.getMessage() == (
        "torch.compile: the graph does not serve a step of 3 tokens (the model, the step or torch's settings are not "
        "as they were when it was made); from now on steps run uncompiled"
    )


def test_its_calls_cannot_be_recorded(tmp_path: Path) -> None:
    rig = make_rig(write_model("llama", tmp_path))
    compiled = rig.compiled()

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    with torch.inference_mode():
        batch = rig.samples([(3, 3)])
        with Recorder(), pytest.raises(CaptureError, match="a compiled model's calls cannot be recorded"):
            compiled.embed(batch)


def captured(rig: Rig, capture: object, monkeypatch: pytest.MonkeyPatch) -> Captured:
    monkeypatch.setattr("quire.execution.compiled.DEFAULT_BACKEND", "eager")
    spec = StepCaptureSpec("mine", lambda: capture, lambda device, dtype: None)
    captures = StepCaptures(
        [Registration(spec, "mine", "mine", "1")],
        lambda made, _: made,
        DeviceInfo("cpu"),
        "float32",
        rig.calls,
    )
    return rig.record(captures)


def test_native_replays_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make_rig(write_model("llama", tmp_path))
    found = captured(rig, NativeCapture(), monkeypatch)
    first, _, second = found.summary.partition("; ")
    assert COMPILED.fullmatch(first)
    assert second == "call by call (mine: a compiled model's calls cannot be recorded)"
    assert found.steps is None and found.model is not None
    rig.assert_equal(found.model, [(1, 7), (3, 9)])


class AgainGraphs:
    """Graphs that run again what was captured."""

    num_replays = 0

    def pool(self) -> object:
        return self

    def warm_up(self, run: Callable[[], object]) -> None:
        run()

    def capture(self, run: Callable[[], object], pool: object) -> object:
        return run

    def replay(self, graph: Any) -> None:
        self.num_replays += 1
        graph()

    def synchronize(self) -> None:
        pass

    def memory(self) -> int:
        return 0


def test_graphs_capture_the_compiled_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = AgainGraphs()
    rig = make_rig(write_model("llama", tmp_path), backend=DevicePaged())
    found = captured(rig, CudaGraphCapture(lambda device: graphs), monkeypatch)
    assert COMPILED.match(found.summary) and "; replayed by mine: 4 graphs of decodes" in found.summary
    assert found.model is not None and found.steps is not None
    replays, runs, run = graphs.num_replays, [], CompiledModel.embed

    def noted(model: CompiledModel, batch: ForwardBatch) -> Tensor:
        runs.append(batch)
        return run(model, batch)

    monkeypatch.setattr(CompiledModel, "embed", noted)
    with torch.inference_mode():
        batch = rig.samples([(1, 7), (1, 3), (1, 12)])
        hidden = found.steps.layers(batch)
        assert hidden is not None and graphs.num_replays == replays + 1 and len(runs) == 1
        torch.testing.assert_close(hidden.clone(), run_layers(rig.model, batch))


def test_nothing_is_kept_after_the_end(tmp_path: Path) -> None:
    rig = make_rig(write_model("llama", tmp_path))
    compiled = rig.compiled()
    rig.assert_equal(compiled, [(LIMITS.max_num_seqs, LIMITS.max_num_seqs)])
    name, weight = rig.calls._name, weakref.ref(next(compiled.parameters()))
    assert torch._C._dispatch_has_kernel(f"{name}::linear_layer")
    del rig, compiled
    gc.collect()
    assert weight() is None
    assert not torch._C._dispatch_has_kernel(f"{name}::linear_layer")
