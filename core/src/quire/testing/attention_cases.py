"""A paged KV cache of several requests that grow step by step, and their attention, naively, in float64."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from quire.api.batch import ForwardBatch, KVCacheDTypeName
from quire.api.protocols import AttentionBackend, AttentionParams
from quire.ops.quantized_kv import KV_FORMATS
from quire.testing.conformance import require

Rows = Sequence[tuple[str, int]]
"""Rows of a step: which request, and how many new tokens."""

NAN = float("nan")


@dataclass(frozen=True)
class CacheShape:
    """What a simulated KV cache looks like.

    Attributes:
        is_fused: query, key and value are views of one tensor, as a fused product leaves them.
        is_exact: keys and values that a quantized cache keeps as they are; False: as they come.
    """

    block_size: int = 4
    num_blocks: int = 64
    dtype: torch.dtype = torch.float64
    is_fused: bool = True
    is_exact: bool = True


@dataclass
class PagedRequest:
    """A request's blocks and tokens so far, and per layer their keys and values, [N, K, D].

    Attributes:
        prefix: None, or the request whose first so many tokens (whole blocks) are this one's too.
    """

    keys: list[Tensor]
    values: list[Tensor]
    blocks: list[int] = field(default_factory=list)
    num_tokens: int = 0
    prefix: tuple[str, int] | None = None


@dataclass(frozen=True)
class StepTensors:
    """One layer's tensors of a step."""

    query: Tensor
    key: Tensor
    value: Tensor


