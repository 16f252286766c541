"""The server beside the offline engine: tokens per second of streams, time to first token, cold start."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from common import Bench, argument_parser, spread
from quire import LLM, SamplingParams
from quire_serving.cli.bench.http_client import Endpoint
from quire_serving.cli.bench.load import Load, run_load
from quire_serving.cli.bench.statistics import RequestRecord
from quire_serving.cli.bench.workloads import Ask
from workloads import Job, sharegpt_like, single

MODEL_NAME = "bench"
MAX_MODEL_LEN = 1088


def main() -> None:
    """Measure offline and served in turns, and write the record."""
    parser = argument_parser(__doc__)
    parser.add_argument("--clients", type=int, default=32, help="streams at a time (default: 32)")
    parser.add_argument("--requests", type=int, default=64)
    args = parser.parse_args()
    bench = Bench.start("serving", args)
    offline, served, ratios, first_offline, first_served, client_cpu = [], [], [], [], [], []
    for repeat in range(args.repeats):
        jobs = sharegpt_like(bench.shape.vocab, repeat, args.requests)
        idle = [single(bench.shape.vocab, number, 64, 16) for number in range(20)]
        with bench.open_llm(
            max_num_seqs=args.clients, max_model_len=MAX_MODEL_LEN, skip_tokenizer_init=False
        ) as llm:
            run_offline(llm, jobs[: args.clients])
            first_offline += [first_token_s(llm, job) for job in idle]
            llm.reset_prefix_cache()
            offline.append(tokens(jobs) / run_offline(llm, jobs))
        with server(bench) as url:
            run_served(url, jobs[: args.clients], args.clients)
            records = [run_served(url, [job], 1)[0] for job in idle]
            first_served += [record.arrivals_s[0] for record in records if record.arrivals_s]
            reset_prefix_cache(url)
            cpu_s, begin = time.process_time(), time.perf_counter()
            run_served(url, jobs, args.clients)
            wall_s = time.perf_counter() - begin
            served.append(tokens(jobs) / wall_s)
            client_cpu.append((time.process_time() - cpu_s) / wall_s)
        ratios.append(served[-1] / offline[-1])
    extra_ms = 1000 * (statistics.median(first_served) - statistics.median(first_offline))
    bench.write(
        {
            "offline_tokens_per_s": spread(offline, 1),
            "served_tokens_per_s": spread(served, 1),
            "served_by_offline": spread(ratios, 3),
            "client_cpu_cores": spread(client_cpu, 3),
            "idle_ttft_offline_s": spread(first_offline),
            "idle_ttft_served_s": spread(first_served),
            "idle_ttft_over_offline_ms": round(extra_ms, 2),
            "cold_start_to_first_token_s": spread([cold_start_s() for _ in range(args.repeats)], 2),
        }
    )


def tokens(jobs: Sequence[Job]) -> int:
    """Output tokens of a workload."""
    return sum(job.num_outputs for job in jobs)


def params(num_outputs: int) -> SamplingParams:
    """Greedy, of exactly this length, with text as a server gives it."""
    return SamplingParams(temperature=0.0, max_tokens=num_outputs, ignore_eos=True)


def run_offline(llm: LLM, jobs: Sequence[Job]) -> float:
    """Seconds for all jobs."""
    begin = time.perf_counter()
    outputs = llm.generate(
        [job.prompt for job in jobs], [params(job.num_outputs) for job in jobs], use_tqdm=False
    )
    seconds = time.perf_counter() - begin
    if [len(output.outputs[0].token_ids) for output in outputs] != [job.num_outputs for job in jobs]:
        raise RuntimeError("outputs of wrong lengths: the figures would mean nothing")
    return seconds


def first_token_s(llm: LLM, job: Job) -> float:
    """Seconds from submission to the first text."""
    begin, seconds = time.perf_counter(), 0.0
    for output in llm.stream(job.prompt, params(job.num_outputs)):
        if not seconds and output.outputs[0].text:
            seconds = time.perf_counter() - begin
    return seconds


def run_served(url: str, jobs: Sequence[Job], num_clients: int) -> list[RequestRecord]:
    """Stream all jobs, so many at a time; what became of them."""
    load = Load(
        Endpoint.of(f"{url}/v1/completions", {}), MODEL_NAME, ignore_eos=True, max_concurrency=num_clients
    )
    asks = [Ask(job.prompt, job.num_outputs) for job in jobs]
    records = asyncio.run(run_load(load, asks, [0.0] * len(asks), lambda _: None))
    if [record.num_output_tokens for record in records] != [job.num_outputs for job in jobs]:
        raise RuntimeError(
            f"answers of wrong lengths: {[record.error for record in records if record.error]}"
        )
    return records


def reset_prefix_cache(url: str) -> None:
    """What the first run left would help the second."""
    import httpx

    httpx.post(f"{url}/reset_prefix_cache").raise_for_status()


@contextmanager
def server(bench: Bench) -> Iterator[str]:
    """`quire serve` with the offline engine's settings; its URL."""
    flags: dict[str, Any] = {
        "dtype": "bfloat16",
        "device": bench.args.device,
        "block-size": bench.args.block_size,
        "max-num-seqs": bench.args.clients,
        "max-model-len": MAX_MODEL_LEN,
        "served-model-name": MODEL_NAME,
    }
    if bench.args.max_num_batched_tokens is not None:
        flags["max-num-batched-tokens"] = bench.args.max_num_batched_tokens
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    with started([str(bench.model), *words, "--no-access-log"]) as url:
        yield url


@contextmanager
def started(words: Sequence[str]) -> Iterator[str]:
    """A `quire serve` that says it serves; ended on leaving."""
    command = [sys.executable, "-m", "quire", "serve", *words, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        url = next(
            (match[1] for line in process.stderr or () if (match := re.search(r" at (http://\S+),", line))),
            "",
        )
        if not url:
            raise RuntimeError("the server did not start")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()


def cold_start_s() -> float:
    """Seconds from the command to the first token of `tiny`."""
    begin = time.perf_counter()
    with started(["tiny", "--served-model-name", MODEL_NAME]) as url:
        run_served(url, [Job([5, 6, 7], 1)], 1)
        return time.perf_counter() - begin


if __name__ == "__main__":
    main()
