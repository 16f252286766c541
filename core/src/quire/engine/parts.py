"""What an engine is made of."""

from __future__ import annotations

from dataclasses import dataclass, field

from quire.api.config import EngineConfig
from quire.api.protocols import Executor
from quire.engine.inputs import InputProcessor
from quire.execution.runner import RunnerTimes
from quire.loading.generation_config import GenerationConfig
from quire.loading.tokenizer import Tokenizer
from quire.plugins.host import PluginHost
from quire.scheduling.scheduler import Scheduler


@dataclass(slots=True, frozen=True)
class EngineParts:
    """What an engine is made of; `quire.engine.build` puts it together.

    Attributes:
        eos_token_ids: ids that end any output unless `ignore_eos`.
        generation: what the model folder recommends.
        rope_switch_len: requests that may grow past it share no prefix blocks; None: all may share.
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