class PagedSimulation:
    """Plays the engine for an attention backend: blocks in random order, the cache NaN until written.

    Each layer has its own cache and constants; one `prepare` serves all of them.
    """

    def __init__(
        self,
        backend: AttentionBackend,
        layers: Sequence[AttentionParams],
        shape: CacheShape,
        seed: int = 0,
    ) -> None:
        self.backend, self.layers, self.shape = backend, list(layers), shape
        self.random = torch.Generator().manual_seed(seed)
        self.requests: dict[str, PagedRequest] = {}
        self.caches = [self._poisoned_cache(layer) for layer in layers]
        ends = [0, shape.num_blocks - 1]  # where padding lands by mistake: taken first
        order = torch.randperm(shape.num_blocks, generator=self.random).tolist()
        self.free = ends + [block for block in order if block not in ends]

    def step(
        self,
        rows: Rows,
        *,
        shared: Mapping[str, tuple[str, int]] | None = None,
        sick: Sequence[str] = (),
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Run a step of every layer.

        Args:
            rows: requests and numbers of their new tokens; unknown names begin. Sorted: one token first.
            shared: for a new request, whose first so many tokens (whole blocks) it shares; that one may
                write them in this very step.
            sick: requests whose new values are NaN.

        Returns:
            Per layer what the backend gave and what is right, [T, H * D].
        """
        rows = sorted(rows, key=lambda row: row[1] != 1)
        for name, _ in sorted(rows, key=lambda row: row[0] in (shared or {})):
            if name not in self.requests:
                self._begin(name, (shared or {}).get(name))
                self._take_blocks(name, dict(rows)[name])
        batch = self._batch(rows)
        batch.attention = self.backend.prepare(batch)
        found, expected = [], []
        with torch.inference_mode():
            for index, (layer, cache) in enumerate(zip(self.layers, self.caches, strict=True)):
                tensors = self._grow(rows, index, layer, sick)
                kept = [x.clone() for x in (tensors.query, tensors.key, tensors.value)]
                result = self.backend.forward(tensors.query, tensors.key, tensors.value, cache, layer, batch)
                found.append(result.clone())
                expected.append(self._oracle(rows, index, layer, kept[0]))
                for before, after in zip(kept, (tensors.query, tensors.key, tensors.value), strict=True):
                    require(
                        torch.equal(before.nan_to_num(7.0), after.nan_to_num(7.0)),
                        "forward changed its query, key or value: they belong to the caller",
                    )
        return found, expected

    def free_request(self, name: str) -> list[int]:
        """Forget a request; its blocks are taken by the next one."""
        blocks = self.requests.pop(name).blocks
        self.free = blocks + self.free
        return blocks

    def fork(self, parent: str, child: str) -> None:
        """Give a new request copies of all blocks of another, by `copy_blocks`."""
        source = self.requests[parent]
        blocks = [self.free.pop(0) for _ in source.blocks]
        ids = torch.tensor([source.blocks, blocks])
        self.backend.copy_blocks(self.caches, ids[0], ids[1])
        self.requests[child] = PagedRequest(list(source.keys), list(source.values), blocks, source.num_tokens)

    def _poisoned_cache(self, layer: AttentionParams) -> Tensor:
        """NaN; of a quantized cache all bytes are 255: a NaN in float32 and in e4m3, and so int8's scale is one."""
        shape = self.backend.kv_cache_shape(self.shape.num_blocks, self.shape.block_size, layer)
        if layer.kv_cache_dtype != "auto":
            return torch.full(shape, 255, dtype=torch.uint8)
        return torch.full(shape, NAN, dtype=self.shape.dtype)

    def _begin(self, name: str, prefix: tuple[str, int] | None) -> None:
        empty = [
            torch.empty(0, layer.num_kv_heads, layer.head_size, dtype=self.shape.dtype)
            for layer in self.layers
        ]
        request = self.requests[name] = PagedRequest(list(empty), list(empty), prefix=prefix)
        if prefix is not None:
            owner, count = prefix
            request.blocks = self.requests[owner].blocks[: count // self.shape.block_size]
            request.num_tokens = count

    def _take_blocks(self, name: str, count: int) -> None:
        request = self.requests[name]
        while len(request.blocks) * self.shape.block_size < request.num_tokens + count:
            request.blocks.append(self.free.pop(0))

    def _batch(self, rows: Rows) -> ForwardBatch:
        size = self.shape.block_size
        positions, slots, contexts, counts = list[int](), list[int](), list[int](), list[int]()
        for name, count in rows:
            request = self.requests[name]
            start = request.num_tokens
            self._take_blocks(name, count)
            request.num_tokens = start + count
            span = range(start, start + count)
            positions += span
            slots += [request.blocks[p // size] * size + p % size for p in span]
            contexts.append(start + count)
            counts.append(count)
        width = max(-(-context // size) for context in contexts) + 1
        tables = torch.randint(
            0, self.shape.num_blocks, (len(rows), width), generator=self.random, dtype=torch.int32
        )
        for index, (name, _) in enumerate(rows):
            blocks = self.requests[name].blocks[:width]
            tables[index, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
        starts = [0, *itertools.accumulate(counts)]
        return ForwardBatch(
            token_ids=torch.zeros(starts[-1], dtype=torch.int64),
            positions=torch.tensor(positions),
            rope_lens=torch.tensor(positions) + 1,
            query_start=torch.tensor(starts, dtype=torch.int32),
            seq_lens=torch.tensor(contexts, dtype=torch.int32),
            slot_mapping=torch.tensor(slots),
            block_tables=tables,
            logits_rows=torch.tensor(starts[1:]) - 1,
            query_lens=counts,
            context_lens=contexts,
            num_decode_rows=counts.count(1),
            block_size=size,
        )

    def _grow(self, rows: Rows, index: int, layer: AttentionParams, sick: Sequence[str]) -> StepTensors:
        """Draw the new tokens' queries, keys and values of a layer, and append them to their requests."""
        total = sum(count for _, count in rows)
        heads, kv_heads = layer.num_heads, layer.num_kv_heads
        width = heads + 2 * kv_heads
        fused = torch.randn((total, width, layer.head_size), generator=self.random, dtype=torch.float64)
        if layer.kv_cache_dtype != "auto" and self.shape.is_exact:
            fused[:, heads:] = representable(fused[:, heads:], layer.kv_cache_dtype)
            fused[:1, heads] = 0.0  # a head of zeros has no largest magnitude to divide by
        fused = fused.to(self.shape.dtype)
        query, key, value = torch.split(fused, [heads, kv_heads, kv_heads], dim=1)
        start = 0
        for name, count in rows:
            if name in sick:
                value[start : start + count] = NAN
            request = self.requests[name]
            request.keys[index] = torch.cat((request.keys[index], key[start : start + count]))
            request.values[index] = torch.cat((request.values[index], value[start : start + count]))
            start += count
        for name, _ in rows:
            self._adopt_prefix(self.requests[name], index)
        if not self.shape.is_fused:
            query, key, value = query.clone(), key.clone(), value.clone()
        return StepTensors(query, key, value)

    def _adopt_prefix(self, request: PagedRequest, index: int) -> None:
        """Put the shared tokens, which their owner has by now, before a request's own."""
        if request.prefix is None or len(request.keys[index]) == request.num_tokens:
            return
        owner, count = self.requests[request.prefix[0]], request.prefix[1]
        request.keys[index] = torch.cat((owner.keys[index][:count], request.keys[index]))
        request.values[index] = torch.cat((owner.values[index][:count], request.values[index]))

    def _oracle(self, rows: Rows, index: int, layer: AttentionParams, query: Tensor) -> Tensor:
        outputs, start = [], 0
        for name, count in rows:
            request = self.requests[name]
            outputs.append(
                attend_naively(
                    query[start : start + count], request.keys[index], request.values[index], layer
                )
            )
            start += count
        return torch.cat(outputs)


def representable(x: Tensor, kv_cache_dtype: KVCacheDTypeName) -> Tensor:
    """Nearby heads [..., D] that a quantized cache keeps as they are: scales are powers of 2, different ones."""
    kv_format = KV_FORMATS[kv_cache_dtype]
    largest, where = x.abs().max(-1, keepdim=True)
    scales = torch.exp2((largest / kv_format.top).log2().ceil())
    wide = x / scales
    kept = wide.to(kv_format.element).to(x.dtype) if kv_format.element.is_floating_point else wide.round()
    return kept.scatter(-1, where, x.gather(-1, where).sign() * kv_format.top) * scales


def attend_naively(query: Tensor, keys: Tensor, values: Tensor, params: AttentionParams) -> Tensor:
    """[Q, H * D] in float64: the last Q tokens' attention over a context [L, K, D] that ends with them."""
    count, length = query.shape[0], keys.shape[0]
    repeats = params.num_heads // params.num_kv_heads
    keys = keys.double().repeat_interleave(repeats, dim=1)
    values = values.double().repeat_interleave(repeats, dim=1)
    scores = torch.einsum("qhd,lhd->hql", query.double(), keys) * params.scale
    if params.logit_cap is not None:
        scores = params.logit_cap * torch.tanh(scores / params.logit_cap)
    key_positions = torch.arange(length)
    query_positions = torch.arange(length - count, length)
    distances = key_positions[None] - query_positions[:, None]  # [Q, L], 0 and below where visible
    if params.alibi_slopes is not None:
        scores += torch.tensor(params.alibi_slopes, dtype=torch.float64)[:, None, None] * distances
    visible = distances <= 0
    if params.window is not None:
        visible &= distances > -params.window
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    # what is not visible must not count, whatever it is: 0 * NaN is NaN
    outputs = [torch.einsum("hl,lhd->hd", weights[:, i, row], values[row]) for i, row in enumerate(visible)]
    return torch.stack(outputs).flatten(1) if outputs else torch.empty(0, params.num_heads * params.head_size)
