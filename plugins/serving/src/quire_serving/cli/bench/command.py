"""`quire bench`: how fast an engine or a server is."""

from __future__ import annotations

import argparse
import math
from importlib import import_module
from pathlib import Path

from quire.api.commands import CommandTools

SERVE = "put load on a running OpenAI-compatible server; exit status 1 when a request failed"


class BenchCommand:
    """One of three benchmarks."""

    def __init__(self, tools: CommandTools) -> None:
        self._tools = tools
        self._parser: argparse.ArgumentParser | None = None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """A parser for each benchmark."""
        self._parser = parser
        kinds = parser.add_subparsers(dest="bench", metavar="KIND")
        for name, text, declare in (
            ("latency", "time single batches of random prompts, in this process", _add_latency),
            ("throughput", "time many requests at once, in this process", _add_throughput),
        ):
            kind = kinds.add_parser(name, help=text, description=f"{text.capitalize()}.", allow_abbrev=False)
            declare(kind)
            kind.add_argument("--output-json", type=Path, metavar="FILE", help="write the figures there, too")
            kind.add_argument("--seed", type=int, default=0, metavar="N", help="of the prompts (default: 0)")
            self._tools.add_engine_flags(kind)
        serve = kinds.add_parser(
            "serve", help=SERVE, description=f"{SERVE.capitalize()}.", allow_abbrev=False
        )
        _add_target(serve)
        _add_load(serve)
        _add_report(serve)

    def run(self, args: argparse.Namespace) -> int:
        """Run it; the status is 1 when a request failed."""
        if args.bench is None:
            if self._parser is not None:
                self._parser.print_help()
            return 2
        if args.bench == "serve":
            status: int = import_module("quire_serving.cli.bench.serve").run(args)
        else:
            offline = import_module("quire_serving.cli.bench.offline")
            status = getattr(offline, f"run_{args.bench}")(args, self._tools)
        return status


def positive(text: str) -> int:
    """An argument above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _add_latency(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input-len", type=positive, default=32, metavar="N", help="(default: 32)")
    parser.add_argument("--output-len", type=positive, default=128, metavar="N", help="(default: 128)")
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help="(default: 8)")
    parser.add_argument("--num-iters", type=positive, default=10, metavar="N", help="(default: 10)")
    parser.add_argument("--num-iters-warmup", type=int, default=2, metavar="N", help="(default: 2)")


def _add_throughput(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset-name", choices=("random", "sharegpt"), default="random", help="(default: random)"
    )
    parser.add_argument("--dataset-path", type=Path, metavar="FILE", help="JSON in ShareGPT's form")
    parser.add_argument("--num-prompts", type=positive, default=100, metavar="N", help="(default: 100)")
    parser.add_argument("--input-len", type=positive, default=128, metavar="N", help="(default: 128)")
    parser.add_argument(
        "--output-len", type=positive, metavar="N", help="(default: 128; the answer's length with sharegpt)"
    )


def _add_target(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("server")
    group.add_argument("--base-url", metavar="URL", help="of the server, instead of --host and --port")
    group.add_argument("--host", default="127.0.0.1", help="(default: 127.0.0.1)")
    group.add_argument("--port", type=int, default=8000, metavar="N", help="(default: 8000)")
    group.add_argument("--api-key", metavar="KEY", help="(default: QUIRE_API_KEY, OPENAI_API_KEY)")
    group.add_argument("--model-name", metavar="NAME", help="(default: the server's first)")
    group.add_argument(
        "--endpoint", choices=("completions", "chat"), default="completions", help="(default: completions)"
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
    add("--num-prompts", type=positive, default=100, metavar="N", help="(default: 100)")
    add("--num-warmups", type=int, default=1, metavar="N", help="requests sent before (default: 1)")
    add("--input-len", type=positive, default=128, metavar="N", help="of random prompts (default: 128)")
    add("--output-len", type=positive, metavar="N", help="(default: 128; the answer's length with sharegpt)")
    add("--range-ratio", type=float, default=0.0, metavar="X", help="spread of random lengths (default: 0)")
    add("--prefix-len", type=int, default=0, metavar="N", help="tokens that prompts share (default: 0)")
    add(
        "--vocab-size", type=positive, metavar="N", help="of random token ids (default: the server's, or 256)"
    )
    add(
        "--request-rate",
        type=float,
        default=math.inf,
        metavar="X",
        help="requests per second (default: inf, all at once)",
    )
    add(
        "--burstiness",
        type=float,
        default=1.0,
        metavar="X",
        help="shape of the gamma distribution of gaps: 1 is Poisson, below comes in bursts (default: 1)",
    )
    add("--max-concurrency", type=positive, metavar="N", help="most requests under way (default: no bound)")
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
