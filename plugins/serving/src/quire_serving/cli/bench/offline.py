"""`quire bench latency` and `quire bench throughput`: the engine alone, in this process."""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from quire.api.commands import CommandTools
from quire.api.errors import ConfigError
from quire.api.request import SamplingParams
from quire_serving.cli.bench.report import print_summary, save_json
from quire_serving.cli.bench.statistics import percentile
from quire_serving.cli.bench.workloads import Ask, Lengths, random_ids, random_workload, sharegpt_workload
from quire_serving.cli.progress import progress

if TYPE_CHECKING:
    from quire import LLM

PERCENTS = (10, 50, 90, 99)


def run_latency(args: argparse.Namespace, tools: CommandTools) -> int:
    """Batches one after another; what each took, in seconds."""
    rng = random.Random(args.seed)
    params = SamplingParams(temperature=0.0, max_tokens=args.output_len, ignore_eos=True)
    times_s = []
    with _open(args, tools) as llm:
        vocab_size = llm.engine.describe().vocab_size
        with progress(args.num_iters_warmup + args.num_iters, "batches") as advance:
            for _ in range(args.num_iters_warmup + args.num_iters):
                # New prompts each time: the prefix cache would answer old ones.
                prompts = [random_ids(rng, args.input_len, vocab_size) for _ in range(args.batch_size)]
                start = time.perf_counter()
                llm.generate(prompts, params, use_tqdm=False)
                times_s.append(time.perf_counter() - start)
                advance()
    times_s = times_s[args.num_iters_warmup :]
    result: dict[str, object] = {"avg_latency": sum(times_s) / len(times_s)}
    result |= {f"p{percent}_latency": percentile(times_s, percent) for percent in PERCENTS}
    return _report("latency (s)", args, result, {"latencies": times_s})


def run_throughput(args: argparse.Namespace, tools: CommandTools) -> int:
    """All requests at once; the status is 1 when one failed."""
    if args.dataset_name == "sharegpt" and args.dataset_path is None:
        raise ConfigError("--dataset-name sharegpt needs --dataset-path FILE")
    rng = random.Random(args.seed)
    with _open(args, tools) as llm:
        if args.dataset_name == "sharegpt":
            asks = sharegpt_workload(rng, args.num_prompts, args.dataset_path, args.output_len)
        else:
            lengths = Lengths(args.input_len, args.output_len or 128)
            asks = random_workload(rng, args.num_prompts, lengths, llm.engine.describe().vocab_size)
        params = [
            SamplingParams(temperature=0.0, max_tokens=ask.num_output_tokens, ignore_eos=True) for ask in asks
        ]
        start = time.perf_counter()
        outputs = llm.generate(_prompts(asks), params, use_tqdm=False)
        duration_s = time.perf_counter() - start
    done = [output for output in outputs if output.error is None]
    num_input = sum(len(output.prompt_token_ids) for output in done)
    num_output = sum(len(output.outputs[0].token_ids) for output in done)
    result: dict[str, object] = {
        "elapsed_time": duration_s,
        "num_requests": len(done),
        "failed": len(outputs) - len(done),
        "total_num_tokens": num_input + num_output,
        "requests_per_second": len(done) / duration_s,
        "tokens_per_second": (num_input + num_output) / duration_s,
        "output_tokens_per_second": num_output / duration_s,
    }
    return _report("throughput", args, result, {})


def _prompts(asks: Sequence[Ask]) -> list[Any]:
    return [ask.prompt for ask in asks]


def _open(args: argparse.Namespace, tools: CommandTools) -> LLM:
    keywords: dict[str, Any] = tools.engine_keywords(args)
    keywords["model"] = tools.engine_config(args).model.model
    from quire import LLM

    return LLM(config_file=args.config, **keywords)


def _report(
    title: str, args: argparse.Namespace, result: Mapping[str, object], details: Mapping[str, object]
) -> int:
    print_summary(title, result, (), ())
    if args.output_json is not None:
        save_json(args.output_json, {**result, **details})
    return 1 if result.get("failed") else 0
