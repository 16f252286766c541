"""`quire bench serve`: load on any OpenAI-compatible server, and what came of it."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire.api.errors import ConfigError
from quire_serving.cli.bench.http_client import Endpoint, get
from quire_serving.cli.bench.load import Load, run_load
from quire_serving.cli.bench.plot import require_matplotlib, save_plot
from quire_serving.cli.bench.report import print_summary, save_json
from quire_serving.cli.bench.statistics import METRICS, RequestRecord, parse_goodput, summarize
from quire_serving.cli.bench.workloads import (
    Ask,
    Lengths,
    fixed_workload,
    random_workload,
    send_times,
    sharegpt_workload,
    trace_workload,
)
from quire_serving.cli.progress import progress
from quire_serving.cli.remote import ServerError, api_key_of

DEFAULT_NUM_PROMPTS = 100
DEFAULT_PATHS = {False: "/v1/completions", True: "/v1/chat/completions"}
DEFAULT_VOCAB_SIZE = 256
"""Where neither the server nor --vocab-size tells: every tokenizer has that many tokens."""


@dataclass(slots=True, frozen=True)
class ServedModel:
    """What /v1/models says of a model; None where it is silent."""

    name: str
    vocab_size: int | None


def run(args: argparse.Namespace) -> int:
    """Send the load and report; the status is 1 when a request failed."""
    goodput = parse_goodput(args.goodput or ())
    percents = _numbers(args.metric_percentiles)
    shown = _metric_names(args.percentile_metrics)
    _check(args)
    if args.plot is not None:
        require_matplotlib()
    result, records = asyncio.run(_bench(args, percents, goodput))
    print_summary("serving", result, shown, percents)
    if args.save_result or args.result_filename:
        save_json(_result_path(args), {**_settings(args), **result, "details": _details(records)})
    if args.plot is not None:
        save_plot(args.plot, result, records)
    for text in sorted({record.error for record in records if record.error})[:3]:
        print(f"quire: a request failed: {text}", file=sys.stderr)
    return 1 if result["failed"] else 0


async def _bench(
    args: argparse.Namespace, percents: list[float], goodput: Mapping[str, float]
) -> tuple[dict[str, object], list[RequestRecord]]:
    base = _base_url(args)
    key = api_key_of(args)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    model = await _served_model(f"{base}/v1/models", headers, args.model_name)
    rng = random.Random(args.seed)
    asks = _workload(args, rng, args.vocab_size or model.vocab_size or DEFAULT_VOCAB_SIZE)
    load = Load(
        Endpoint.of(base + (args.endpoint or DEFAULT_PATHS[_is_chat(args)]), headers),
        model.name,
        is_chat=_is_chat(args),
        ignore_eos=args.ignore_eos,
        temperature=args.temperature,
        max_concurrency=args.max_concurrency,
    )
    times_s = send_times(rng, asks, args.request_rate, args.burstiness)
    warmup = asks[:1] * args.num_warmups
    for record in await run_load(load, warmup, [0.0] * len(warmup), lambda _: None):
        if record.error:
            raise ServerError(f"a request to warm up failed: {record.error}")
    cpu_s, start = time.process_time(), time.perf_counter()
    with progress(len(asks), "requests", is_shown=not args.disable_tqdm) as advance:
        records = await run_load(load, asks, times_s, lambda _: advance())
    result = summarize(records, time.perf_counter() - start, percents, goodput)
    result["client_cpu_s"] = time.process_time() - cpu_s
    num_chunks = sum(len(record.arrivals_s) for record in records)
    result["client_cpu_us_per_chunk"] = 1e6 * (time.process_time() - cpu_s) / max(1, num_chunks)
    return {"model": model.name, **result}, records


def _base_url(args: argparse.Namespace) -> str:
    host = f"[{args.host}]" if ":" in args.host else args.host
    return (args.base_url or f"http://{host}:{args.port}").rstrip("/").removesuffix("/v1")


def _is_chat(args: argparse.Namespace) -> bool:
    return bool(args.backend == "openai-chat")


async def _served_model(url: str, headers: Mapping[str, str], name: str | None) -> ServedModel:
    try:
        models = json.loads(await get(Endpoint.of(url, headers)))["data"]
        entry: dict[str, Any] = next((model for model in models if name in (None, model["id"])), {"id": name})
    except OSError as error:
        raise ServerError(f"no answer from {url} ({error}): is the server up?") from None
    except (ValueError, KeyError, TypeError):
        raise ServerError(f"{url} did not answer with a list of models: is the URL right?") from None
    if entry["id"] is None:
        raise ServerError(f"{url} names no model: give --model")
    return ServedModel(str(entry["id"]), entry.get("vocab_size"))


def _workload(args: argparse.Namespace, rng: random.Random, vocab_size: int) -> list[Ask]:
    name = args.dataset_name
    if name == "trace":
        return trace_workload(rng, args.num_prompts, args.dataset_path, vocab_size)
    count = args.num_prompts or DEFAULT_NUM_PROMPTS
    if name == "sharegpt":
        return sharegpt_workload(rng, count, args.dataset_path, args.output_len)
    if name == "fixed":
        return fixed_workload(count, args.dataset_path, args.output_len or 128)
    lengths = Lengths(args.input_len, args.output_len or 128, args.range_ratio, args.prefix_len)
    asks = random_workload(rng, count, lengths, vocab_size)
    return [_as_text(ask) for ask in asks] if _is_chat(args) else asks


def _as_text(ask: Ask) -> Ask:
    """Chat takes no token ids: a word for each, about as many tokens."""
    words = " ".join(f"{token_id % 10}" for token_id in ask.prompt)
    return Ask(words, ask.num_output_tokens, ask.timestamp_s)


def _check(args: argparse.Namespace) -> None:
    if args.dataset_name != "random" and args.dataset_path is None:
        raise ConfigError(f"--dataset-name {args.dataset_name} needs --dataset-path FILE")
    if args.dataset_name == "trace" and _is_chat(args):
        raise ConfigError("--dataset-name trace sends token ids: it needs --backend openai")
    if args.endpoint is not None and not args.endpoint.startswith("/"):
        raise ConfigError(f"--endpoint {args.endpoint!r}: give a path, as /v1/completions")
    for flag, value in (("--request-rate", args.request_rate), ("--burstiness", args.burstiness)):
        if not value > 0:
            raise ConfigError(f"{flag} {value}: give a number above 0")
    if not 0 <= args.range_ratio < 1:
        raise ConfigError(f"--range-ratio {args.range_ratio}: give a number in [0, 1)")


def _numbers(text: str) -> list[float]:
    try:
        values = [float(word) for word in text.split(",")]
    except ValueError:
        values = [-1.0]
    if not all(0 <= value <= 100 for value in values):
        raise ConfigError(f"--metric-percentiles {text!r}: give numbers from 0 to 100, as 50,90,99")
    return values


def _metric_names(text: str) -> list[str]:
    names = text.split(",")
    unknown = next((name for name in names if name not in METRICS), None)
    if unknown is not None:
        raise ConfigError(f"--percentile-metrics {unknown!r}: give some of {','.join(METRICS)}")
    return names


def _result_path(args: argparse.Namespace) -> Path:
    name = args.result_filename or f"bench-serve-{time.strftime('%Y%m%d-%H%M%S')}.json"
    folder: Path = args.result_dir
    return folder / name


def _settings(args: argparse.Namespace) -> dict[str, object]:
    hidden = {"command", "api_key", "debug", "version"}
    return {name: value for name, value in vars(args).items() if name not in hidden}


def _details(records: list[RequestRecord]) -> list[dict[str, object]]:
    return [
        {
            "start_s": record.start_s,
            "num_prompt_tokens": record.num_prompt_tokens,
            "num_output_tokens": record.num_output_tokens,
            "error": record.error,
            **record.latencies_ms(),
        }
        for record in records
    ]
