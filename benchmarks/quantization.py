"""Decode of one stream, and throughput of 64 requests, in 4 and 8 bits against bfloat16, interleaved."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from common import Bench, argument_parser, run_jobs, spread
from latency import token_times
from quire import LLM
from workloads import Job, sharegpt_like, single

VARIANTS: Mapping[str, Mapping[str, object]] = {
    "bfloat16": {},
    "int4 g128, 16-bit head": {
        "quantization": "int4",
        "plugins": {"options": {"int4": {"group_size": 128, "lm_head": False}}},
    },
    "int4 g128": {"quantization": "int4", "plugins": {"options": {"int4": {"group_size": 128}}}},
    "int4 g32": {"quantization": "int4"},
    "int8": {"quantization": "int8"},
}
"""What is measured: the settings of each, over the 16-bit checkpoint of the shape."""


def main() -> None:
    """Measure and write the record."""
    parser = argument_parser(__doc__)
    parser.add_argument("--num-requests", type=int, default=64)
    parser.add_argument("--only", nargs="*", help="names of variants beside bfloat16; by default all")
    parser.add_argument(
        "--checkpoint", nargs="*", default=[], metavar="NAME=DIR", help="quantized checkpoints, measured too"
    )
    parser.add_argument(
        "--workload", choices=("decode", "throughput"), help="measure this alone, into a record of its own"
    )
    parser.set_defaults(shape="M", repeats=5)
    args = parser.parse_args()
    name = "quantization" if args.workload is None else f"quantization-{args.workload}"
    bench = Bench.start(name, args)
    variants = {name: dict(settings) for name, settings in VARIANTS.items()}
    if args.only is not None:
        variants = {name: variants[name] for name in ("bfloat16", *args.only)}
    for text in args.checkpoint:
        name, _, folder = text.partition("=")
        variants[name] = {"model": str(Path(folder))}
    results: dict[str, dict[str, object]] = {}
    with ExitStack() as stack:
        engines: dict[str, LLM] = {}
        for name, settings in variants.items():
            start = time.perf_counter()
            llm = bench.open_llm(max_num_seqs=args.num_requests, max_model_len=1024, **settings)
            engines[name] = stack.enter_context(llm)
            results[name] = {"load_s": round(time.perf_counter() - start, 1)}
            token_times(llm, single(bench.shape.vocab, 99, 64, 16))
        if args.workload != "throughput":
            _add(results, "decode_tokens_per_s", _decode(bench, engines))
        if args.workload != "decode":
            _add(results, "output_tokens_per_s", _throughput(bench, engines))
    bench.write(dict(results))


def _decode(bench: Bench, engines: Mapping[str, LLM]) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {name: [] for name in engines}
    for repeat in range(bench.args.repeats):
        for name, llm in engines.items():
            times = token_times(llm, single(bench.shape.vocab, repeat, 128, 128))
            rates[name].append((len(times) - 1) / (times[-1] - times[0]))
        print(f"decode, round {repeat}: {_latest(rates)}", file=sys.stderr)
    return rates


def _throughput(bench: Bench, engines: Mapping[str, LLM]) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {name: [] for name in engines}
    for llm in engines.values():
        run_jobs(llm, [Job(job.prompt[:64], 4) for job in sharegpt_like(bench.shape.vocab, 99, 16)])
    for repeat in range(bench.args.repeats):
        jobs = sharegpt_like(bench.shape.vocab, repeat, bench.args.num_requests)
        num_outputs = sum(job.num_outputs for job in jobs)
        for name, llm in engines.items():
            rates[name].append(num_outputs / run_jobs(llm, jobs))
        print(f"throughput, round {repeat}: {_latest(rates)}", file=sys.stderr)
    return rates


def _add(results: dict[str, dict[str, object]], key: str, rates: Mapping[str, list[float]]) -> None:
    """The rates, and the median over the rounds of the ratio to bfloat16 in the same round."""
    for name, values in rates.items():
        ratios = [value / base for value, base in zip(values, rates["bfloat16"], strict=True)]
        results[name][key] = spread(values, 1)
        results[name][f"{key}_over_bfloat16"] = round(statistics.median(ratios), 2)


def _latest(rates: Mapping[str, list[float]]) -> str:
    return ", ".join(f"{name} {values[-1]:.1f}" for name, values in rates.items())


if __name__ == "__main__":
    main()
