"""The linear layer of plain bfloat16 weights: the native kernel over panels beside oneDNN's prepacked weights."""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from common import RESULTS, commit
from quire.cli.collect_env import environment
from quire.nn.unquantized import make_product
from quire_kernels.linear.native import linear
from roofline import measure_limits

SHAPES = {
    "S": [(576, 960), (576, 576), (576, 3072), (1536, 576)],
    "M": [(896, 1152), (896, 896), (896, 9728), (4864, 896)],
}
ROWS = (1, 4, 16, 32, 48, 64, 96, 128, 256, 512, 2048)
COLD_BYTES = 300 * 2**20
"""Weights are taken in turn, so that none is found in a cache."""


def main() -> None:
    """Measure both in turns and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="S")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    limits = measure_limits()
    results = []
    for inputs, outputs in SHAPES[args.shape]:
        count = max(1, COLD_BYTES // (2 * inputs * outputs))
        weights = [torch.randn(outputs, inputs).bfloat16() for _ in range(count)]
        peers = [make_product(weight, None)[0] for weight in weights]
        natives = [make_product(weight, None, linear)[0] for weight in weights]
        del weights
        for rows in args.rows:
            peer_s, native_s = in_turns(peers, natives, torch.randn(rows, inputs).bfloat16())
            least_s = limits.least_time_s(2 * inputs * outputs, 2 * rows * inputs * outputs)
            results.append(
                {
                    "inputs": inputs,
                    "outputs": outputs,
                    "rows": rows,
                    "onednn_us": round(1e6 * peer_s, 1),
                    "native_us": round(1e6 * native_s, 1),
                    "speed_up": round(peer_s / native_s, 2),
                    "roofline_fraction": round(least_s / native_s, 3),
                }
            )
            print(*results[-1].values(), sep="\t")
    path = args.output or RESULTS / f"linear-{args.shape}.json"
    record = {
        "benchmark": "linear",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "limits": limits.to_json(),
        "environment": environment(),
        "results": results,
    }
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def in_turns(
    peers: list[Callable[[Tensor], Tensor]], natives: list[Callable[[Tensor], Tensor]], x: Tensor
) -> tuple[float, float]:
    """Median seconds of a call, each."""
    seconds: tuple[list[float], list[float]] = [], []
    for turn in range(60 if len(x) <= 256 else 15):
        for products, taken in zip((peers, natives), seconds, strict=True):
            begin = time.perf_counter()
            products[turn % len(products)](x)
            taken.append(time.perf_counter() - begin)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


if __name__ == "__main__":
    main()
