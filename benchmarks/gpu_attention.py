"""Attention over KV blocks on a GPU, beside what torch has over plain tensors: SDPA and FlexAttention."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gpu_timing import DISTINCT_BYTES, Deadline, Record, Timer, Work, each_once, fraction
from quire.api.batch import ForwardBatch
from quire.api.protocols import AttentionBackend, AttentionParams
from roofline import MachineLimits

BLOCK_SIZE = 16
MAX_DIFFERENCE = 0.03
"""Of results in bfloat16 from SDPA's; the values are normally distributed."""


@dataclass(slots=True, frozen=True)
class AttentionCase:
    """Requests alike: each has `context` tokens after the step, of which the last `num_new` are new."""

    count: int
    context: int
    num_new: int

    def __str__(self) -> str:
        kind = "decode" if self.num_new == 1 else "prefill"
        return f"{kind}, {self.count} x {self.context}"


ATTENTION_CASES = (
    AttentionCase(1, 1024, 1),
    AttentionCase(32, 1024, 1),
    AttentionCase(256, 1024, 1),
    AttentionCase(1, 8192, 1),
    AttentionCase(32, 8192, 1),
    AttentionCase(1, 8192, 8192),
    AttentionCase(8, 1024, 1024),
)
QUICK_ATTENTION_CASES = (AttentionCase(2, 64, 1), AttentionCase(1, 48, 48))


