"""Speculation: tokens per second with each drafter against without, by workload and running requests.

The embedded model `tiny` on three workloads, and shape S (random weights) on random tokens for what steps
cost. Drafters and no drafter take turns on the same requests. For `draft-model` there is no smaller model:
the first layer of the model drafts, which shows what drafting so costs, not what a trained one would give.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count, product
from pathlib import Path

from common import Bench, argument_parser
from quire import LLM, Tokenizer
from quire.plugins import PluginHost
from speculative_extras import agreement, compare_with_transformers, propose_cost
from speculative_runs import PLAIN, Tally, interleaved, run_asks
from speculative_workloads import MAX_MODEL_LEN, TINY, WORKLOADS, Ask, copying, one_layer_of, random_tokens

MODELS = ("tiny", "S")
DRAFTERS = ("ngram", "suffix", "draft-model")
CONCURRENCY = (1, 4, 16, 64)
EXTRAS = ("compare_hf", "propose_cost", "agreement")


def main() -> None:
    """Measure and write the record."""
    args = _arguments()
    bench = Bench.start("speculative", args)
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for model in args.models if args.tables else ():
            for name, cells in _measure(bench, model, Path(scratch)).items():
                results[f"{model} {name}"] = cells
    if args.compare_hf:
        results["transformers"] = _compare_hf(bench)
    if args.propose_cost:
        looked_up = [name for name in args.drafters if name != "draft-model"]
        results["propose_cost"] = propose_cost(bench, looked_up, args.num_drafts)
    if args.agreement:
        results["agreement"] = agreement()
    bench.write(results)


def _arguments() -> argparse.Namespace:
    parser = argument_parser(str(__doc__))
    known = PluginHost.discover().drafters
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--drafters", "--drafter", nargs="+", default=[d for d in DRAFTERS if d in known])
    parser.add_argument(
        "--workloads", "--workload", nargs="+", choices=tuple(WORKLOADS), default=tuple(WORKLOADS)
    )
    parser.add_argument("--concurrency", nargs="+", type=int, default=CONCURRENCY)
    parser.add_argument("--rounds", type=int, default=3, help="sets of engines (default: 3)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=3.0,
        help="least of a cell's runs without drafts (default: 3)",
    )
    parser.add_argument("--num-drafts", type=int, default=5, help="num_speculative_tokens (default: 5)")
    parser.add_argument("--adaptive", choices=("both", "on", "off"), default="both")
    parser.add_argument("--propose-cost", action="store_true", help="time proposing for 64 requests")
    parser.add_argument(
        "--agreement", action="store_true", help="how often the same noise draws the same token"
    )
    parser.add_argument(
        "--tables", action="store_true", help="the tables too, where one of the others is asked for"
    )
    args = parser.parse_args()
    if unknown := sorted(set(args.drafters) - set(known)):
        parser.error(
            f"--drafters: {', '.join(unknown)} is not registered; there are {', '.join(sorted(known))}"
        )
    if args.rounds < 1:
        parser.error(f"--rounds {args.rounds}: give at least 1")
    args.tables = args.tables or not any(getattr(args, name) for name in EXTRAS)
    return args


def _measure(bench: Bench, model: str, scratch: Path) -> dict[str, object]:
    """The tables of a model: by whether drafts are adaptive, workload and concurrency, each drafter's figures.

    Each round has engines of its own: where the memory of one comes to lie may make it faster or slower.
    """
    args = bench.args
    vocab = 1024 if model == "tiny" else bench.shape.vocab
    cells = list(product(args.workloads if model == "tiny" else ["random"], args.concurrency))
    tallies: dict[tuple[str, int], dict[str, Tally]] = {cell: defaultdict(Tally) for cell in cells}
    seeds = count()
    for number in range(args.rounds):
        print(f"{model}: round {number + 1} of {args.rounds}", file=sys.stderr)
        with _engines(bench, model, scratch) as engines:
            tokenizer = engines[PLAIN].get_tokenizer() if model == "tiny" else None
            for llm in engines.values():
                run_asks(llm, random_tokens(None, vocab, 4, 999), 4)
            for workload, concurrency in cells:
                interleaved(
                    engines,
                    partial(_asks, workload, tokenizer, vocab, max(6, 2 * concurrency), seeds),
                    concurrency,
                    args.seconds / args.rounds,
                    tallies[workload, concurrency],
                )
    tables: dict[str, dict[str, object]] = {}
    for (workload, concurrency), variants in tallies.items():
        for variant, tally in variants.items():
            cell = f"{workload} at {concurrency}: {variant}"
            figures = tally.to_json()
            print(f"{model:5} {cell:36} {_line(figures)}", file=sys.stderr)
            kind = "adaptive" if not variant.endswith("fixed") else "not adaptive"
            tables.setdefault(kind, {})[cell] = figures
    return dict(tables)


def _asks(
    workload: str, tokenizer: Tokenizer | None, vocab: int, num_asks: int, seeds: Iterator[int]
) -> list[Ask]:
    """Requests that nobody has seen before."""
    return WORKLOADS[workload](tokenizer, vocab, num_asks, next(seeds))


@contextmanager
def _engines(bench: Bench, model: str, scratch: Path) -> Iterator[Mapping[str, LLM]]:
    """One engine without drafts, and one for each drafter and way."""
    args = bench.args
    folder = TINY if model == "tiny" else bench.model
    with ExitStack() as stack:
        engines = {PLAIN: stack.enter_context(_open(bench, model, None))}
        for drafter in args.drafters:
            for name, is_adaptive in _ways(drafter, args.adaptive, model):
                config: dict[str, object] = {
                    "method": drafter, "num_speculative_tokens": args.num_drafts, "adaptive": is_adaptive
                }  # fmt: skip
                if drafter == "draft-model":
                    config["model"] = str(one_layer_of(folder, scratch / model))
                engines[name] = stack.enter_context(_open(bench, model, config))
        yield engines


def _ways(drafter: str, asked: str, model: str) -> Sequence[tuple[str, bool]]:
    """Names and `adaptive`; of shape S, whose steps take long, one of them."""
    ways = [(drafter, True), (f"{drafter}, fixed", False)]
    if model == "S" and asked == "both":
        asked = "on"
    return [way for way in ways if asked == "both" or way[1] == (asked == "on")]


def _open(bench: Bench, model: str, config: Mapping[str, object] | None) -> LLM:
    settings: dict[str, object] = {} if model == "S" else {"model": str(TINY), "skip_tokenizer_init": False}
    if config is not None:
        settings["speculative_config"] = dict(config)
    return bench.open_llm(max_num_seqs=max(bench.args.concurrency), max_model_len=MAX_MODEL_LEN, **settings)


def _compare_hf(bench: Bench) -> dict[str, object]:
    config = {"method": "ngram", "num_speculative_tokens": bench.args.num_drafts}
    with _open(bench, "tiny", None) as plain, _open(bench, "tiny", config) as drafted:
        tokenizer = plain.get_tokenizer()
        rounds = [copying(tokenizer, 1024, 6, number) for number in range(bench.args.rounds)]
        return compare_with_transformers(plain, drafted, rounds, bench.args.num_drafts)


def _line(figures: Mapping[str, object]) -> str:
    names = ("tokens_per_s", "ratio")
    medians = [f"{name} {figures[name]['median']}" for name in names]  # type: ignore[index]  # of `spread`
    others = [f"{name} {value}" for name, value in figures.items() if name not in names]
    return "  ".join(medians + others)


if __name__ == "__main__":
    main()
