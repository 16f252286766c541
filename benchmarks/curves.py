"""Time of a decode step against running requests and against context, beside the roofline of the moment."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from common import RESULTS, Bench, argument_parser, commit
from cost_curves import (
    MAX_HOST_SHARE,
    MAX_OVER_ROOFLINE,
    Point,
    decode_cost,
    jumps,
    make_point,
    slow_points,
    verdict,
)
from decode_steps import WARM_UP_STEPS, MeasuredSteps, RunningRequests
from machine_state import BandwidthProbe, CpuMeter, wait_until_memory_stands
from plots import plot_record
from quire import LLM
from quire.cli.collect_env import environment

REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
REQUEST_CONTEXTS = (128, 512)
CONTEXTS = (128, 256, 512, 1024, 2048, 4096, 8192)
CONTEXT_REQUESTS = (1, 16)
_UNTIL_PAGES_COME_S = 2
"""A second after its start the engine begins to bring its KV cache's pages: steps of one that has run are meant."""
_DRIFT_TOKENS = 256
"""That a request gets on average beyond its prompt, while others are added to it and measured."""


@dataclass(slots=True)
class Curves:
    """Measures curves in one engine.

    Attributes:
        limits: bandwidth is measured anew at every point.
    """

    bench: Bench
    llm: LLM
    probe: BandwidthProbe
    num_steps: int

    def over_requests(self, counts: Sequence[int], context: int) -> list[Point]:
        """Points at growing numbers of requests, added to those that run; each begins at about `context`."""
        running = RunningRequests(self.llm, self.bench.shape.vocab, seed=context)
        points = []
        for count in counts:
            prompts = [running.draw(self._prompt_length(context)) for _ in range(count - len(running))]
            running.add(prompts, self._room - context)
            points.append(self._point(count, running))
        running.drop()
        return points

    def over_contexts(self, contexts: Sequence[int], count: int) -> list[Point]:
        """Points at growing contexts of the same prompts, whose beginnings are found in the prefix cache."""
        running = RunningRequests(self.llm, self.bench.shape.vocab, seed=1_000_000 + count)
        longest = [running.draw(contexts[-1]) for _ in range(count)]
        num_added = count * (1 + contexts[-1] // 1024)  # at most so many steps of others' prompts come before
        num_outputs = WARM_UP_STEPS + self.num_steps + 2 + num_added
        points = []
        for context in contexts:
            length = min(self._prompt_length(context), self._room - num_outputs)
            running.add([prompt[:length] for prompt in longest], num_outputs)
            points.append(self._point(context, running))
            running.drop()
        return points

    @property
    def _room(self) -> int:
        """Tokens that a request may have."""
        return self.llm.config.model.max_model_len or self.bench.shape.max_position_embeddings

    def _prompt_length(self, context: int) -> int:
        """So that the middle one of the measured steps has `context` tokens before it."""
        return max(1, context - WARM_UP_STEPS - self.num_steps // 2)

    def _point(self, at: int, running: RunningRequests) -> Point:
        before = self.probe.bytes_per_s()
        meter = CpuMeter([os.getpid()])
        steps: MeasuredSteps = running.measure(self.num_steps)
        shares = meter.stop()
        bandwidth = max(before, self.probe.bytes_per_s())
        limits = replace(self.bench.limits, read_bytes_per_s=bandwidth, triad_bytes_per_s=bandwidth)
        point = make_point(
            at,
            decode_cost(self.bench.shape, steps.contexts),
            limits,
            steps.seconds,
            host_share=steps.share("schedule", "build"),
            others_cpu=shares.others,
        )
        print(
            f"{len(running):4} requests, context {statistics.mean(steps.contexts):6.0f}: "
            f"{1e3 * point.step_s:8.2f} ms, {point.over_roofline:5.2f} times the roofline, "
            f"planning and building {100 * point.host_share:.2f} %",
            flush=True,
        )
        return point


def main() -> None:
    """Measure, tell what misses its limit, write the record and the picture."""
    args = _arguments()
    bench = Bench.start("curves", args)
    with _open(bench) as llm:
        time.sleep(_UNTIL_PAGES_COME_S)
        wait_until_memory_stands(120)
        curves = Curves(bench, llm, BandwidthProbe(args.device), args.steps)
        by_requests = {
            f"requests, context {context}": curves.over_requests(args.requests, context)
            for context in args.request_contexts
        }
        by_context = {
            f"context, {count} requests": curves.over_contexts(args.contexts, count)
            for count in args.context_requests
        }
    host_share = max(points[-1].host_share for points in by_requests.values())
    tell(by_requests | by_context, host_share)
    record = {
        "benchmark": bench.name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "shape": bench.shape.name,
        "settings": {key: value for key, value in vars(args).items() if key not in ("model", "output")},
        "limits": bench.limits.to_json(),
        "results": {
            "curves": [verdict(name, points) for name, points in (by_requests | by_context).items()],
            "host_share_at_most_requests": round(host_share, 4),
        },
        "environment": environment(),
    }
    file = args.output or RESULTS / f"curves-{bench.shape.name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written: {file} and {plot_record(file)}", file=sys.stderr)


def tell(measured: Mapping[str, Sequence[Point]], host_share: float) -> None:
    """Print the points and jumps that miss their limits, and the share of planning and building."""
    for name, points in measured.items():
        for point in slow_points(points):
            print(f"over {MAX_OVER_ROOFLINE}: {name}: {point.over_roofline:.2f} times at {point.at}")
        for jump in jumps(points):
            rise = 100 * (jump.factor - 1)
            print(f"jump: {name}: {rise:.0f} % over the roofline's from {jump.start} to {jump.end}")
    told = "within" if host_share <= MAX_HOST_SHARE else "over"
    print(
        f"planning and building at the most requests: {100 * host_share:.2f} %, {told} {MAX_HOST_SHARE:.0%}"
    )


def _open(bench: Bench) -> LLM:
    """An engine with room for the largest points."""
    args = bench.args
    of_requests = [max(args.requests) * (context + _DRIFT_TOKENS) for context in args.request_contexts]
    of_contexts = [count * (max(args.contexts) + _DRIFT_TOKENS) for count in args.context_requests]
    drift = len(args.requests) * (WARM_UP_STEPS + args.steps) + 2 * max(args.requests)
    longest = max(max(args.contexts) + WARM_UP_STEPS + args.steps, max(args.request_contexts) + drift)
    return bench.open_llm(
        max_num_seqs=max(*args.requests, *args.context_requests),
        max_model_len=min(longest, bench.shape.max_position_embeddings),
        num_kv_blocks=-(-max(*of_requests, *of_contexts) // args.block_size),
    )


def _arguments() -> argparse.Namespace:
    parser = argument_parser(__doc__ or "")
    parser.add_argument("--requests", type=int, nargs="+", default=list(REQUESTS))
    parser.add_argument("--request-contexts", type=int, nargs="+", default=list(REQUEST_CONTEXTS))
    parser.add_argument("--contexts", type=int, nargs="+", default=list(CONTEXTS))
    parser.add_argument("--context-requests", type=int, nargs="+", default=list(CONTEXT_REQUESTS))
    parser.add_argument(
        "--steps", type=int, default=21, help="of each point; the median is taken (default: 21)"
    )
    args = parser.parse_args()
    for values in (args.requests, args.contexts):
        if sorted(set(values)) != values:
            parser.error("--requests and --contexts must grow")
    return args


if __name__ == "__main__":
    main()
