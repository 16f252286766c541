"""Small ops on a GPU beside plain torch, and how near linears of 16-bit weights are to the limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gpu_timing import DISTINCT_BYTES, Deadline, Record, Timer, Work, fraction
from quire.api.batch import DeviceInfo
from quire.execution.device import detect_device
from quire.ops.table import OpTable
from quire.plugins import PluginHost, resolve_factory
from roofline import MachineLimits

LAYERS = {
    "query, key and value": (4096, 6144),
    "attention output": (4096, 4096),
    "gate and up": (4096, 28672),
    "down": (14336, 4096),
    "head": (4096, 128256),
}
"""Inputs and outputs of the fused layers of Llama-3-8B."""
LINEAR_ROWS = (1, 16, 256, 2048)
SMALL_ROWS = (1, 256, 8192)


def measure_small_ops(
    timer: Timer, limits: MachineLimits, deadline: Deadline, *, is_quick: bool
) -> Iterator[Record]:
    """Norm, rotation and gated activation of Llama-3-8B's sizes, beside plain torch; limit: the bytes moved."""
    ops = _op_table(detect_device(timer.device))
    for rows in (2, 8) if is_quick else SMALL_ROWS:
        if deadline.left_s < 2:
            yield {"case": f"{rows} rows", "skipped": "no time left"}
            continue
        for name, pair in _small_ops(rows, timer.device, ops, is_quick=is_quick).items():
            yield _beside_torch(f"{name}, {rows} rows", pair, timer, limits)


@dataclass(slots=True, frozen=True)
class OpPair:
    """An op of ours and the same in plain torch, and the bytes that they must move."""

    num_bytes: int
    ours: Work
    torchs: Work


def _small_ops(rows: int, device: str, ops: OpTable, *, is_quick: bool) -> dict[str, OpPair]:
    hidden, wide, heads, kv_heads, size = (64, 128, 4, 2, 32) if is_quick else (4096, 14336, 32, 8, 128)

    def make(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=torch.bfloat16)

    x, weight, gated = make(rows, hidden), make(hidden), make(rows, 2 * wide)
    query, key = make(rows, heads, size), make(rows, kv_heads, size)
    cos, sin = make(rows, size // 2), make(rows, size // 2)
    return {
        "rms_norm": OpPair(
            4 * x.numel(),
            lambda: ops.rms_norm(x, weight, 1e-6),
            lambda: F.rms_norm(x, [hidden], weight, 1e-6),
        ),
        "silu_and_mul": OpPair(
            3 * gated.numel(),
            lambda: ops.silu_and_mul(gated),
            lambda: F.silu(gated[:, :wide]) * gated[:, wide:],
        ),
        "rotary": OpPair(
            4 * (query.numel() + key.numel()) + 4 * cos.numel(),
            lambda: ops.rotary(query, key, cos, sin, False),
            lambda: _torch_rotary(query, key, cos, sin),
        ),
    }


def measure_linears(
    timer: Timer, limits: MachineLimits, deadline: Deadline, *, is_quick: bool
) -> Iterator[Record]:
    """Products of 16-bit weights, by cuBLAS, which the engine uses: how near they are to the limit."""
    layers = {"tiny": (64, 128)} if is_quick else LAYERS
    for layer, (inputs, outputs) in layers.items():
        weight_bytes = 2 * inputs * outputs
        copies = 2 if is_quick else max(1, -(-DISTINCT_BYTES // weight_bytes))
        weights = [
            torch.randn(outputs, inputs, device=timer.device, dtype=torch.bfloat16) for _ in range(copies)
        ]
        for rows in (1, 4) if is_quick else LINEAR_ROWS:
            if deadline.left_s < 2:
                yield {"case": f"{layer}, {rows} rows", "skipped": "no time left"}
                continue
            x = torch.randn(rows, inputs, device=timer.device, dtype=torch.bfloat16)
            seconds = timer.median_s(_products(x, weights)) / copies
            num_bytes = weight_bytes + 2 * rows * (inputs + outputs)
            floor_s = limits.least_time_s(num_bytes, 2.0 * rows * inputs * outputs)
            yield {
                "case": f"{layer}, {rows} rows",
                "seconds": seconds,
                "limit_s": floor_s,
                "fraction": fraction(floor_s, seconds),
            }


def _products(x: Tensor, weights: Sequence[Tensor]) -> Work:
    def run() -> None:
        for weight in weights:
            F.linear(x, weight)

    return run


def _beside_torch(case: str, pair: OpPair, timer: Timer, limits: MachineLimits) -> Record:
    seconds, torch_s = timer.median_s(pair.ours), timer.median_s(pair.torchs)
    floor_s = pair.num_bytes / limits.bytes_per_s
    return {
        "case": case,
        "seconds": seconds,
        "limit_s": floor_s,
        "fraction": fraction(floor_s, seconds),
        "torch_s": torch_s,
        "times_as_fast_as_torch": fraction(torch_s, seconds),
    }


def _torch_rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> None:
    for x in (query, key):
        first, second = x.chunk(2, -1)
        turned = torch.cat((-second, first), -1)
        twice = [torch.cat((part, part), -1)[:, None] for part in (cos, sin)]
        x.copy_(x * twice[0] + turned * twice[1])


def _op_table(device: DeviceInfo) -> OpTable:
    host = PluginHost.discover()
    registrations = [*host.ops.registrations(), *host.op_impls.registrations()]
    return OpTable(registrations, device, "bfloat16", resolve_factory)
