"""Sends a workload to a server and notes when what comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import orjson

from quire_serving.cli.bench.http_client import Endpoint, post
from quire_serving.cli.bench.statistics import RequestRecord
from quire_serving.cli.bench.workloads import Ask
from quire_serving.cli.remote import ServerError


@dataclass(slots=True, frozen=True)
class Load:
    """How a workload is sent.

    Attributes:
        is_chat: to /chat/completions instead of /completions.
        max_concurrency: most requests under way; None is no bound.
    """

    endpoint: Endpoint
    model: str
    is_chat: bool = False
    ignore_eos: bool = False
    temperature: float = 0.0
    max_concurrency: int | None = None

    def body(self, ask: Ask) -> bytes:
        """The request."""
        prompt: dict[str, object] = {"prompt": ask.prompt}
        if self.is_chat:
            prompt = {"messages": [{"role": "user", "content": ask.prompt}]}
        limits: dict[str, object] = {"max_tokens": ask.num_output_tokens, "temperature": self.temperature}
        if self.ignore_eos:
            limits["ignore_eos"] = True
        stream = {"stream": True, "stream_options": {"include_usage": True}}
        return orjson.dumps({"model": self.model, **prompt, **limits, **stream})


async def run_load(
    load: Load, asks: Sequence[Ask], times_s: Sequence[float], on_end: Callable[[RequestRecord], None]
) -> list[RequestRecord]:
    """Send each request at its time; a failure is the record's, not the run's."""
    bodies = [load.body(ask) for ask in asks]
    gate = asyncio.Semaphore(load.max_concurrency or len(asks) or 1)
    start = time.perf_counter()

    async def one(body: bytes) -> RequestRecord:
        async with gate:
            record = RequestRecord(time.perf_counter() - start)
            await _measure(load, body, record)
        on_end(record)
        return record

    tasks = []
    async with asyncio.TaskGroup() as group:
        for body, at_s in zip(bodies, times_s, strict=True):
            wait_s = at_s - (time.perf_counter() - start)
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            tasks.append(group.create_task(one(body)))
    return [task.result() for task in tasks]


async def _measure(load: Load, body: bytes, record: RequestRecord) -> None:
    start = time.perf_counter()
    usage: dict[str, int] = {}
    try:
        async for data in post(load.endpoint, body):
            now = time.perf_counter() - start
            event = orjson.loads(data)
            if "error" in event:
                raise ServerError(str(event["error"]))
            choices = event.get("choices")
            if choices and _has_tokens(choices[0]):
                record.arrivals_s.append(now)
            usage = event.get("usage") or usage
    except (ServerError, OSError, orjson.JSONDecodeError) as error:
        record.error = str(error) or type(error).__name__
    record.end_s = time.perf_counter() - start
    record.num_prompt_tokens = usage.get("prompt_tokens", 0)
    record.num_output_tokens = usage.get("completion_tokens", len(record.arrivals_s))


def _has_tokens(choice: dict[str, object]) -> bool:
    """Whether a chunk carries generated text, not the role or the finish reason alone."""
    delta = choice.get("delta")
    if isinstance(delta, dict):
        return bool(delta.get("content") or delta.get("reasoning_content") or delta.get("tool_calls"))
    return bool(choice.get("text"))
