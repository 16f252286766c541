"""A model on its own plugin host, and an engine of it that suites drive and look into."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from quire.api.batch import DeviceInfo, DTypeName
from quire.api.config import EngineConfig, PluginSettings
from quire.api.hookspecs import hookimpl
from quire.api.outputs import RequestOutput
from quire.api.protocols import AttentionBackend
from quire.api.request import SamplingParams
from quire.api.specs import (
    AttentionBackendSpec,
    DrafterSpec,
    FactoryRef,
    LogitsProcessorSpec,
    ModelSpec,
    OpImplSpec,
    OpSpec,
    PluginInfo,
    PolicySpec,
    QuantizationSpec,
)
from quire.engine.build import build_engine
from quire.engine.engine import Engine
from quire.plugins import PluginHost, resolve_factory
from quire.testing.conformance import ConformanceError
from quire.testing.watched_attention import WatchedAttention

_MAX_STEPS = 5000
_PRIORITY = 10_000


@dataclass(frozen=True)
class ServedModel:
    """What a suite serves: a model's factory, and what it is served with.

    Attributes:
        ops: registered beside core's own.
        backend: makes the attention backend; None: core's reference.
    """

    architecture: str
    factory: FactoryRef
    ops: tuple[OpSpec | OpImplSpec, ...] = ()
    backend: FactoryRef | None = None
    policies: tuple[PolicySpec, ...] = ()
    processors: tuple[LogitsProcessorSpec, ...] = ()
    drafters: tuple[DrafterSpec, ...] = ()
    quantizations: tuple[QuantizationSpec, ...] = ()
    options: object = None

    def host(self, watched: WatchedAttention | None = None) -> PluginHost:
        """A host with core and this model alone; `watched` computes its attention."""
        backend = watched or self.make_backend()
        plugin = SuitePlugin(replace(self, backend=lambda: backend))
        return PluginHost.discover(PluginSettings(autoload=False), extra_plugins=[plugin])

    def make_backend(self) -> AttentionBackend:
        """A new instance of the attention backend."""
        reference = self.backend or "quire.ops.paged_attention:TorchPagedAttention"
        return cast(Callable[[], AttentionBackend], resolve_factory(reference))()


class SuitePlugin:
    """Registers what a suite serves."""

    def __init__(self, served: ServedModel) -> None:
        self._served = served

    @hookimpl
    def quire_plugin_info(self) -> PluginInfo:
        """See the hook specification."""
        return PluginInfo(api=">=1,<2", description="what a conformance suite runs")

    @hookimpl
    def quire_register_models(self) -> list[ModelSpec]:
        """See the hook specification."""
        return [ModelSpec(self._served.architecture, self._served.factory)]

    @hookimpl
    def quire_register_ops(self) -> list[OpSpec | OpImplSpec]:
        """See the hook specification."""
        return list(self._served.ops)

    @hookimpl
    def quire_register_quantizations(self) -> list[QuantizationSpec]:
        """See the hook specification."""
        return list(self._served.quantizations)

    @hookimpl
    def quire_register_attention_backends(self) -> list[AttentionBackendSpec]:
        """See the hook specification."""
        factory = self._served.backend
        if factory is None:
            return []
        return [AttentionBackendSpec("conformance", factory, _supports_everything, priority=_PRIORITY)]

    @hookimpl
    def quire_register_policies(self) -> list[PolicySpec]:
        """See the hook specification."""
        return list(self._served.policies)

    @hookimpl
    def quire_register_logits_processors(self) -> list[LogitsProcessorSpec]:
        """See the hook specification."""
        return list(self._served.processors)

    @hookimpl
    def quire_register_drafters(self) -> list[DrafterSpec]:
        """See the hook specification."""
        return list(self._served.drafters)


@dataclass(frozen=True)
class Job:
    """A prompt, and how many tokens to generate."""

    prompt: tuple[int, ...]
    max_tokens: int = 6
    params: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Generated:
    """One choice of a job: its tokens, and the log-probabilities [N, V] that each was chosen from."""

    prompt: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: Tensor
    finish_reason: str | None


class WatchedEngine:
    """An engine over a tiny model, its attention watched; use it in a `with` statement.

    Args:
        served: the model. folder: its checkpoint.
        settings: fields of `EngineConfig`'s sections.
        is_poisoned: fill the KV cache with NaN before it is used.
    """

    def __init__(
        self,
        served: ServedModel,
        folder: Path,
        settings: Mapping[str, object],
        *,
        is_poisoned: bool = False,
    ) -> None:
        self.attention = WatchedAttention(served.make_backend(), is_poisoning=is_poisoned)
        keywords = {"dtype": "float64", "device": "cpu", "max_num_seqs": 16, **settings}
        config = EngineConfig.from_keywords({"model": folder, "skip_tokenizer_init": True, **keywords})
        with quiet_log():
            self.engine: Engine = build_engine(config, served.host(self.attention))

    def __enter__(self) -> WatchedEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()

    def counter(self, name: str) -> float:
        """An unlabelled metric of now, without the prefix."""
        listed = self.engine.get_metrics()
        return next(m.value for m in listed if m.name == f"quire:{name}" and not m.labels)

    def run(self, jobs: Sequence[Job], *, stagger: int = 0) -> list[list[Generated]]:
        """Run jobs together; with `stagger`, each is added so many steps after the one before.

        Returns:
            For each job its choices.

        Raises:
            ConformanceError: a request failed, or the engine does not come to an end.
        """
        waiting, ids = list(jobs), list[str]()
        for step in range(_MAX_STEPS):
            while waiting and step >= stagger * len(ids):
                job = waiting.pop(0)
                ids.append(self.engine.add_request({"prompt_token_ids": list(job.prompt)}, _params(job)))
            if not waiting and all(self.engine.is_finished(name) for name in ids):
                outputs = [self.engine.pop_output(name) for name in ids]
                return [_generated(job, output) for job, output in zip(jobs, outputs, strict=True)]
            self.engine.step()
        raise ConformanceError(f"{len(jobs)} requests did not end within {_MAX_STEPS} steps")


@contextmanager
def quiet_log() -> Iterator[None]:
    """No messages of the engine below warnings."""
    logger = logging.getLogger("quire")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def _params(job: Job) -> SamplingParams:
    fields: dict[str, object] = {
        "temperature": 0.0,
        "max_tokens": job.max_tokens,
        "logprobs": -1,
        "ignore_eos": True,
        **job.params,
    }
    return SamplingParams(**fields)  # type: ignore[arg-type]  # checked there


def _generated(job: Job, output: RequestOutput) -> list[Generated]:
    if output.error is not None:
        raise ConformanceError(f"a request of {len(job.prompt)} prompt tokens failed: {output.error}")
    choices = []
    for choice in output.outputs:
        rows = [
            torch.tensor([row[token].logprob for token in range(len(row))], dtype=torch.float64)
            for row in choice.logprobs or ()
        ]
        logprobs = torch.stack(rows) if rows else torch.empty(0)
        choices.append(Generated(job.prompt, tuple(choice.token_ids), logprobs, choice.finish_reason))
    return choices


def _supports_everything(device: DeviceInfo, dtype: DTypeName) -> str | None:
    return None
