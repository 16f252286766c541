"""Linears with 4- and 8-bit weights on a CPU, for the layers of shape M: ours, prepacked bfloat16, torch's own."""

from __future__ import annotations

import argparse
import datetime
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from common import RESULTS, commit
from quire.cli.collect_env import environment
from quire.nn.unquantized import make_product
from quire.ops.tiles import TILE
from quire_kernels.native.bfloat16 import DOT_PRODUCTS, MATRIX_TILES
from quire_kernels.native.weight_only import WeightOnlyLinear
from quire_kernels.w8a8_linear.native import w8a8_linear
from roofline import measure_limits

LAYERS = {
    "query, key and value": (896, 1152),
    "attention output": (896, 896),
    "gate and up": (896, 9728),
    "down": (4864, 896),
    "head": (896, 151936),
}
"""Inputs and outputs of the fused layers of Qwen2.5-0.5B."""
ROWS = (1, 4, 16, 64, 256, 1024)
BASELINE = "oneDNN bf16"
MIN_ROUNDS = 5
_DISTINCT_BYTES = 256 << 20
"""Weights of one kernel that a measurement goes through; all kernels' take turns, so that none are in a cache."""

Call = Callable[[Tensor, int], object]
"""Of inputs and the number of a copy of the weights."""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--seconds", type=float, default=2.0, help="for each layer and number of rows")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--without-amx", action="store_true", help="ours by AVX512_BF16, to compare")
    parser.add_argument("--output", type=Path, default=RESULTS / "quantized-linear.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    limits = measure_limits()
    print(f"machine: {limits.bytes_per_s / 1e9:.1f} GB/s, {limits.flops_per_s / 1e9:.0f} GFLOP/s bfloat16")
    results = [record for layer in args.layers for record in _measure_layer(layer, args)]
    report = {
        "benchmark": "quantized-linear",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "settings": {"threads": args.threads, "seconds": args.seconds, "without_amx": args.without_amx},
        "limits": limits.to_json(),
        "results": results,
        "environment": environment(),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written: {args.output}", file=sys.stderr)


def _measure_layer(layer: str, args: argparse.Namespace) -> Iterator[dict[str, object]]:
    inputs, outputs = LAYERS[layer]
    kernels = dict(_kernels(inputs, outputs, DOT_PRODUCTS if args.without_amx else MATRIX_TILES))
    for rows in args.rows:
        x = torch.randn(rows, inputs).bfloat16()
        seconds = _medians(kernels, x, args.seconds)
        ratios = {name: seconds[BASELINE] / value for name, value in seconds.items()}
        figures = "  ".join(f"{name} {seconds[name] * 1e6:.0f} us ({ratios[name]:.2f})" for name in kernels)
        print(f"{layer:20} {rows:4} rows  {figures}", flush=True)
        for name, value in seconds.items():
            yield {
                "layer": layer,
                "inputs": inputs,
                "outputs": outputs,
                "rows": rows,
                "kernel": name,
                "seconds": round(value, 8),
                "over_bfloat16": round(ratios[name], 3),
            }


def _medians(kernels: Mapping[str, Call], x: Tensor, seconds: float) -> dict[str, float]:
    """The median time of a call of each, in turns of random order (what ran before matters), with other weights."""
    times: dict[str, list[float]] = {name: [] for name in kernels}
    start = time.perf_counter()
    order, draw, turn = list(kernels), random.Random(0), 0
    while turn < MIN_ROUNDS or time.perf_counter() - start < seconds:
        draw.shuffle(order)
        for name in order:
            call = kernels[name]
            begin = time.perf_counter()
            call(x, turn)
            times[name].append(time.perf_counter() - begin)
        turn += 1
    return {name: statistics.median(values) for name, values in times.items()}


def _kernels(inputs: int, outputs: int, limit: int) -> Iterator[tuple[str, Call]]:
    yield BASELINE, _prepacked(inputs, outputs)
    for bits, group in ((4, 128), (4, 32), (8, 128)):
        yield f"w{bits}a16 g{group}", _weight_only(bits, inputs, outputs, group, limit)
    yield "w8a8", _w8a8(inputs, outputs)
    yield "aten int4 g128", _aten_int4(inputs, outputs, 128)
    yield "aten int8", _aten_int8(inputs, outputs)


def _copies(weight: Tensor) -> list[Tensor]:
    return [weight.clone() for _ in range(max(1, _DISTINCT_BYTES // weight.nbytes))]


def _random_words(inputs: int, outputs: int, bits: int) -> list[Tensor]:
    shape = (-(-outputs // TILE), inputs * bits // 32, TILE)
    return _copies(torch.randint(-(2**31), 2**31, shape, dtype=torch.int32))


def _prepacked(inputs: int, outputs: int) -> Call:
    weight = torch.randn(outputs, inputs).bfloat16()
    products = [make_product(weight, None)[0] for _ in range(max(1, _DISTINCT_BYTES // weight.nbytes))]
    return lambda x, turn: products[turn % len(products)](x)


def _weight_only(bits: int, inputs: int, outputs: int, group: int, limit: int) -> Call:
    weights = _random_words(inputs, outputs, bits)
    scales = _copies(torch.rand(weights[0].shape[0], inputs // group, TILE).half())
    linear = WeightOnlyLinear(bits, limit)

    def call(x: Tensor, turn: int) -> Tensor:
        weight, scale = weights[turn % len(weights)], scales[turn % len(scales)]
        return linear(x, weight, scale, None, None, None, outputs)

    return call


def _w8a8(inputs: int, outputs: int) -> Call:
    weights, scales = _random_words(inputs, outputs, 8), torch.rand(outputs)
    return lambda x, turn: w8a8_linear(x, weights[turn % len(weights)], scales, None, None, outputs)


def _aten_int4(inputs: int, outputs: int, group: int) -> Call:
    values = torch.randint(0, 16, (outputs, inputs), dtype=torch.int32)
    weights = _copies(torch.ops.aten._convert_weight_to_int4pack_for_cpu(values, 1))
    table = torch.rand(inputs // group, outputs, 2).bfloat16()
    multiply = torch.ops.aten._weight_int4pack_mm_for_cpu.default
    return lambda x, turn: multiply(x, weights[turn % len(weights)], group, table)


def _aten_int8(inputs: int, outputs: int) -> Call:
    weights = _copies(torch.randint(-128, 128, (outputs, inputs), dtype=torch.int8))
    scales = torch.rand(outputs).bfloat16()
    multiply = torch.ops.aten._weight_int8pack_mm.default
    return lambda x, turn: multiply(x, weights[turn % len(weights)], scales)


if __name__ == "__main__":
    main()
