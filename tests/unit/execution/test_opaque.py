"""Which ops and layers torch.compile does not look into, and what it is told of their results."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compile_cases import WARM_UP, make_rig, write_model
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from quire.api.batch import DeviceInfo
from quire.api.protocols import AttentionParams
from quire.api.specs import OpImplSpec, OpSpec, Registration
from quire.execution.opaque import OpaqueCalls
from quire.nn.linear import Linear, LinearShape
from quire.nn.unquantized import UnquantizedMethod
from quire.ops.paged_attention import TorchPagedAttention
from quire.ops.specs import core_op_specs
from quire.ops.table import OpTable
from quire.plugins.registry import resolve_factory


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., ::2], x[..., 1::2]


def double(x: Tensor, y: Tensor) -> Tensor:
    return x.add_(x)


def norm_of_pointers(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    assert x.data_ptr() and weight.data_ptr(), "a fake tensor has no memory"
    return torch.rms_norm(x, weight.shape, None, eps) * weight


SPECS = [
    *core_op_specs(),
    OpSpec("halves", "(Tensor x) -> (Tensor, Tensor)", lambda x: tuple(x.chunk(2, -1))),
    OpSpec("double", "(Tensor(a!) x, Tensor y) -> Tensor(a!)", double),
    OpSpec("odd", "takes what you like", str),
    OpImplSpec("halves", "mine", halves, lambda device, dtype: None, priority=1),
    OpImplSpec("rms_norm", "mine", norm_of_pointers, lambda device, dtype: None, priority=1),
]


@pytest.fixture
def table() -> OpTable:
    registrations = [Registration(spec, "mine", "mine", "1") for spec in SPECS]
    return OpTable(registrations, DeviceInfo("cpu"), "float32", resolve_factory)


@pytest.fixture
def calls(table: OpTable) -> OpaqueCalls:
    return OpaqueCalls(table, TorchPagedAttention())


def test_ops_are_the_tables_own_where_nothing_is_traced(calls: OpaqueCalls, table: OpTable) -> None:
    x = torch.arange(6.0).view(1, 6)
    first, second = calls.ops.halves(x)
    assert first.tolist() == [[0, 2, 4]] and second.tolist() == [[1, 3, 5]]
    assert first.stride() == (6, 2)  # as the implementation gives it
    assert calls.ops.describe() == table.describe()
    assert calls.ops.silu is table.silu and calls.ops.halves is not table.halves
    assert calls.ops.odd is str  # torch cannot read its schema


def test_traced_ops_are_single_calls(calls: OpaqueCalls) -> None:
    ops, graphs = calls.ops, []

    def run(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        normed = ops.silu(ops.rms_norm(x, weight, 1e-5))
        first, second = ops.halves(ops.double(y=x, x=normed))
        return first, second

    def keep(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph

    x, weight = torch.randn(3, 8), torch.randn(8)
    found = torch.compile(run, backend=keep, fullgraph=True)(x, weight)
    expected = run(x, weight)
    torch.testing.assert_close(found, expected)
    assert [each.stride() for each in found] == [(4, 1)] * 2  # as the reference is described
    own = [name.split(".", 1)[1] for name in graphs[0] if name.startswith("quire_")]
    assert own == ["rms_norm.default", "double.default", "halves.default"]
    assert any("silu" in name for name in graphs[0])


def test_results_are_described_by_references(calls: OpaqueCalls) -> None:
    names = getattr(torch.ops, calls._name)
    with FakeTensorMode() as mode:
        x, weight = torch.empty(5, 16), torch.empty(16)
        normed = names.rms_norm(x.t().contiguous().t(), weight, 1e-5)
        first, second = names.halves(x)
    assert normed.fake_mode is mode and normed.shape == (5, 16) and normed.stride() == (16, 1)
    assert first.shape == second.shape == (5, 8)


def test_another_rotary_embedding_than_before(calls: OpaqueCalls) -> None:
    layer = calls.attention(AttentionParams(2, 1, 4, 0.5), TorchPagedAttention())
    query = torch.empty(3, 2, 4)
    other: object = torch.nn.Identity()
    run = torch.compile(lambda x: layer(x, x, x, None, other), backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="(?s)ShapeError|another rotary embedding"):
        run(query)


def fill(layer: Linear, value: float) -> Linear:
    """A layer of one input and one output that multiplies by a value."""
    layer.assign([UnquantizedMethod()])
    layer.tensor_slots(None)[0].target.fill_(value)
    layer.process_after_loading()
    return layer


def traced(layer: Linear) -> list[float]:
    """What a layer makes of 1."""
    found: Tensor = torch.compile(lambda x: layer(x), backend="eager", fullgraph=True)(torch.ones(1, 1))
    return found.flatten().tolist()


SHAPE = LinearShape(1, (("only", 1),), False, torch.float32, torch.device("cpu"))


@torch.inference_mode()
def test_layers_end_with_their_model(calls: OpaqueCalls) -> None:
    first, second = (fill(calls.linear(SHAPE), value) for value in (2.0, 3.0))
    attention = calls.attention(AttentionParams(2, 1, 4, 0.5), TorchPagedAttention())
    ended = [weakref.ref(first), weakref.ref(attention)]
    del first, attention
    gc.collect()
    assert [reference() for reference in ended] == [None, None]
    third = fill(calls.linear(SHAPE), 4.0)
    assert traced(second) == [3.0] and traced(third) == [4.0]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
@torch.inference_mode()
def test_a_copy_multiplies_by_its_own_weights(copied: Callable[[Linear], Linear], calls: OpaqueCalls) -> None:
    layer = calls.linear(SHAPE)
    other = fill(copied(layer), 3.0)
    fill(layer, 2.0)
    assert traced(layer) == [2.0] and traced(other) == [3.0]


class GivesCache(TorchPagedAttention):
    def forward(self, query: Tensor, key: Tensor, value: Tensor, kv_cache: Tensor, *rest: object) -> Tensor:
        return kv_cache


@torch.inference_mode()
def test_a_copy_of_attention_reads_its_own_cache(calls: OpaqueCalls) -> None:
    layer = calls.attention(AttentionParams(2, 1, 4, 0.5), GivesCache())
    other = copy.deepcopy(layer)
    for value, each in enumerate((layer, other)):
        cache = torch.full((3, 8), float(value))
        each.bind_kv_cache(cache)
        run = torch.compile(lambda x, each=each: each(x, x, x, None), backend="eager", fullgraph=True)
        torch.testing.assert_close(run(torch.empty(3, 2, 4)), cache)


def put_over(layer: Any) -> None:
    own = layer.forward
    layer.forward = lambda *args: 1.05 * own(*args)


def subclass(layer: Any) -> None:
    class Scaled(type(layer)):
        def forward(self, *args: Any) -> Tensor:
            return 1.05 * super().forward(*args)

    layer.__class__ = Scaled


@pytest.mark.parametrize("change", [put_over, subclass])
@pytest.mark.parametrize("name", ["mlp.down", "attention.attention"])
def test_what_is_put_over_an_opaque_layer_runs_once(
    name: str, change: Callable[[Any], None], tmp_path: Path
) -> None:
    rig = make_rig(
        write_model("llama", tmp_path), change=lambda model: change(model.layers[0].get_submodule(name))
    )
    compiled = rig.compiled()
    for rows in WARM_UP:
        rig.assert_equal(compiled, rows)


def test_each_engine_has_its_own_namespace(calls: OpaqueCalls, table: OpTable) -> None:
    other = OpaqueCalls(table, TorchPagedAttention())
    assert other._name != calls._name
