"""W1 to W4 on Quire and on other engines, repeat by repeat in turns, each engine in its own interpreter.

    python benchmarks/peers.py --shape S --peer vllm=/envs/vllm/bin/python --peer llama.cpp=/envs/llama/bin/python

All engines are loaded first and stay loaded; one computes at a time, which is checked. Engines that are not
given are left out. What they need is said in `benchmarks/peer_engines`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from common import RESULTS, commit
from machine_state import BandwidthProbe, CpuMeter, wait_until_quiet
from peer_engines.worker import ENGINES
from peer_process import PeerError, PeerProcess
from peer_workloads import (
    FULL,
    QUICK,
    WORKLOADS,
    Sizes,
    describe,
    figures_of_times,
    figures_of_wall,
    jobs_of,
    limit_fraction,
    paired_ratios,
    summary,
    warm_up_jobs,
)
from plots import plot_record
from quire.cli.collect_env import environment
from roofline import MachineLimits, measure_limits
from shapes import SHAPES, Shape, checkpoint

US = "quire"
SHARE_OF_IDLE_PEERS = 0.02
"""Above this the engines that wait disturb the one that runs."""
Figures = dict[int, dict[str, float]]
"""Of the repeats of one engine and workload, by the repeat's number."""


@dataclass(slots=True)
class Comparison:
    """Engines that are loaded, and what has been measured.

    Attributes:
        figures: by workload and engine. failures: what went wrong, in words, by engine.
    """

    shape: Shape
    limits: MachineLimits
    probe: BandwidthProbe
    sizes: Sizes
    quiet_wait_s: float
    engines: list[PeerProcess] = field(default_factory=list)
    figures: defaultdict[str, dict[str, Figures]] = field(default_factory=lambda: defaultdict(dict))
    failures: dict[str, str] = field(default_factory=dict)

    def measure(self, workload: str, repeats: int) -> None:
        """Warm every engine up, then let them take turns; one that fails takes no further part in the workload."""
        taking_part = list(self.engines)
        for repeat in range(-1, repeats):
            first = repeat % max(1, len(taking_part))
            for engine in [*taking_part[first:], *taking_part[:first]]:
                try:
                    if repeat < 0:
                        self._warm_up(engine, workload)
                    else:
                        self._run(engine, workload, repeat)
                except PeerError as error:
                    taking_part.remove(engine)
                    self.failures[engine.name] = f"{workload}: {error}"
                    print(f"{workload} {engine.name}: failed, {error}", flush=True)

    def _warm_up(self, engine: PeerProcess, workload: str) -> None:
        jobs = warm_up_jobs(workload, self.shape.vocab, self.sizes)
        if WORKLOADS[workload].is_streamed:
            engine.stream(jobs[0])
        else:
            engine.generate(jobs, self._shared(workload))

    def _run(self, engine: PeerProcess, workload: str, repeat: int) -> None:
        jobs = jobs_of(workload, self.shape.vocab, repeat, self.sizes)
        wait_until_quiet(self.quiet_wait_s, [os.getpid()])
        before = self.probe.bytes_per_s() if workload == "w2" else 0.0
        idle = [each.process_id for each in self.engines if each is not engine]
        meter = CpuMeter([os.getpid()], idle)
        if WORKLOADS[workload].is_streamed:
            figures = figures_of_times(engine.stream(jobs[0]))
        else:
            figures = figures_of_wall(jobs, engine.generate(jobs, self._shared(workload)))
        shares = meter.stop()
        limits = self.limits
        if workload == "w2":
            bandwidth = max(before, self.probe.bytes_per_s())
            limits = replace(limits, read_bytes_per_s=bandwidth, triad_bytes_per_s=bandwidth)
            figures["bytes_per_s"] = bandwidth
        shared = self.sizes.shared_prefix
        figures["fraction_of_limit"] = limit_fraction(workload, self.shape, jobs, figures, limits, shared)
        figures |= shares.to_json()
        self.figures[workload].setdefault(engine.name, {})[repeat] = figures
        compared = WORKLOADS[workload].figure
        print(
            f"{workload} repeat {repeat + 1} {engine.name:12} {compared} {figures[compared]:.5g}, "
            f"{figures['fraction_of_limit']:.2f} of the limit, others {100 * shares.others:.1f} % of the cores",
            flush=True,
        )
        if shares.idle_peers > SHARE_OF_IDLE_PEERS and shares.seconds > 1:  # times are counted in hundredths
            print(f"engines that should wait took {100 * shares.idle_peers:.1f} % of the cores", flush=True)

    def _shared(self, workload: str) -> int:
        return self.sizes.shared_prefix if workload == "w3" else 0

    def results(self) -> dict[str, object]:
        """Per workload and engine the spread of each figure, and every repeat."""
        return {
            workload: {
                name: {**summary(list(repeats.values())), "repeats": list(repeats.values())}
                for name, repeats in by_engine.items()
            }
            for workload, by_engine in self.figures.items()
        }

    def ratios(self) -> dict[str, dict[str, dict[str, float]]]:
        """Per peer and workload how many times as fast we are; see `paired_ratios`."""
        peers = [engine.name for engine in self.engines if engine.name != US]
        return {
            peer: {
                workload: paired_ratios(WORKLOADS[workload], by_engine[US], by_engine[peer])
                for workload, by_engine in self.figures.items()
                if US in by_engine and peer in by_engine
            }
            for peer in peers
        }


