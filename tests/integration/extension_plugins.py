"""Plugins for the tests of what runs with requests: made in the test, given to an engine by its host."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from quire import LLM
from quire.api.extensions import EngineObserver, RequestView, StepReport
from quire.api.hookspecs import hookimpl
from quire.api.specs import LogitsProcessorSpec, PluginInfo, PolicySpec
from quire.plugins import PluginHost

VOCAB = 97


def make_plugin(name: str, **hooks: Callable[..., object]) -> ModuleType:
    """A plugin of these hooks, given without their prefix."""
    module = ModuleType(name)
    hooks.setdefault("plugin_info", lambda: PluginInfo(api=">=1,<2"))
    for hook, function in hooks.items():
        setattr(module, f"quire_{hook}", hookimpl(function))
    return module


def open_llm(folder: Path | str, *plugins: object, **keywords: Any) -> LLM:
    """An engine with these plugins beside the installed ones."""
    settings = {"dtype": "float64", "skip_tokenizer_init": True, "block_size": 4, "max_num_seqs": 16}
    return LLM(folder, host=PluginHost.discover(extra_plugins=plugins), **{**settings, **keywords})


class HistoryProcessor:
    """Forces a token that depends on all tokens so far."""

    def __init__(self, arguments: object) -> None:
        self.offset = int(arguments["offset"])  # type: ignore[index]  # a dict of JSON

    @staticmethod
    def next_token(token_ids: Sequence[int], offset: int) -> int:
        total = offset
        for token_id in token_ids:
            total = (total * 31 + token_id) % 1009
        return total % VOCAB

    def __call__(self, prompt: Sequence[int], output: Sequence[int], logits: Tensor) -> Tensor:
        assert logits.dtype == torch.float32 and logits.shape == (VOCAB,)
        logits[self.next_token([*prompt, *output], self.offset)] += 10_000.0
        return logits


class HistoryFactory:
    """Takes {"offset": integer}."""

    def __init__(self, context: object = None) -> None:
        self.context = context

    def for_request(self, arguments: object, params: object) -> HistoryProcessor | None:
        if arguments is None:
            return None
        if not isinstance(arguments, dict) or not isinstance(arguments.get("offset"), int):
            raise ValueError("give {'offset': integer}")
        return HistoryProcessor(arguments)


def history_plugin(name: str = "history") -> ModuleType:
    """A plugin with the logits processor "history"."""
    specs = [LogitsProcessorSpec("history", HistoryFactory)]
    return make_plugin(name, register_logits_processors=lambda: specs)


def forced(prompt: Sequence[int], count: int, offset: int) -> list[int]:
    """What a request with the processor generates."""
    token_ids = list(prompt)
    for _ in range(count):
        token_ids.append(HistoryProcessor.next_token(token_ids, offset))
    return token_ids[len(prompt) :]


class RecordingObserver(EngineObserver):
    """Keeps what it sees."""

    def __init__(self) -> None:
        self.events: list[tuple[str, object]] = []

    def request_added(self, request: RequestView) -> None:
        self.events.append(("added", request))

    def step_finished(self, step: StepReport) -> None:
        self.events.append(("step", step))

    def request_finished(self, request: RequestView, finish_reason: str) -> None:
        self.events.append(("finished", (request, finish_reason)))

    def of(self, kind: str) -> list[Any]:
        return [value for name, value in self.events if name == kind]


class LastFirst:
    """A policy: the latest request first."""

    def __init__(self, context: object = None) -> None:
        self.context = context

    def key(self, request: RequestView, arrival_index: int) -> tuple[float, ...]:
        return (-arrival_index,)


def policy_plugin(name: str = "lifo", policy: Callable[..., object] = LastFirst) -> ModuleType:
    """A plugin with the policy "lifo"."""
    return make_plugin(name, register_policies=lambda: [PolicySpec("lifo", policy)])


@dataclass
class Fault:
    """Misbehaves at one call of one extension point; counts the calls that matter.

    `kind` is "exception", "exit", "interrupt", "wrong type", "none", "mutation", "sleep" or "" (good).
    """

    point: str = ""
    kind: str = ""
    at: int = 1
    sleep_s: float = 0.06
    num_calls: int = field(default=0, init=False)

    def around(self, point: str, good: Callable[..., object], *values: object) -> object:
        """The good answer, except at the call where the fault is planted."""
        if point != self.point or not self.kind:
            return good(*values)
        self.num_calls += 1
        if self.num_calls != self.at:
            return good(*values)
        if self.kind in ("exception", "exit", "interrupt"):
            errors = {"exception": RuntimeError, "exit": SystemExit, "interrupt": KeyboardInterrupt}
            raise errors[self.kind](f"planted in {point}")
        if self.kind == "wrong type":
            return object()
        if self.kind == "none":
            return None
        if self.kind == "sleep":
            time.sleep(self.sleep_s)
        result = good(*values)
        if self.kind == "mutation":
            for value in values:
                spoil(value)
        return result


def spoil(value: object) -> None:
    """Change whatever can be changed of an argument."""
    if isinstance(value, list):
        value.append(1)
    if isinstance(value, dict):
        value.clear()
    if isinstance(value, Tensor):
        torch.empty(0).set_(value.untyped_storage()).fill_(1.0)  # all that it shares memory with
    for target in (value, getattr(value, "params", None)):
        if hasattr(target, "temperature"):
            target.temperature, target.max_tokens, target.seed = 2.0, 1, 0
            for name in ("logit_bias", "extra_args"):
                with suppress(TypeError, AttributeError):
                    getattr(target, name).clear()
    for name in ("priority", "num_prompt_tokens"):
        with suppress(AttributeError, TypeError):
            object.__setattr__(value, name, -1)


def faulty_plugin(fault: Fault, victim: str) -> ModuleType:
    """One plugin with every extension point; policy and processor misbehave for the victim alone."""

    class Processor:
        def __init__(self, arguments: object) -> None:
            self.good = HistoryProcessor(arguments)

        def __call__(self, *values: object) -> object:
            return fault.around("LogitsProcessor.__call__", self.good, *values)

    class Factory:
        def for_request(self, *values: object) -> object:
            return fault.around("LogitsProcessorFactory.for_request", lambda a, p: Processor(a), *values)

    class Policy:
        def key(self, request: RequestView, arrival_index: int) -> object:
            def good(request: RequestView, index: int) -> tuple[float, ...]:
                return (not request.is_preempted, index)

            if request.request_id != victim:
                return good(request, arrival_index)
            return fault.around("SchedulingPolicy.key", good, request, arrival_index)

    class Observer(EngineObserver):
        def request_added(self, *values: object) -> None:
            # for mypy: gives nothing, or what the fault says
            return fault.around("EngineObserver.request_added", lambda *a: None, *values)  # type: ignore[return-value]

        def step_finished(self, *values: object) -> None:
            # for mypy: gives nothing, or what the fault says
            return fault.around("EngineObserver.step_finished", lambda *a: None, *values)  # type: ignore[return-value]

        def request_finished(self, *values: object) -> None:
            # for mypy: gives nothing, or what the fault says
            return fault.around("EngineObserver.request_finished", lambda *a: None, *values)  # type: ignore[return-value]

    return make_plugin(
        "faulty",
        register_logits_processors=lambda: [LogitsProcessorSpec("history", lambda context: Factory())],
        register_policies=lambda: [PolicySpec("faulty", lambda context: Policy())],
        create_observers=lambda: [Observer()],
    )
