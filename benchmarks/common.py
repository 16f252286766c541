"""What the benchmark scripts share: flags, the engine under test, timing, and the record they write."""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire import LLM, SamplingParams
from quire.cli.collect_env import environment
from roofline import MachineLimits, measure_limits
from shapes import SHAPES, Shape, checkpoint
from workloads import Job

RESULTS = Path(__file__).parent / "results"


def argument_parser(description: str) -> argparse.ArgumentParser:
    """The flags of every benchmark."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="S", help="model shape (default: S)")
    parser.add_argument("--model", type=Path, help="a checkpoint of that shape, instead of a random one")
    parser.add_argument("--repeats", type=int, default=3, help="the median is reported (default: 3)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--max-num-batched-tokens", type=int)
    parser.add_argument("--compare-hf", action="store_true", help="measure transformers in the same run, too")
    parser.add_argument(
        "--output", type=Path, help="the JSON file (default: benchmarks/results/NAME-SHAPE.json)"
    )
    return parser


@dataclass(slots=True)
class Bench:
    """One run of a script: the flags, the shape, its checkpoint, the machine's limits."""

    name: str
    args: argparse.Namespace
    shape: Shape
    model: Path
    limits: MachineLimits

    @classmethod
    def start(cls, name: str, args: argparse.Namespace) -> Bench:
        """Make the checkpoint if need be, and measure the machine."""
        shape = SHAPES[args.shape]
        model = args.model or checkpoint(shape)
        limits = measure_limits(args.device)
        bandwidth, rate = limits.bytes_per_s / 1e9, limits.flops_per_s / 1e9
        print(f"machine: {bandwidth:.1f} GB/s, {rate:.0f} GFLOP/s bfloat16", file=sys.stderr)
        return cls(name, args, shape, model, limits)

    def open_llm(self, *, max_num_seqs: int, max_model_len: int, **keywords: object) -> LLM:
        """The engine under test; the two limits bound its KV cache."""
        settings: dict[str, Any] = {
            "dtype": "bfloat16",
            "device": self.args.device,
            "skip_tokenizer_init": True,
            "block_size": self.args.block_size,
            "max_num_batched_tokens": self.args.max_num_batched_tokens,
            "max_num_seqs": max_num_seqs,
            "max_model_len": max_model_len,
            "model": str(self.model),
            **keywords,
        }
        return LLM(**settings)

    def write(self, results: dict[str, object]) -> None:
        """Print the results and write them with everything that they depend on."""
        record = {
            "benchmark": self.name,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "shape": self.shape.name,
            "settings": {
                key: value for key, value in vars(self.args).items() if key not in ("model", "output")
            },
            "limits": self.limits.to_json(),
            "results": results,
            "environment": environment(),
        }
        for key, value in results.items():
            print(f"{key:32} {value}")
        file = self.args.output or RESULTS / f"{self.name}-{self.shape.name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(record, indent=2) + "\n")
        print(f"written: {file}", file=sys.stderr)


def greedy(num_outputs: int) -> SamplingParams:
    """Greedy, of exactly this length."""
    return SamplingParams(temperature=0.0, max_tokens=num_outputs, ignore_eos=True, detokenize=False)


def run_jobs(llm: LLM, jobs: Sequence[Job]) -> float:
    """Run all jobs together; the wall time in seconds. Lengths are checked."""
    params = [greedy(job.num_outputs) for job in jobs]
    start = time.perf_counter()
    outputs = llm.generate([job.prompt for job in jobs], params, use_tqdm=False)
    wall_s = time.perf_counter() - start
    lengths = [len(output.outputs[0].token_ids) for output in outputs]
    if lengths != [job.num_outputs for job in jobs]:
        raise RuntimeError("outputs of wrong lengths: the figures would mean nothing")
    return wall_s


def metrics(llm: LLM) -> dict[str, float]:
    """The engine's figures without labels, by name without prefix."""
    return {
        metric.name.removeprefix("quire:"): metric.value for metric in llm.get_metrics() if not metric.labels
    }


def growth(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What the counters grew by."""
    return {name: value - before.get(name, 0.0) for name, value in after.items()}


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Median, least and most."""
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


def host_share(grown: dict[str, float], wall_s: float) -> float:
    """Share of the time in planning, building batches, taking in results and handing out."""
    names = ("schedule_seconds", "build_seconds", "update_seconds", "emit_seconds")
    return sum(grown.get(name, 0.0) for name in names) / wall_s


def commit() -> str:
    """The commit, with a mark where the working tree differs from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()
