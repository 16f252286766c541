"""The server beside the offline engine: tokens per second of streams, time to first token, cold start."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
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
    parser.add_argument(
        "--peer",
        metavar="COMMAND",
        help="another server, measured in turns: its command, with {model}, {name}, {port}, {clients}, {length}",
    )
    args = parser.parse_args()
    bench = Bench.start("serving", args)
    figures: defaultdict[str, list[float]] = defaultdict(list)
    for repeat in range(args.repeats):
        jobs = sharegpt_like(bench.shape.vocab, repeat, args.requests)
        measure_offline(bench, jobs, figures)
        with server(bench) as url:
            measure_served("served", bench, url, jobs, figures)
        figures["served_by_offline"].append(figures["served"][-1] / figures["offline"][-1])
        if args.peer is not None:
            with peer_server(bench) as url:
                measure_served("peer", bench, url, jobs, figures)
        figures["cold_start"].append(cold_start_s())
    extra_s = statistics.median(figures["served_first"]) - statistics.median(figures["offline_first"])
    results: dict[str, object] = {"served_by_offline": spread(figures["served_by_offline"], 3)}
    for who in ("offline", "served", "peer"):
        if figures[who]:
            results[f"{who}_tokens_per_s"] = spread(figures[who], 1)
            results[f"{who}_idle_ttft_s"] = spread(figures[f"{who}_first"])
    results |= {
        "idle_ttft_over_offline_ms": round(1000 * extra_s, 2),
        "client_cpu_cores": spread(figures["served_client_cpu"], 3),
        "cold_start_to_first_token_s": spread(figures["cold_start"], 2),
    }
    bench.write(results)


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


def idle_jobs(bench: Bench) -> list[Job]:
    """Jobs that come alone, for the time of their first token."""
    return [single(bench.shape.vocab, number, 64, 16) for number in range(20)]


def measure_offline(bench: Bench, jobs: Sequence[Job], figures: dict[str, list[float]]) -> None:
    """The engine without a server: tokens per second, and first tokens of jobs that come alone."""
    with bench.open_llm(
        max_num_seqs=bench.args.clients, max_model_len=MAX_MODEL_LEN, skip_tokenizer_init=False
    ) as llm:
        run_offline(llm, jobs[: bench.args.clients])
        figures["offline_first"] += [first_token_s(llm, job) for job in idle_jobs(bench)]
        llm.reset_prefix_cache()
        figures["offline"].append(tokens(jobs) / run_offline(llm, jobs))


def measure_served(
    who: str, bench: Bench, url: str, jobs: Sequence[Job], figures: dict[str, list[float]]
) -> None:
    """The same through a server, with one stream a job; and the CPU cores that the clients took."""
    num_clients = bench.args.clients
    run_served(url, jobs[:num_clients], num_clients)
    records = [run_served(url, [job], 1)[0] for job in idle_jobs(bench)]
    figures[f"{who}_first"] += [record.arrivals_s[0] for record in records if record.arrivals_s]
    reset_prefix_cache(url)
    cpu_s, begin = time.process_time(), time.perf_counter()
    run_served(url, jobs, num_clients)
    wall_s = time.perf_counter() - begin
    figures[who].append(tokens(jobs) / wall_s)
    figures[f"{who}_client_cpu"].append((time.process_time() - cpu_s) / wall_s)


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


@contextmanager
def peer_server(bench: Bench) -> Iterator[str]:
    """The other server, once it answers; its URL."""
    import httpx

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    values = {"model": bench.model, "name": MODEL_NAME, "port": port, "length": MAX_MODEL_LEN}
    words = shlex.split(bench.args.peer.format(clients=bench.args.clients, **values))
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        while True:
            with suppress(httpx.TransportError):
                if httpx.get(f"{url}/v1/models").is_success:
                    break
            if process.poll() is not None:
                raise RuntimeError(f"{words[0]} ended with status {process.returncode}")
            time.sleep(0.5)
        yield url
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def cold_start_s() -> float:
    """Seconds from the command to the first token of `tiny`."""
    begin = time.perf_counter()
    with started(["tiny", "--served-model-name", MODEL_NAME]) as url:
        run_served(url, [Job([5, 6, 7], 1)], 1)
        return time.perf_counter() - begin


if __name__ == "__main__":
    main()
