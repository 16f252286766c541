"""`quire bench`: how fast an engine or a server is."""

from __future__ import annotations

import argparse
import math
from importlib import import_module
from pathlib import Path

from quire.api.commands import CommandTools
from quire_serving.cli.remote import at_least, port

SERVE = "put load on a running OpenAI-compatible server; exit status 1 when a request failed"


class BenchCommand:
    """One of three benchmarks."""

    def __init__(self, tools: CommandTools) -> None:
        self._tools = tools

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """A parser for each benchmark."""
        kinds = parser.add_subparsers(dest="bench", metavar="KIND", required=True)
        for name, text, declare in (
            ("latency", "time single batches of random prompts, in this process", _add_latency),
            ("throughput", "time many requests at once, in this process", _add_throughput),
        ):
            kind = kinds.add_parser(name, help=text, description=f"{text[:1].upper()}{text[1:]}.")
            declare(kind)
            kind.add_argument("--output-json", type=Path, metavar="FILE", help="write the figures there, too")
            kind.add_argument("--seed", type=int, default=0, metavar="N", help="of the prompts (default: 0)")
            self._tools.add_engine_flags(kind)
        serve = kinds.add_parser("serve", help=SERVE, description=f"{SERVE[:1].upper()}{SERVE[1:]}.")
        _add_target(serve)
        _add_load(serve)
        _add_report(serve)

    def run(self, args: argparse.Namespace) -> int:
        """Run it; the status is 1 when a request failed."""
        if args.bench == "serve":
            status: int = import_module("quire_serving.cli.bench.serve").run(args)
        else:
            offline = import_module("quire_serving.cli.bench.offline")
            status = getattr(offline, f"run_{args.bench}")(args, self._tools)
        return status


def _add_latency(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input-len", type=at_least(1), default=32, metavar="N", help="tokens of a prompt (default: 32)"
    )
    parser.add_argument(
        "--output-len", type=at_least(1), default=128, metavar="N", help="tokens of an answer (default: 128)"
    )
    parser.add_argument(
        "--batch-size", type=at_least(1), default=8, metavar="N", help="prompts at once (default: 8)"
    )
    parser.add_argument(
        "--num-iters", type=at_least(1), default=10, metavar="N", help="batches that count (default: 10)"
    )
    parser.add_argument(
        "--num-iters-warmup", type=at_least(0), default=2, metavar="N", help="batches before (default: 2)"
    )


def _add_throughput(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--dataset-name",
        choices=("random", "sharegpt"),
        default="random",
        help="random token ids, or conversations (default: random)",
    )
    add("--dataset-path", type=Path, metavar="FILE", help="JSON in ShareGPT's form")
    add("--num-prompts", type=at_least(1), default=100, metavar="N", help="how many requests (default: 100)")
    _add_lengths(parser)


def _add_lengths(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--random-input-len",
        "--input-len",
        dest="input_len",
        type=at_least(1),
        default=128,
        metavar="N",
        help="tokens of random prompts (default: 128)",
    )
    parser.add_argument(
        "--random-output-len",
        "--output-len",
        dest="output_len",
        type=at_least(1),
        metavar="N",
        help="most tokens of an answer (default: 128; with sharegpt as long as the answer there)",
    )


def _add_target(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("server")
    group.add_argument("--base-url", metavar="URL", help="of the server, instead of --host and --port")
    group.add_argument(
        "--host", default="127.0.0.1", metavar="NAME", help="the server's (default: 127.0.0.1)"
    )
    group.add_argument("--port", type=port, default=8000, metavar="N", help="the server's (default: 8000)")
    group.add_argument(
        "--api-key", metavar="KEY", help="what the server asks for (default: QUIRE_API_KEY, OPENAI_API_KEY)"
    )
    group.add_argument(
        "--model",
        "--model-name",
        dest="model_name",
        metavar="NAME",
        help="the model in requests (default: the server's first)",
    )
    group.add_argument(
        "--backend",
        choices=("openai", "vllm", "openai-chat"),
        default="openai",
        help="what is asked: completions of texts (openai, vllm) or chats (default: openai)",
    )
    group.add_argument(
        "--endpoint",
        metavar="PATH",
        help="where requests go (default: /v1/completions, or /v1/chat/completions)",
    )


def _add_load(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("load")
    add = group.add_argument
    add(
        "--dataset-name",
        choices=("random", "sharegpt", "fixed", "trace"),
        default="random",
        help="random token ids; conversations; lines of a file; a trace (default: random)",
    )
    add(
        "--dataset-path",
        type=Path,
        metavar="FILE",
        help="of sharegpt (JSON), fixed (text), trace (JSON lines)",
    )
    add(
        "--num-prompts",
        type=at_least(1),
        metavar="N",
        help="how many requests (default: 100; of a trace all that it holds)",
    )
    add("--num-warmups", type=at_least(0), default=1, metavar="N", help="requests sent before (default: 1)")
    _add_lengths(group)
    add(
        "--random-range-ratio",
        "--range-ratio",
        dest="range_ratio",
        type=float,
        default=0.0,
        metavar="X",
        help="lengths of random prompts and answers vary by this share, below 1 (default: 0)",
    )
    add(
        "--random-prefix-len",
        "--prefix-len",
        dest="prefix_len",
        type=at_least(0),
        default=0,
        metavar="N",
        help="tokens that all random prompts begin with, before --random-input-len (default: 0)",
    )
    add(
        "--vocab-size",
        type=at_least(1),
        metavar="N",
        help="of random token ids (default: the server's, or 256)",
    )
    add(
        "--request-rate",
        type=float,
        default=math.inf,
        metavar="X",
        help="requests per second; a trace brings its own times (default: inf, all at once)",
    )
    add(
        "--burstiness",
        type=float,
        default=1.0,
        metavar="X",
        help="shape of the gamma distribution of gaps: 1 is Poisson, below comes in bursts (default: 1)",
    )
    add(
        "--max-concurrency", type=at_least(1), metavar="N", help="most requests under way (default: no bound)"
    )
    add("--ignore-eos", action="store_true", help="have outputs as long as asked for")
    add("--temperature", type=float, default=0.0, metavar="X", help="(default: 0)")
    add("--seed", type=int, default=0, metavar="N", help="of prompts and times (default: 0)")


def _add_report(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("report")
    add = group.add_argument
    add(
        "--goodput",
        nargs="+",
        metavar="METRIC:MS",
        help="count requests within limits, as ttft:200 tpot:50 e2el:1000",
    )
    add(
        "--percentile-metrics",
        default="ttft,tpot,itl,e2el",
        metavar="NAMES",
        help="what the table shows (default: ttft,tpot,itl,e2el)",
    )
    add("--metric-percentiles", default="50,90,99", metavar="NUMBERS", help="(default: 50,90,99)")
    add("--save-result", action="store_true", help="write the figures to a JSON file")
    add("--result-dir", type=Path, default=Path(), metavar="DIR", help="(default: the working directory)")
    add("--result-filename", metavar="NAME", help="(default: made of the time)")
    add("--plot", type=Path, metavar="FILE", help="draw latencies as a PNG; needs the extra `plot`")
    add("--disable-tqdm", action="store_true", help="show no progress bar")
