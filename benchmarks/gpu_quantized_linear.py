"""Linears with 4- and 8-bit weights on a GPU, for layers of an 8B model: ours, cuBLAS in bfloat16, torch's int4."""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from common import RESULTS, commit
from quire.cli.collect_env import environment
from quire.ops.tiles import TILE
from quire_kernels.w4a16_linear.triton import w4a16_linear
from quire_kernels.w8a16_linear.triton import w8a16_linear
from roofline import MachineLimits

LAYERS = {
    "gate and up": (4096, 28672),
    "down": (14336, 4096),
    "query, key and value": (4096, 6144),
    "attention output": (4096, 4096),
}
"""Inputs and outputs of the fused layers of Llama-3-8B."""
ROWS = (1, 16, 64, 256, 1024)
GROUP = 128
_DISTINCT_BYTES = 512 << 20
"""Weights that one measurement goes through: several times the cache of a large GPU."""

Call = Callable[[Tensor, int], object]
"""Of inputs and the number of a copy of the weights."""


def main() -> int:
    """Measure, print and write; 0 where there is no GPU, too."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--repeats", type=int, default=20, help="the median is reported (default: 20)")
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu-quantized-linear.json")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_quantized_linear: skipped, torch sees no GPU")
        return 0
    limits = _measure_limits(args.repeats)
    print(
        f"{torch.cuda.get_device_name()}: {limits.bytes_per_s / 1e9:.0f} GB/s, {limits.flops_per_s / 1e12:.0f} TFLOP/s"
    )
    results = [
        record
        for layer, (inputs, outputs) in LAYERS.items()
        for rows in args.rows
        for record in measure_layer(layer, inputs, outputs, rows, args.repeats, limits)
    ]
    report = {
        "benchmark": "gpu-quantized-linear",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "settings": {"group": GROUP, "repeats": args.repeats, "device": torch.cuda.get_device_name()},
        "limits": limits.to_json(),
        "results": results,
        "environment": environment(),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written: {args.output}", file=sys.stderr)
    return 0


def measure_layer(
    layer: str, inputs: int, outputs: int, rows: int, repeats: int, limits: MachineLimits
) -> Iterator[dict[str, object]]:
    """Records of all kernels for one layer and number of rows; needs a GPU."""
    x = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16)
    baseline_s = None
    for name, weight_bytes, prepare in _variants(inputs, outputs):
        copies = max(1, -(-_DISTINCT_BYTES // weight_bytes))
        try:
            seconds = _median_s(prepare(copies), x, copies, repeats)
        except RuntimeError as error:  # of torch's int4, which some devices lack
            print(f"{layer:22} {rows:5} rows  {name:12} not here: {str(error)[:80]}")
            continue
        baseline_s = baseline_s or seconds
        num_bytes = weight_bytes + 2 * rows * (inputs + outputs)
        least_s = limits.least_time_s(num_bytes, 2.0 * rows * inputs * outputs)
        print(
            f"{layer:22} {rows:5} rows  {name:12} {seconds * 1e6:8.1f} us  {least_s / seconds:5.2f} of the limit  "
            f"{baseline_s / seconds:5.2f} x cuBLAS"
        )
        yield {
            "layer": layer,
            "inputs": inputs,
            "outputs": outputs,
            "rows": rows,
            "kernel": name,
            "seconds": seconds,
            "fraction_of_limit": round(least_s / seconds, 4),
            "over_cublas": round(baseline_s / seconds, 4),
        }


def _variants(inputs: int, outputs: int) -> Iterator[tuple[str, int, Callable[[int], Call]]]:
    """Name, bytes of weights, and what makes a call with so many copies of them; cuBLAS first."""
    size, groups = inputs * outputs, inputs // GROUP
    yield "cuBLAS bf16", 2 * size, functools.partial(_cublas, inputs=inputs, outputs=outputs)
    for bits in (4, 8):
        num_bytes = size * bits // 8 + 2 * groups * outputs
        yield (
            f"ours w{bits}a16",
            num_bytes,
            functools.partial(_ours, inputs=inputs, outputs=outputs, bits=bits),
        )
    num_bytes = size // 2 + 4 * groups * outputs
    yield "tinygemm int4", num_bytes, functools.partial(_tinygemm, inputs=inputs, outputs=outputs)


def _cublas(copies: int, inputs: int, outputs: int) -> Call:
    weights = [torch.randn(outputs, inputs, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
    return lambda x, copy: torch.nn.functional.linear(x, weights[copy])


def _ours(copies: int, inputs: int, outputs: int, bits: int) -> Call:
    shape = (outputs // TILE, inputs * bits // 32, TILE)
    weights = [_random_words(shape) for _ in range(copies)]
    scales = torch.rand(outputs // TILE, inputs // GROUP, TILE, device="cuda").half()
    linear = w4a16_linear if bits == 4 else w8a16_linear
    return lambda x, copy: linear(x, weights[copy], scales, None, None, None, outputs)


def _tinygemm(copies: int, inputs: int, outputs: int) -> Call:
    """torch's int4 product (16 inputs by 8 outputs a tile, 8 of them along the inputs)."""
    octets = [
        torch.randint(256, (outputs, inputs // 2), device="cuda", dtype=torch.uint8) for _ in range(copies)
    ]
    weights = [torch.ops.aten._convert_weight_to_int4pack(values, 8) for values in octets]
    table = torch.rand(inputs // GROUP, outputs, 2, device="cuda", dtype=torch.bfloat16)
    return lambda x, copy: torch.ops.aten._weight_int4pack_mm(x, weights[copy], GROUP, table)


def _random_words(shape: tuple[int, ...]) -> Tensor:
    return torch.randint(-(2**31), 2**31, shape, device="cuda", dtype=torch.int32)


def _measure_limits(repeats: int) -> MachineLimits:
    """Bandwidth of reading and of a = b + 3 c over buffers of 1 GiB; the rate of a large product."""
    a, b, c = (torch.full((1 << 28,), float(value), device="cuda") for value in range(3))
    matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    return MachineLimits(
        (4 << 28) / _replay_s(a.sum, repeats),
        (12 << 28) / _replay_s(lambda: torch.add(b, c, alpha=3.0, out=a), repeats),
        2 * 8192**3 / _replay_s(lambda: torch.mm(matrix, matrix), repeats),
    )


def _median_s(call: Call, x: Tensor, copies: int, repeats: int) -> float:
    """The median time of a call among calls that go through all copies of the weights."""

    def all_copies() -> None:
        for copy in range(copies):
            call(x, copy)

    return _replay_s(all_copies, repeats) / copies


def _replay_s(work: Callable[[], object], repeats: int) -> float:
    """The median time of a replay of the captured work: without the time to launch it."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    graph.replay()
    times: list[float] = []
    for _ in range(repeats):
        start, end = _event(), _event()
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch has no types there


if __name__ == "__main__":
    sys.exit(main())
