"""Everything that is measured on a GPU, in one command of under nine minutes: ceilings, ops, engine.

Makes its own weights. Every section runs in a process of its own, with a budget of time: one that fails, or takes
too long, is reported with what it had measured, and the others go on. `--device cpu --quick` shows on any
machine that it runs.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import gpu_quantized_linear
from common import RESULTS, commit
from gpu_attention import measure_attention
from gpu_engine import measure_engine
from gpu_ops import measure_linears, measure_small_ops
from gpu_timing import Deadline, Record, Timer, limits_of, measure_ceilings
from quire.cli.collect_env import environment
from roofline import MachineLimits, measure_limits

TOTAL_S = 520.0
BUDGETS_S = {
    "ceilings": 40,
    "engine 0.6B": 100,
    "engine 8B": 160,
    "attention": 90,
    "small ops": 30,
    "linears": 30,
    "quantized linears": 70,
}
"""Of each section, in their order; the first is needed by the others, and those that matter most come early."""
_START_S = 12.0
"""Of a section's budget, to import torch, find the GPU, and end."""


def main() -> int:
    """Run the sections and write the record; 1 where one of them failed."""
    args = _arguments()
    if args.section is not None:
        return _run_section(args)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("gpu: skipped, torch sees no GPU (--device cpu --quick tries the script without one)")
        return 0
    begin = time.monotonic()
    sections: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.sections:
            left_s = args.seconds - (time.monotonic() - begin)
            seconds = min(BUDGETS_S[name], left_s)
            if seconds < 5:
                sections[name] = {"failure": "no time left", "records": []}
            else:
                file = Path(folder) / f"{name.replace(' ', '-')}.json"
                known = sections.get("ceilings", {}).get("records", [])
                sections[name] = _in_process(name, args, file, seconds, known)
            tell(name, sections[name])
    record = {
        "benchmark": "gpu",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "settings": {"device": args.device, "quick": args.quick, "seconds": args.seconds},
        "seconds": round(time.monotonic() - begin, 1),
        "sections": sections,
        "environment": environment(),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{record['seconds']} s; written: {args.output}", file=sys.stderr)
    return 1 if any(has_failed(section) for section in sections.values()) else 0


def has_failed(section: dict[str, Any]) -> bool:
    """Whether a section, or something that it measured, has."""
    return "failure" in section or any("failure" in record for record in section["records"])


def tell(name: str, section: dict[str, Any]) -> None:
    """Print a section: a line a case, with its fraction of the limit."""
    print(f"{name} ({section.get('seconds', 0):.0f} s)")
    for record in section["records"]:
        print(f"  {line_of(record)}")
    if "failure" in section:
        print(f"  FAILED: {section['failure']}")
    sys.stdout.flush()


def line_of(record: Record) -> str:
    """A record in one line."""
    parts = [f"{record['case']!s:44}"]
    for key, value in record.items():
        if key == "seconds":
            parts.append(f"{_float(value) * 1e3:10.3f} ms")
        elif key == "fraction":
            parts.append(f"{100 * _float(value):5.1f} % of the limit")
        elif key in ("tokens_per_s", "skipped", "is_whole", "failure") or key.endswith("_missing"):
            parts.append(f"{key} {value}")
        elif key.startswith("times_as_fast_as_"):
            parts.append(f"{_float(value):.2f} x {key.removeprefix('times_as_fast_as_')}")
        elif key.endswith("_per_s"):
            parts.append(f"{_float(value) / 1e9:.0f} G{key.removesuffix('_per_s')}/s")
    return "  ".join(parts)


def _float(value: object) -> float:
    return float(str(value))


def _in_process(
    name: str, args: argparse.Namespace, file: Path, seconds: float, ceilings: list[Record]
) -> dict[str, Any]:
    """Run a section elsewhere; what it wrote, and why it failed where it did."""
    begin = time.monotonic()
    command = [sys.executable, Path(__file__).resolve(), "--section", name, "--device", args.device]
    command += ["--part", file, "--seconds", str(seconds), "--ceilings", json.dumps(ceilings)]
    if args.quick:
        command.append("--quick")
    found: dict[str, Any] = {}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        try:
            status = subprocess.run(command, stdout=log, stderr=log, timeout=seconds, check=False).returncode
        except subprocess.TimeoutExpired:
            found["failure"] = f"not done within {seconds:.0f} s"
        else:
            if status:
                log.seek(0)
                lines = [line for line in log.read().splitlines() if line.strip()]
                found["failure"] = f"ended with {status}: {' | '.join(lines[-3:])[-600:]}"
    found["seconds"] = round(time.monotonic() - begin, 1)
    found["records"] = json.loads(file.read_text()) if file.exists() else []
    return found


def _run_section(args: argparse.Namespace) -> int:
    """In the section's own process: measure, and write after every record."""
    records: list[Record] = []
    for record in _measure(args):
        records.append(record)
        partial = args.part.with_suffix(".partial")
        partial.write_text(json.dumps(records))
        partial.rename(args.part)
    return 0


def _measure(args: argparse.Namespace) -> Iterator[Record]:
    timer, deadline = Timer(args.device), Deadline(args.seconds - _START_S)
    if args.section == "ceilings":
        return measure_ceilings(timer, is_quick=args.quick)
    limits = _limits(args)
    if args.section.startswith("engine "):
        name = args.section.removeprefix("engine ")
        return measure_engine(name, args.device, limits, deadline, is_quick=args.quick)
    measure: dict[str, Callable[..., Iterator[Record]]] = {
        "attention": measure_attention,
        "small ops": measure_small_ops,
        "linears": measure_linears,
        "quantized linears": _quantized_linears,
    }
    return measure[args.section](timer, limits, deadline, is_quick=args.quick)


def _limits(args: argparse.Namespace) -> MachineLimits:
    """The ceilings that were measured before, else measured now."""
    try:
        return limits_of(json.loads(args.ceilings))
    except KeyError:
        return measure_limits(args.device)


def _quantized_linears(
    timer: Timer, limits: MachineLimits, deadline: Deadline, *, is_quick: bool
) -> Iterator[Record]:
    """4- and 8-bit weights beside cuBLAS and torch's int4, by the script for these alone."""
    if timer.device != "cuda":
        yield {"case": "all", "skipped": "measures GPUs only"}
        return
    for layer, (inputs, outputs) in gpu_quantized_linear.LAYERS.items():
        for rows in (16,) if is_quick else (1, 16, 256, 1024):
            if deadline.left_s < 5:
                yield {"case": f"{layer}, {rows} rows", "skipped": "no time left"}
                continue
            for found in gpu_quantized_linear.measure_layer(
                layer, inputs, outputs, rows, timer.repeats, limits
            ):
                yield {
                    "case": f"{found['kernel']}: {layer}, {rows} rows",
                    "seconds": found["seconds"],
                    "fraction": found["fraction_of_limit"],
                    "times_as_fast_as_cublas": found["over_cublas"],
                }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--sections", nargs="+", choices=list(BUDGETS_S), default=list(BUDGETS_S))
    parser.add_argument("--seconds", type=float, default=TOTAL_S, help="for all (default: 520)")
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu.json")
    parser.add_argument("--section", choices=list(BUDGETS_S), help=argparse.SUPPRESS)
    parser.add_argument("--part", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--ceilings", default="[]", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
