"""The engine's counters, under vLLM's names with Quire's prefix."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from quire.api.outputs import Metric, SpeculationMetrics
from quire.api.step import StepPlan
from quire.engine.totals import ended_requests
from quire.execution.runner import RunnerTimes
from quire.kvcache.allocation import KVCacheUsage
from quire.scheduling.plan import SchedulerStats

PREFIX = "quire:"
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""vLLM's buckets of tokens per step."""


@dataclass(slots=True)
class EngineStatistics:
    """Counted since the engine was built.

    Attributes:
        num_prefill_chunks: plan rows that computed more than one token, or no sampled one.
        max_batch_rows: most requests in one step.
        kv_slots_allocated, kv_slots_wasted: summed over steps.
        step_tokens: steps by bucket of the tokens that they computed.
    """

    num_requests: int = 0
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_prefill_chunks: int = 0
    max_batch_rows: int = 0
    kv_slots_allocated: int = 0
    kv_slots_wasted: int = 0
    schedule_s: float = 0.0
    update_s: float = 0.0
    emit_s: float = 0.0
    step_tokens: list[int] = field(default_factory=lambda: [0] * (len(_STEP_TOKENS) + 1))
    finished: Counter[str] = field(default_factory=Counter)

    def add_prompt(self, num_tokens: int) -> None:
        """A request was accepted."""
        self.num_requests += 1
        self.num_prompt_tokens += num_tokens

    def remove_prompt(self, num_tokens: int) -> None:
        """A request that was accepted is counted elsewhere."""
        self.num_requests -= 1
        self.num_prompt_tokens -= num_tokens

    def add_generated(self, num_tokens: int) -> None:
        """Tokens were sampled."""
        self.num_generated_tokens += num_tokens

    def add_finished(self, reason: str) -> None:
        """A request ended."""
        self.finished[reason] += 1

    def add_step(self, plan: StepPlan, usage: KVCacheUsage, block_size: int) -> None:
        """A step ran."""
        self.num_prefill_chunks += sum(
            row.num_tokens - row.num_drafts > 1 or not row.is_sampled for row in plan.rows
        )
        self.step_tokens[bisect_left(_STEP_TOKENS, sum(row.num_tokens for row in plan.rows))] += 1
        self.max_batch_rows = max(self.max_batch_rows, len(plan.rows))
        self.kv_slots_allocated += usage.num_used_blocks * block_size
        self.kv_slots_wasted += usage.num_wasted_slots

    def add_times(self, schedule_s: float, update_s: float, emit_s: float) -> None:
        """Where a step's time outside the executor went."""
        self.schedule_s += schedule_s
        self.update_s += update_s
        self.emit_s += emit_s

    def metrics(self, scheduler: SchedulerStats, usage: KVCacheUsage, times: RunnerTimes) -> list[Metric]:
        """All figures of now."""
        counters: dict[str, tuple[float, str]] = {
            "num_requests": (self.num_requests, "requests accepted"),
            "prompt_tokens": (self.num_prompt_tokens, "prompt tokens of accepted requests"),
            "generation_tokens": (self.num_generated_tokens, "tokens sampled"),
            "num_steps": (scheduler.num_steps, "steps planned"),
            "num_scheduled_tokens": (scheduler.num_scheduled_tokens, "tokens computed"),
            "num_prefill_chunks": (self.num_prefill_chunks, "rows that computed part of a prompt"),
            "num_preemptions": (scheduler.num_preemptions, "times a running request lost its blocks"),
            "num_forks": (scheduler.num_forks, "choices that took over their prompt's blocks"),
            "prefix_cache_queries": (scheduler.num_query_tokens, "tokens looked up in the prefix cache"),
            "prefix_cache_hits": (scheduler.num_hit_tokens, "tokens found in the prefix cache"),
            "kv_slots_allocated": (self.kv_slots_allocated, "KV slots held by requests, summed over steps"),
            "kv_slots_wasted": (self.kv_slots_wasted, "of these, slots that no token used"),
            "schedule_seconds": (self.schedule_s, "time in planning"),
            "update_seconds": (self.update_s, "time in taking in results"),
            "emit_seconds": (self.emit_s, "time in detokenizing and handing out"),
            "build_seconds": (times.build_s, "time in building batches"),
            "forward_seconds": (times.forward_s, "time in the model"),
            "sample_seconds": (times.sample_s, "time in sampling and logprobs"),
        }
        gauges: dict[str, tuple[float, str]] = {
            "num_requests_running": (scheduler.num_running, "requests that have a slot"),
            "num_requests_waiting": (scheduler.num_waiting, "requests that wait for one"),
            "max_batch_rows": (self.max_batch_rows, "most requests in one step so far"),
            "num_kv_blocks": (usage.num_blocks, "KV blocks"),
            "kv_cache_usage_perc": (
                usage.num_used_blocks / usage.num_blocks,
                "share of KV blocks in use, 0 to 1",
            ),
            "kv_blocks_cached": (usage.num_cached_blocks, "KV blocks that the prefix cache lists"),
            "kv_blocks_cached_free": (usage.num_cached_free_blocks, "of these, held by no request"),
        }
        listed = [Metric(PREFIX + name, value, "counter", text) for name, (value, text) in counters.items()]
        listed += [Metric(PREFIX + name, value, "gauge", text) for name, (value, text) in gauges.items()]
        listed += _step_tokens(self.step_tokens, scheduler.num_scheduled_tokens)
        if scheduler.speculation is not None:
            listed += _speculation(scheduler.speculation)
        return listed + ended_requests(self.finished)


def _step_tokens(counts: Sequence[int], total: int) -> list[Metric]:
    """The histogram of tokens per step."""
    name, text = f"{PREFIX}iteration_tokens_total", "tokens computed in a step"
    bounds = [*map(str, map(float, _STEP_TOKENS)), "+Inf"]
    listed = [
        Metric(f"{name}_bucket", count, "histogram", text, {"le": bound})
        for bound, count in zip(bounds, accumulate(counts), strict=True)
    ]
    listed.append(Metric(f"{name}_count", sum(counts), "histogram", text))
    listed.append(Metric(f"{name}_sum", total, "histogram", text))
    return listed


def _speculation(metrics: SpeculationMetrics) -> list[Metric]:
    """Figures of drafts."""
    counters: dict[str, tuple[float, str]] = {
        "num_drafts": (metrics.num_drafts, "rows of steps in which drafts were verified"),
        "num_draft_tokens": (metrics.num_draft_tokens, "draft tokens verified"),
        "num_accepted_tokens": (metrics.num_accepted_tokens, "of these, accepted"),
        "num_steps_saved": (metrics.num_steps_saved, "steps that the same outputs would have taken more"),
        "propose_seconds": (metrics.propose_s, "time in proposing"),
    }
    gauges: dict[str, tuple[float, str]] = {
        "acceptance_rate": (metrics.acceptance_rate, "accepted draft tokens by verified ones, 0 to 1"),
        "mean_acceptance_length": (metrics.mean_acceptance_length, "tokens that a row with drafts gave"),
    }
    prefix = PREFIX + "spec_decode_"
    listed = [Metric(prefix + name, value, "counter", text) for name, (value, text) in counters.items()]
    listed += [Metric(prefix + name, value, "gauge", text) for name, (value, text) in gauges.items()]
    for position, count in enumerate(metrics.num_accepted_tokens_per_pos):
        labels = {"position": str(position)}
        name = f"{prefix}num_accepted_tokens_per_pos"
        listed.append(Metric(name, count, "counter", "accepted at this place of the draft", labels))
    return listed
