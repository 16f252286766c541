"""What an engine is made of."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field

from quire.api.config import EngineConfig
from quire.api.extensions import EngineInfo
from quire.api.protocols import Executor
from quire.engine.extensions import DEFAULT_POLICY, LoadedPolicy
from quire.engine.inputs import InputProcessor
from quire.engine.observers import Observers
from quire.engine.processor_desk import ProcessorDesk
from quire.execution.runner import RunnerTimes
from quire.loading.generation_config import GenerationConfig
from quire.loading.tokenizer import Tokenizer
from quire.plugins.calls import PluginCalls
from quire.plugins.host import PluginHost
from quire.scheduling.policies import FcfsPolicy
from quire.scheduling.scheduler import Scheduler


def _core_fcfs() -> LoadedPolicy:
    return LoadedPolicy(DEFAULT_POLICY, "core", FcfsPolicy())


def _no_observers() -> Observers:
    return Observers((), PluginCalls(), limit_s=1.0)


@dataclass(slots=True, frozen=True)
class EngineParts:
    """What an engine is made of; `quire.engine.build` puts it together.

    Attributes:
        eos_token_ids: ids that end any output unless `ignore_eos`.
        generation: what the model folder recommends.
        rope_switch_len: requests that may grow past it share no prefix blocks; None: all may share.
        policy: what the scheduler was given. fallback_policy: orders requests while its plugin is off.
        processors: settles which logits processors a request gets.
        observers: told of requests and steps.
        failures: requests, by the scheduler's id, for which a plugin's code failed and that have to end.
        drafter_plugin: whose drafter the runner uses; None: it uses none.
        info: what life-cycle hooks are told; None calls none.
    """

    config: EngineConfig
    host: PluginHost
    inputs: InputProcessor
    scheduler: Scheduler
    executor: Executor
    tokenizer: Tokenizer | None
    eos_token_ids: frozenset[int]
    chat_template: str | None = None
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    rope_switch_len: int | None = None
    runner_times: RunnerTimes = field(default_factory=RunnerTimes)
    policy: LoadedPolicy = field(default_factory=_core_fcfs)
    fallback_policy: LoadedPolicy = field(default_factory=_core_fcfs)
    processors: ProcessorDesk = field(default_factory=ProcessorDesk)
    observers: Observers = field(default_factory=_no_observers)
    failures: MutableMapping[str, Exception] = field(default_factory=dict)
    drafter_plugin: str | None = None
    info: EngineInfo | None = None
