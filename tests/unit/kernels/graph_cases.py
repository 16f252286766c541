"""A tiny model with captured steps, and an attention backend on the CPU that can be captured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from run_again_graphs import RunAgainGraphs
from torch import Tensor, nn

from quire.api.batch import DeviceInfo, ForwardBatch
from quire.api.protocols import AttentionBackend, AttentionParams
from quire.api.request import SamplingParams
from quire.api.specs import Registration
from quire.api.step import BlockTableUpdate, PlanRow, SlotAssignment, StepPlan
from quire.execution.batch_builder import BatchBuilder, BatchLimits
from quire.execution.capture import Captured, SampleSteps, StepCaptures
from quire.execution.forward import ModelPass, run_layers
from quire.execution.graph_device import GraphDevice
from quire.execution.graphs import CudaGraphCapture
from quire.nn.attention import Attention
from quire.ops.paged_attention import TorchPagedAttention
from quire.plugins.builtin import quire_register_step_captures

VOCAB_SIZE = 19
BLOCK_SIZE = 4
NUM_BLOCKS = 60


@torch.library.custom_op("quire_graph_tests::attend", mutates_args=("cache", "out"))
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cache: Tensor,
    out: Tensor,
    slots: Tensor,
    query_start: Tensor,
    seq_lens: Tensor,
    tables: Tensor,
    scale: float,
) -> None:
    """Paged attention that learns all lengths from its tensors when it runs, as kernels do."""
    flat, num_kv_heads = cache.view(-1, cache.shape[2], cache.shape[3]), key.shape[1]
    repeats, block_size = query.shape[1] // num_kv_heads, cache.shape[1]
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            flat[slot] = torch.cat((key[token], value[token]))
    for row, context in enumerate(seq_lens.tolist()):
        start, stop = query_start[row : row + 2].tolist()
        for token in range(start, stop if context else start):
            places = [
                int(tables[row, p // block_size]) * block_size + p % block_size
                for p in range(context - stop + token + 1)
            ]
            keys, values = flat[places].repeat_interleave(repeats, 1).chunk(2, 1)
            scores = torch.einsum("hd,phd->hp", query[token], keys) * scale
            out[token] = torch.einsum("hp,phd->hd", scores.softmax(-1), values)


class DevicePaged(TorchPagedAttention):
    """Its launches depend on nothing but sizes."""

    name = "device-paged"

    def prepare(self, batch: ForwardBatch) -> Any:
        return batch.seq_lens

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        params: AttentionParams,
        batch: ForwardBatch,
    ) -> Tensor:
        out = torch.full(query.shape, float("nan"))  # as fresh memory may be
        slots, lengths = self.slots(batch), batch.attention
        assert isinstance(lengths, Tensor)
        parts = (query, key, value, kv_cache, out, slots, batch.query_start, lengths, batch.block_tables)
        attend(*parts, params.scale)
        return out.view(query.shape[0], -1)

    def slots(self, batch: ForwardBatch) -> Tensor:
        return batch.slot_mapping


class TinyLayer(nn.Module):
    """Attention and a product, with a residual."""

    def __init__(self, params: AttentionParams, backend: AttentionBackend, width: int) -> None:
        super().__init__()
        heads = params.num_heads, params.num_kv_heads, params.num_kv_heads
        self.widths = [count * params.head_size for count in heads]
        self.qkv = nn.Linear(width, sum(self.widths))
        self.attention = Attention(params, backend)
        self.out = nn.Linear(self.widths[0], width)

    def forward(self, x: Tensor, batch: ForwardBatch) -> Tensor:
        query, key, value = self.qkv(x).split(self.widths, -1)
        return x + batch.scratch["positions"] + self.out(self.attention(query, key, value, batch)).tanh()


class TinyModel(nn.Module):
    """Layers to which tokens and positions are added, those from what the layers of a step share."""

    def __init__(self, params: AttentionParams, backends: Sequence[AttentionBackend]) -> None:
        super().__init__()
        width = 12
        self.tokens, self.positions = nn.Embedding(VOCAB_SIZE, width), nn.Embedding(NUM_BLOCKS * 4, width)
        self.layers = nn.ModuleList(TinyLayer(params, backend, width) for backend in backends)
        self.head = nn.Linear(width, VOCAB_SIZE)

    def embed(self, batch: ForwardBatch) -> Tensor:
        if "positions" not in batch.scratch:
            batch.scratch["positions"] = self.positions(batch.positions)
        return self.tokens(batch.token_ids)

    def finish(self, hidden: Tensor) -> Tensor:
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)


@dataclass
class Rig:
    """A model, its batches, and what became of capturing it."""

    model: TinyModel
    backend: AttentionBackend
    builder: BatchBuilder
    captured: Captured
    devices: list[Any]
    caches: list[Tensor]
    owned: list[int] = field(default_factory=list)

    @property
    def graphs(self) -> Any:
        """Of the device."""
        (graphs,) = self.devices
        return graphs

    @property
    def steps(self) -> Any:
        """Captured; fails where they are not."""
        assert self.captured.steps is not None, self.captured.summary
        return self.captured.steps

    @property
    def model_pass(self) -> ModelPass:
        """With the captured steps."""
        return ModelPass(self.model, self.steps)

    def batch(self, rows: Sequence[tuple[int, int]], *, seed: int = 0, drafts: int = 0) -> ForwardBatch:
        """A step of rows (tokens, context); other slots than their earlier contexts' are NaN in the caches."""
        random = torch.Generator().manual_seed(seed)
        order = torch.randperm(NUM_BLOCKS, generator=random).tolist()
        for cache in self.caches:
            cache.fill_(float("nan"))
        plan_rows = []
        for slot, (length, context) in enumerate(rows):
            ids = torch.randint(VOCAB_SIZE, (context,), generator=random).tolist()
            params = SamplingParams(temperature=0.0, max_tokens=None)
            self.builder.assign(SlotAssignment(slot, str(slot), ids, context, params, 0, frozenset()))
            blocks = [order.pop() for _ in range(-(-context // BLOCK_SIZE))]
            self.builder.apply(StepPlan(0, [], [BlockTableUpdate(slot, 0, blocks)], [], []))
            for position in range(context - length):
                for cache in self.caches:
                    place = cache[blocks[position // BLOCK_SIZE], position % BLOCK_SIZE]
                    place.copy_(torch.randn(place.shape, generator=random))
            num_drafts = drafts if length > drafts else 0
            plan_rows.append(PlanRow(slot, context - length, length, is_sampled=True, num_drafts=num_drafts))
        built = self.builder.build(StepPlan(0, [], [], [], plan_rows))
        self.owned = built.slot_mapping.tolist()
        built.batch.attention = self.backend.prepare(built.batch)
        return built.batch

    def check(self, batch: ForwardBatch) -> None:
        """Replayed, a step is the plain one, and writes its own slots and no others."""
        before = [cache.clone() for cache in self.caches]
        replays = self.graphs.num_replays
        hidden = self.steps.layers(batch)
        assert hidden is not None and self.graphs.num_replays == replays + 1
        hidden, after = hidden.clone(), [cache.clone() for cache in self.caches]
        for cache, old in zip(self.caches, before, strict=True):
            cache.copy_(old)
        expected = run_layers(self.model, batch)
        assert expected.isfinite().all()
        torch.testing.assert_close(hidden, expected, atol=1e-6, rtol=1e-5)
        for cache, old, new in zip(self.caches, before, after, strict=True):
            flat = [x.view(NUM_BLOCKS * BLOCK_SIZE, -1).cpu() for x in (cache, old, new)]
            torch.testing.assert_close(flat[2][self.owned], flat[0][self.owned], atol=1e-6, rtol=1e-5)
            others = [slot for slot in range(NUM_BLOCKS * BLOCK_SIZE) if slot not in self.owned]
            assert torch.equal(flat[2][others].view(torch.int32), flat[1][others].view(torch.int32))


def make_rig(
    backends: Sequence[AttentionBackend],
    params: AttentionParams,
    *,
    max_num_seqs: int = 10,
    max_drafts: int = 0,
    device: str = "cpu",
    make_graphs: Callable[[torch.device], GraphDevice] = RunAgainGraphs,
) -> Rig:
    """Capture a tiny model's steps, as an engine does at its start."""
    torch.manual_seed(0)
    model = TinyModel(params, backends).to(device).eval()
    caches = []
    for layer, backend in zip(model.layers, backends, strict=True):
        shape = backend.kv_cache_shape(NUM_BLOCKS, BLOCK_SIZE, params)
        caches.append(torch.zeros(shape, device=device))
        layer.attention.bind_kv_cache(caches[-1])
    limits = BatchLimits(max_num_seqs, 64, 48, BLOCK_SIZE, max_drafts)
    builder = BatchBuilder(limits, torch.device(device))
    samples = SampleSteps(builder, limits, NUM_BLOCKS, backends[0], VOCAB_SIZE)
    made: list[GraphDevice] = []

    def make(where: torch.device) -> GraphDevice:
        made.append(make_graphs(where))
        return made[-1]

    specs = [Registration(spec, "core", "quire-core", "1") for spec in quire_register_step_captures()]
    captures = StepCaptures(
        specs, lambda factory, entry: lambda: CudaGraphCapture(make), DeviceInfo("cuda"), "float32"
    )
    with torch.inference_mode():
        captured = captures.record(model, samples, limits)
    return Rig(model, backends[0], builder, captured, made, caches)