class PagedCase:
    """One layer's tensors of a case: the same keys and values in blocks, for us, and side by side, for others.

    Attributes:
        query: [T, H, D]. keys, values: [R, K, L, D], contiguous.
    """

    def __init__(
        self, case: AttentionCase, backend: AttentionBackend, params: AttentionParams, device: str
    ) -> None:
        count, context, num_new = case.count, case.context, case.num_new
        shape = (count, params.num_kv_heads, context, params.head_size)
        self.case, self.params, self.backend = case, params, backend
        self.query = torch.randn(
            count * num_new, params.num_heads, params.head_size, device=device, dtype=torch.bfloat16
        )
        self.keys, self.values = (torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(2))
        self.batch = _batch(case, device)
        num_blocks = count * -(-context // BLOCK_SIZE)
        self.cache = torch.empty(
            backend.kv_cache_shape(num_blocks, BLOCK_SIZE, params), device=device, dtype=torch.bfloat16
        )
        new = slice(context - num_new, None)
        self._key, self._value = (_by_token(x[:, :, new]) for x in (self.keys, self.values))
        self._fill()
        self.batch.attention = backend.prepare(self.batch)

    def ours(self) -> Tensor:
        """[T, H * D]; writes the step's keys and values, too, as a step does."""
        return self.backend.forward(self.query, self._key, self._value, self.cache, self.params, self.batch)

    def sdpa(self) -> Tensor:
        """[R, H, Q, D], by torch over keys and values that lie side by side."""
        return F.scaled_dot_product_attention(
            self.by_request(), self.keys, self.values, is_causal=self.case.num_new > 1, enable_gqa=True
        )

    def by_request(self) -> Tensor:
        """The query, [R, H, Q, D]."""
        return self.query.view(self.case.count, self.case.num_new, *self.query.shape[1:]).transpose(1, 2)

    def difference(self) -> float:
        """The largest difference between ours and SDPA's."""
        expected = self.sdpa().transpose(1, 2).reshape(self.query.shape[0], -1)
        return float((self.ours().float() - expected.float()).abs().max())

    def _fill(self) -> None:
        """Put all keys and values where the block tables say."""
        tables = self.batch.block_tables.long()  # [R, N]
        padded = tables.shape[1] * BLOCK_SIZE
        both = torch.cat([_heads_last(self.keys, padded), _heads_last(self.values, padded)], dim=2)
        self.cache[tables.flatten()] = both.view(-1, BLOCK_SIZE, *both.shape[2:])


def _heads_last(x: Tensor, padded: int) -> Tensor:
    """[R, K, L, D] to [R, padded, K, D]."""
    return F.pad(x.transpose(1, 2), (0, 0, 0, 0, 0, padded - x.shape[2]))


def _by_token(x: Tensor) -> Tensor:
    """[R, K, Q, D] to [T, K, D]."""
    return x.transpose(1, 2).flatten(0, 1)


def _batch(case: AttentionCase, device: str) -> ForwardBatch:
    """The step, with blocks in random order."""
    count, context, num_new = case.count, case.context, case.num_new
    blocks_each = -(-context // BLOCK_SIZE)
    order = random.Random(0).sample(range(count * blocks_each), count * blocks_each)
    tables = torch.tensor(order, dtype=torch.int32, device=device).view(count, blocks_each)
    positions = torch.arange(context - num_new, context, device=device).repeat(count)
    rows = torch.arange(count, device=device).repeat_interleave(num_new)
    slots = tables[rows, positions // BLOCK_SIZE].long() * BLOCK_SIZE + positions % BLOCK_SIZE
    return ForwardBatch(
        token_ids=torch.zeros_like(positions),
        positions=positions,
        rope_lens=positions + 1,
        query_start=torch.arange(0, count * num_new + 1, num_new, dtype=torch.int32, device=device),
        seq_lens=torch.full((count,), context, dtype=torch.int32, device=device),
        slot_mapping=slots,
        block_tables=tables,
        logits_rows=torch.arange(num_new - 1, count * num_new, num_new, device=device),
        query_lens=[num_new] * count,
        context_lens=[context] * count,
        num_decode_rows=count if num_new == 1 else 0,
        block_size=BLOCK_SIZE,
    )


def measure_attention(
    timer: Timer, limits: MachineLimits, deadline: Deadline, *, is_quick: bool
) -> Iterator[Record]:
    """Attention of Llama-3-8B's layer over KV blocks, beside SDPA; then FlexAttention, which takes long to compile."""
    heads, kv_heads, size = (4, 2, 32) if is_quick else (32, 8, 128)
    params = AttentionParams(heads, kv_heads, size, scale=size**-0.5)
    backend = _backend(timer.device)
    cases = QUICK_ATTENTION_CASES if is_quick else ATTENTION_CASES
    ours_s: dict[AttentionCase, float] = {}
    for case in cases:
        layers = _layers(case, backend, params, timer.device)
        difference = layers[0].difference()
        if not difference <= MAX_DIFFERENCE:
            yield {"case": str(case), "failure": f"differs from SDPA by {difference}"}
            continue
        ours_s[case] = timer.median_s(each_once([layer.ours for layer in layers])) / len(layers)
        floor_s = _floor_s(case, params, limits)
        record: Record = {
            "case": str(case),
            "backend": backend.name,
            "seconds": ours_s[case],
            "limit_s": floor_s,
            "fraction": fraction(floor_s, ours_s[case]),
            "largest_difference": difference,
        }
        yield record | _peer("sdpa", [layer.sdpa for layer in layers], ours_s[case], timer)
    for case, seconds in ours_s.items():
        name = f"FlexAttention: {case}"
        if timer.device == "cpu" or deadline.left_s < 20:
            yield {"case": name, "skipped": "on GPUs only" if timer.device == "cpu" else "no time left"}
            continue
        works = _flex(_layers(case, backend, params, timer.device))
        yield {"case": name, **_peer("flex", works, seconds, timer)}


def _peer(name: str, works: Sequence[Work], ours_s: float, timer: Timer) -> Record:
    """What torch takes for it; why nothing, where it cannot."""
    try:
        seconds = timer.median_s(each_once(works)) / len(works)
    except Exception as error:  # what torch has for it depends on its version and on the device
        return {f"{name}_missing": f"{type(error).__name__}: {error}"[:200]}
    return {f"{name}_s": seconds, f"times_as_fast_as_{name}": fraction(seconds, ours_s)}


def _layers(
    case: AttentionCase, backend: AttentionBackend, params: AttentionParams, device: str
) -> list[PagedCase]:
    """So many of a case that a cache does not hold them."""
    copies = 1 if device == "cpu" else min(64, max(1, DISTINCT_BYTES // _kv_bytes(case, params)))
    return [PagedCase(case, backend, params, device) for _ in range(copies)]


def _kv_bytes(case: AttentionCase, params: AttentionParams) -> int:
    return 4 * case.count * case.context * params.num_kv_heads * params.head_size


def _floor_s(case: AttentionCase, params: AttentionParams, limits: MachineLimits) -> float:
    known = case.context - case.num_new
    pairs = case.count * (case.num_new * known + case.num_new * (case.num_new + 1) / 2)
    return limits.least_time_s(_kv_bytes(case, params), 4.0 * params.num_heads * params.head_size * pairs)


def _flex(layers: Sequence[PagedCase]) -> list[Work]:
    """FlexAttention over plain tensors, compiled; causal where there are several new tokens."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    case, mask = layers[0].case, None
    if case.num_new > 1:
        mask = create_block_mask(
            lambda batch, head, query, key: query >= key,
            None,
            None,
            case.context,
            case.context,
            layers[0].query.device,
        )
    compiled = torch.compile(flex_attention)

    def work(layer: PagedCase) -> Work:
        query = layer.by_request().contiguous()
        return lambda: compiled(query, layer.keys, layer.values, block_mask=mask, enable_gqa=True)

    return [work(layer) for layer in layers]


def _backend(device: str) -> AttentionBackend:
    """The paged backend whose cache lies as `PagedCase` fills it."""
    if device == "cpu":
        from quire.ops.paged_attention import TorchPagedAttention

        return TorchPagedAttention()
    from quire_kernels.paged_attention.triton import TritonPagedAttention

    return TritonPagedAttention()