def main() -> int:
    """Measure, write and draw; 1 where an engine that was asked for has failed."""
    args = _parser().parse_args()
    if not args.peer:
        print("peers: skipped, none is given (--peer NAME=PYTHON, or PEERS=... for make bench)")
        return 0
    shape = SHAPES[args.shape]
    model = args.model or checkpoint(shape)
    torch.set_num_threads(args.threads)
    pythons = {US: Path(sys.executable), **dict(args.peer)}
    skipped = {name: "not given" for name in ENGINES if name not in pythons}
    if skipped:
        print(f"not given, left out: {', '.join(skipped)} (--peer NAME=PYTHON)", flush=True)
    sizes = QUICK if args.quick else FULL
    with ExitStack() as stack:
        comparison = Comparison(shape, measure_limits(), BandwidthProbe(), sizes, args.quiet_wait)
        for name, python in pythons.items():
            try:
                engine = PeerProcess(
                    name,
                    python,
                    model,
                    options={key: value for owner, key, value in args.option if owner == name},
                    num_threads=args.threads,
                    timeout_s=args.timeout,
                )
            except (PeerError, OSError) as error:
                comparison.failures[name] = str(error)
                print(f"{name}: left out, {error}", flush=True)
                continue
            stack.callback(engine.close)
            comparison.engines.append(engine)
            print(f"{name}: loaded in {engine.load_s:.1f} s, {engine.versions}", flush=True)
        for workload in args.workloads:
            comparison.measure(workload, args.repeats)
        record = _record(args, comparison, skipped)
    for peer, ratios in comparison.ratios().items():
        told = ", ".join(f"{name} {ratio['median']:.2f}" for name, ratio in ratios.items() if ratio)
        print(f"{US} / {peer}: {told or 'nothing to compare'}")
    file = args.output or RESULTS / f"peers-{shape.name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n")
    picture = plot_record(file) if comparison.figures else "no picture: there are no figures"
    print(f"written: {file}, {picture}", file=sys.stderr)
    return 1 if comparison.failures else 0


def _record(args: argparse.Namespace, comparison: Comparison, skipped: dict[str, str]) -> dict[str, object]:
    return {
        "benchmark": "peers",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "shape": comparison.shape.name,
        "settings": {
            "repeats": args.repeats,
            "threads": args.threads,
            "quick": args.quick,
            "options": [f"{owner}.{key}={value}" for owner, key, value in args.option],
            "note": "token ids fed directly, greedy, end tokens passed over, fresh ids in each repeat, engines "
            "in turns; ratios are medians over repeats of ours beside theirs, over 1: ours is faster",
        },
        "limits": comparison.limits.to_json(),
        "workloads": {
            name: describe(name, comparison.shape.vocab, comparison.sizes) for name in args.workloads
        },
        "engines": {
            engine.name: {"load_s": engine.load_s, "versions": engine.versions}
            for engine in comparison.engines
        },
        "skipped": skipped | comparison.failures,
        "ratios": comparison.ratios(),
        "results": comparison.results(),
        "environment": environment(),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), default="S", help="model shape (default: S)")
    parser.add_argument("--model", type=Path, help="a checkpoint of that shape, instead of a random one")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        type=_peer,
        metavar="NAME=PYTHON",
        help=f"an engine ({', '.join(name for name in ENGINES if name != US)}) and the interpreter that has it",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        type=_option,
        metavar="NAME.KEY=VALUE",
        help="an option of an engine, e.g. vllm.eager=1; see benchmarks/peer_engines",
    )
    parser.add_argument("--workloads", nargs="+", choices=sorted(WORKLOADS), default=sorted(WORKLOADS))
    parser.add_argument("--repeats", type=int, default=5, help="the median is reported (default: 5)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds to load, and for a workload")
    parser.add_argument(
        "--quiet-wait", type=float, default=10.0, help="seconds to wait at most until others are idle"
    )
    parser.add_argument("--quick", action="store_true", help="small workloads, to see that all works")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/peers-SHAPE.json")
    return parser


def _peer(text: str) -> tuple[str, Path]:
    name, equals, python = text.partition("=")
    if not equals or name not in ENGINES:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PYTHON with one of {', '.join(ENGINES)}")
    return name, Path(python).absolute()  # its links are how a virtual environment is found


def _option(text: str) -> tuple[str, str, str]:
    owner = next((name for name in ENGINES if text.startswith(f"{name}.")), None)
    key, equals, value = text[len(owner or "") + 1 :].partition("=")
    if owner is None or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME.KEY=VALUE with one of {', '.join(ENGINES)}")
    return owner, key, value


if __name__ == "__main__":
    sys.exit(main())
