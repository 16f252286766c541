"""Building and loading a model, and describing the device that it runs on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from quire.api.batch import DeviceInfo, DTypeName, ForwardBatch
from quire.api.errors import DeviceError, UnsupportedModelError
from quire.api.protocols import AttentionParams, BuildContext
from quire.api.specs import OpImplSpec, Registration, WeightMap, WeightPart
from quire.execution import device as device_module
from quire.execution.device import detect_device
from quire.execution.model_builder import BuildSettings, build_model
from quire.ops.paged_attention import TorchPagedAttention
from quire.ops.specs import core_op_specs
from quire.ops.table import OpTable
from quire.plugins.registry import resolve_factory

CPU = DeviceInfo("cpu")


@dataclass(frozen=True)
class ToyConfig:
    vocab_size: int = 11
    max_position_embeddings: int = 32
    num_attention_heads: int = 2
    rope_switch_len: int | None = None


class ToyLayer(nn.Module):
    def __init__(self, ctx: BuildContext) -> None:
        super().__init__()
        self.qkv = ctx.linear(8, {"q": 8, "k": 4, "v": 4})
        self.attention = ctx.attention(AttentionParams(2, 1, 4, 0.5))

    def forward(self, x: Tensor, batch: ForwardBatch) -> Tensor:
        query, key, value = self.qkv(x).split([8, 4, 4], dim=-1)
        return x + self.attention(query, key, value, batch)


class ToyModel(nn.Module):
    def __init__(self, config: ToyConfig, ctx: BuildContext) -> None:
        super().__init__()
        self.embedding = ctx.embedding(config.vocab_size, 8)
        self.layers = ctx.layers(3, lambda index: ToyLayer(ctx))
        self.lm_head = ctx.lm_head(8, config.vocab_size, tied_to=self.embedding)

    @staticmethod
    def parse_config(hf_config: Mapping[str, object]) -> ToyConfig:
        return ToyConfig()

    @staticmethod
    def weight_map(config: ToyConfig) -> WeightMap:
        return WeightMap({"embedding": (WeightPart("wte"),)}, 3)

    def embed(self, batch: ForwardBatch) -> Tensor:
        return self.embedding(batch.token_ids)

    def finish(self, hidden: Tensor) -> Tensor:
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)


def make_settings(dtype: DTypeName) -> BuildSettings:
    known = [Registration(spec, "core", "quire-core", "0") for spec in core_op_specs()]
    ops = OpTable(known, CPU, dtype, resolve_factory)
    return BuildSettings(dtype, CPU, ops, TorchPagedAttention(), max_model_len=32)


def fill_with(value: float, seen: list[WeightMap]) -> object:
    def load(model: nn.Module, weight_map: WeightMap) -> None:
        seen.append(weight_map)
        for parameter in model.parameters():
            parameter.fill_(value)

    return load


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_builds_loads_and_runs(dtype: DTypeName) -> None:
    seen: list[WeightMap] = []
    built = build_model(ToyModel, ToyConfig(), make_settings(dtype), fill_with(0.125, seen))
    model = built.model
    assert isinstance(model, ToyModel) and seen == [ToyModel.weight_map(ToyConfig())]
    assert built.vocab_size == 11 and built.dtype == getattr(torch, dtype)
    assert [layer.attention for layer in model.layers] == list(built.attention_layers)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    caches = built.allocate_kv_caches(4, 16)
    assert [cache.shape for cache in caches] == [(4, 16, 2, 4)] * 3
    assert built.kv_bytes_per_block(16) * 4 == sum(cache.nbytes for cache in caches)
    assert all(layer.kv_cache is cache for layer, cache in zip(built.attention_layers, caches, strict=True))
    batch = ForwardBatch(
        token_ids=torch.tensor([3, 4]),
        positions=torch.tensor([0, 1]),
        rope_lens=torch.tensor([1, 2]),
        query_start=torch.tensor([0, 2], dtype=torch.int32),
        seq_lens=torch.tensor([2], dtype=torch.int32),
        slot_mapping=torch.tensor([16, 17]),
        block_tables=torch.tensor([[1]], dtype=torch.int32),
        logits_rows=torch.tensor([1]),
        query_lens=[2],
        context_lens=[2],
        num_decode_rows=0,
        block_size=16,
    )
    batch.attention = TorchPagedAttention().prepare(batch)
    with torch.inference_mode():
        x = model.embed(batch)
        for layer in model.layers:
            x = layer(x, batch)
        logits = model.logits(model.finish(x[batch.logits_rows]))
    # every layer doubles x: 8 inputs of equal value times weights of 1/8
    assert logits.tolist() == [[8 * 1.0 * 0.125] * 11]


def test_blocks_are_copied_by_the_bound_op() -> None:
    seen: list[tuple[int, ...]] = []

    def copy_blocks(cache: Tensor, sources: Tensor, destinations: Tensor) -> Tensor:
        seen.append((*sources.tolist(), *destinations.tolist()))
        return cache

    settings = make_settings("float32")
    known = [
        *(Registration(spec, "core", "quire-core", "0") for spec in core_op_specs()),
        Registration(OpImplSpec("copy_blocks", "noted", copy_blocks, lambda *_: None, 9), "x", "x", "0"),
    ]
    ops = OpTable(known, CPU, "float32", lambda reference, entry: resolve_factory(reference, entry))
    built = build_model(ToyModel, ToyConfig(), replace(settings, ops=ops), fill_with(0.5, []))
    caches = built.allocate_kv_caches(4, 16)
    settings.attention_backend.copy_blocks(caches, torch.tensor([1]), torch.tensor([3]))
    assert seen == [(1, 3)] * 3


def test_refuses_what_is_no_model() -> None:
    class Hollow(ToyModel):
        def __new__(cls, *args: object) -> object:
            return nn.Linear(1, 1)

    with pytest.raises(UnsupportedModelError, match="made a Linear"):
        build_model(Hollow, ToyConfig(), make_settings("float32"), fill_with(0.0, []))


def test_detects_the_cpu() -> None:
    found = detect_device("cpu")
    assert found.type == "cpu" and found.num_threads == torch.get_num_threads()
    assert 0 < found.free_memory_bytes <= found.total_memory_bytes
    assert found.capabilities and found.name


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cpu:0", "cuda:", ""])
def test_unknown_devices(name: str) -> None:
    with pytest.raises(DeviceError, match="give auto, cpu, cuda or cuda:N"):
        detect_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_absent_gpus() -> None:
    assert detect_device("auto").type == "cpu"
    with pytest.raises(DeviceError, match="sees no GPU"):
        detect_device("cuda:1")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"memory.max": "1000", "memory.current": "600", "memory.stat": "inactive_file 100\n"}, (1000, 500)),
        ({"memory.max": "max", "memory.current": "600"}, None),
        ({"memory/memory.limit_in_bytes": "1000", "memory/memory.usage_in_bytes": "7"}, (1000, 7)),
        ({"memory/memory.limit_in_bytes": str(2**63 - 4096), "memory/memory.usage_in_bytes": "7"}, None),
        ({}, None),
    ],
)
def test_control_groups(tmp_path: Path, files: dict[str, str], expected: tuple[int, int] | None) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert device_module._cgroup_limit(tmp_path) == expected
