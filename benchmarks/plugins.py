"""What plugins cost: steps of `tiny` with none, with an observer, with a policy, with a logits processor."""

from __future__ import annotations

import argparse
import datetime
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from torch import Tensor

from common import RESULTS, commit
from quire import LLM, SamplingParams
from quire.api.extensions import EngineObserver, ExtensionContext, LogitsProcessor, RequestView, StepReport
from quire.api.hookspecs import hookimpl
from quire.api.specs import LogitsProcessorSpec, PluginInfo, PolicySpec
from quire.cli.collect_env import environment
from quire.plugins import PluginHost

VARIANTS = ("none", "observer", "policy", "processor for 1 of 32", "processor for all")


class CountingObserver(EngineObserver):
    """Counts steps."""

    def __init__(self) -> None:
        self.steps = 0

    def step_finished(self, step: StepReport) -> None:
        self.steps += 1


class LastComeLast:
    """First come, first served, as a plugin's policy."""

    def __init__(self, context: ExtensionContext) -> None:
        pass

    def key(self, request: RequestView, arrival_index: int) -> tuple[float, ...]:
        return (arrival_index,)


class Identity:
    """Changes nothing."""

    def __init__(self, context: ExtensionContext) -> None:
        pass

    def for_request(self, arguments: object, params: SamplingParams) -> LogitsProcessor:
        return self

    def __call__(
        self, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int], logits: Tensor
    ) -> Tensor:
        return logits


def make_plugin(*, has_observer: bool) -> ModuleType:
    """A plugin with a policy, a logits processor and, where asked for, an observer."""
    plugin = ModuleType("benchmark_plugin")

    @hookimpl
    def quire_plugin_info() -> PluginInfo:
        return PluginInfo(api=">=1,<2")

    @hookimpl
    def quire_register_policies() -> list[PolicySpec]:
        return [PolicySpec("last-come-last", LastComeLast)]

    @hookimpl
    def quire_register_logits_processors() -> list[LogitsProcessorSpec]:
        return [LogitsProcessorSpec("identity", Identity)]

    @hookimpl
    def quire_create_observers() -> list[EngineObserver]:
        return [CountingObserver()] if has_observer else []

    for hook in (
        quire_plugin_info,
        quire_register_policies,
        quire_register_logits_processors,
        quire_create_observers,
    ):
        setattr(plugin, hook.__name__, hook)
    return plugin


def step_seconds(variant: str, num_tokens: int) -> float:
    """Median time of a decode step with 32 requests."""
    host = PluginHost.discover(extra_plugins=[make_plugin(has_observer=variant == "observer")])
    policy = "last-come-last" if variant == "policy" else "fcfs"
    with LLM("tiny", host=host, max_num_seqs=32, max_model_len=512, scheduling_policy=policy) as llm:
        draw, engine = random.Random(0), llm.engine
        for index in range(32):
            is_processed = variant == "processor for all" or (variant.startswith("processor") and index == 0)
            params = SamplingParams(
                temperature=0.0,
                max_tokens=num_tokens + 16,
                ignore_eos=True,
                extra_args={"identity": {}} if is_processed else None,
            )
            engine.add_request([draw.randrange(3, 1000) for _ in range(64)], params)
        times = []
        for step in range(num_tokens):
            begin = time.perf_counter()
            engine.step()
            if step >= 8:
                times.append(time.perf_counter() - begin)
    return statistics.median(times)


def main() -> None:
    """Measure the variants in turn, several times, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="rounds over all variants (default: 5)")
    parser.add_argument("--tokens", type=int, default=200, help="steps of a round (default: 200)")
    parser.add_argument("--output", type=Path, default=RESULTS / "plugins.json")
    args = parser.parse_args()
    found: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for _ in range(args.repeats):
        for variant in VARIANTS:
            found[variant].append(step_seconds(variant, args.tokens))
    base = statistics.median(found["none"])
    results = {
        variant: {
            "step_us": round(statistics.median(times) * 1e6, 1),
            "over_none": round(statistics.median(times) / base, 4),
        }
        for variant, times in found.items()
    }
    record = {
        "benchmark": "plugins",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "settings": {"repeats": args.repeats, "tokens": args.tokens, "requests": 32},
        "results": results,
        "environment": environment(),
    }
    for variant, figures in results.items():
        print(f"{variant:24} {figures}")
    args.output.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written: {args.output}", file=sys.stderr)


if __name__ == "__main__":
    main()
