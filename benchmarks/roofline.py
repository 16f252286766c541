"""What the machine could do at best: its limits, measured, and the least time that a workload needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch

from quire.ops.weight_memory import empty_weight
from shapes import Shape
from workloads import Job

BUFFER_BYTES = 512 * 2**20


@dataclass(slots=True, frozen=True)
class MachineLimits:
    """Measured in the same run as the workload.

    Attributes:
        read_bytes_per_s: summing a big buffer. triad_bytes_per_s: c = a + 3 b over big buffers.
        flops_per_s: a big bfloat16 matrix product.
    """

    read_bytes_per_s: float
    triad_bytes_per_s: float
    flops_per_s: float

    @property
    def bytes_per_s(self) -> float:
        """The better of the two bandwidths."""
        return max(self.read_bytes_per_s, self.triad_bytes_per_s)

    def least_time_s(self, num_bytes: float, num_flops: float) -> float:
        """The least time of a step that moves and multiplies so much."""
        return max(num_bytes / self.bytes_per_s, num_flops / self.flops_per_s)

    def to_json(self) -> dict[str, float]:
        """For the record."""
        return {key: round(value) for key, value in asdict(self).items()}


def measure_limits(device: str = "cpu") -> MachineLimits:
    """Measure bandwidth and matrix rate of the device; a few seconds."""
    count = BUFFER_BYTES // 4 // 3
    a, b, c = filled_buffers(count, device)
    read_s = best_time(a.sum, device)
    triad_s = best_time(lambda: torch.add(a, b, alpha=3.0, out=c), device)
    size = 2048 if device == "cpu" else 8192
    x = torch.randn(size, size, device=device).bfloat16()
    product_s = best_time(lambda: torch.mm(x, x), device)
    return MachineLimits(4 * count / read_s, 12 * count / triad_s, 2 * size**3 / product_s)


def filled_buffers(count: int, device: str) -> list[torch.Tensor]:
    """Three of float32 [count], on large pages where the host has them: small ones would hide what memory can do."""
    size = torch.Size((count,))
    return [empty_weight(size, torch.float32, torch.device(device)).fill_(value) for value in range(3)]


def best_time(work: Callable[[], object], device: str, seconds: float = 1.0) -> float:
    """Of runs for so long: cores that slept are slow for a while, and the first tenths of a second say little."""
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        now = time.perf_counter()
        best = min(best, now - start)
        if now >= end:
            return best


@dataclass(slots=True)
class StepCost:
    """Bytes and operations of one step of a shape; the weights are read once a step."""

    shape: Shape
    num_tokens: int = 0
    num_sampled: int = 0
    context_tokens: int = 0
    attention_pairs: float = 0.0

    def add(self, start: int, num_tokens: int, *, is_sampled: bool = True, shared: int = 0) -> None:
        """A request computes `num_tokens` after `start` known ones; `shared` of these are read by another."""
        self.num_tokens += num_tokens
        self.num_sampled += is_sampled
        self.context_tokens += start - shared
        end = start + num_tokens
        self.attention_pairs += (end * (end + 1) - start * (start + 1)) / 2

    @property
    def num_bytes(self) -> float:
        """Weights and context KV in, in bfloat16."""
        weights = 2 * (self.shape.linear_params + self.shape.head_params)
        return weights + self.context_tokens * self.shape.kv_bytes_per_token

    @property
    def num_flops(self) -> float:
        """Linears per token, output projection per sampled token, attention per pair of tokens."""
        linears = 2.0 * self.num_tokens * self.shape.linear_params
        head = 2.0 * self.num_sampled * self.shape.head_params
        attention = 4.0 * self.attention_pairs * self.shape.layers * self.shape.heads * self.shape.head_size
        return linears + head + attention


def least_time_s(shape: Shape, jobs: Sequence[Job], limits: MachineLimits, shared_prefix: int = 0) -> float:
    """The least time of a workload: everything prefilled in one step, then all decoded together.

    Args:
        shared_prefix: leading tokens that all jobs share: computed once, and read once a step.
    """
    prefill = StepCost(shape)
    if shared_prefix:
        prefill.add(0, shared_prefix, is_sampled=False)
    for job in jobs:
        prefill.add(shared_prefix, len(job.prompt) - shared_prefix, shared=shared_prefix)
    total = limits.least_time_s(prefill.num_bytes, prefill.num_flops)
    for index in range(1, max(job.num_outputs for job in jobs)):
        step = StepCost(shape, context_tokens=shared_prefix)
        for job in jobs:
            if index < job.num_outputs:
                step.add(len(job.prompt) + index - 1, 1, shared=shared_prefix)
        total += limits.least_time_s(step.num_bytes, step.num_flops)
    return total
