"""What plugins implement that runs with requests and steps: observers, logits processors, policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from quire.api.batch import DeviceInfo
from quire.api.config import EngineConfig
from quire.api.outputs import RequestMetrics
from quire.api.request import SamplingParams

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True, frozen=True)
class ConfigProblem:
    """What a plugin finds wrong with a configuration.

    Attributes:
        message: names the value and the limit. remedy: what to change.
        is_fatal: whether the start is refused; else it is a warning.
    """

    message: str
    remedy: str
    is_fatal: bool = True


@dataclass(slots=True, frozen=True)
class ExtensionContext:
    """What the factory of a policy, a logits processor, a drafter or an executor is given.

    Attributes:
        options: the plugin's validated options (an instance of its options model), or None.
        vocab_size: the logits' width.
    """

    config: EngineConfig
    device: DeviceInfo
    vocab_size: int
    options: object = None


@dataclass(slots=True, frozen=True)
class EngineInfo:
    """An engine, for observers and life-cycle hooks.

    Attributes:
        fingerprint: of the plugins that can change outputs; see `quire plugins doctor`.
        plugins: names of the enabled plugins, in load order.
        dtype: of weights and activations.
    """

    config: EngineConfig
    device: DeviceInfo
    model: str
    architecture: str
    num_kv_blocks: int
    fingerprint: str
    plugins: tuple[str, ...] = ()
    dtype: str = ""


@dataclass(slots=True, frozen=True)
class RequestView:
    """A request as policies and observers see it: a copy of its counts, made when it is asked for.

    Attributes:
        num_tokens: prompt and output so far. is_preempted: it ran before and lost its blocks.
        metrics: times and counts of a request that has ended, for observers; else None.
    """

    request_id: str
    priority: int
    arrival_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    max_total_tokens: int
    num_preemptions: int = 0
    is_preempted: bool = False
    params: SamplingParams = field(default_factory=SamplingParams)
    metrics: RequestMetrics | None = None

    @property
    def num_tokens(self) -> int:
        """Prompt and output so far."""
        return self.num_prompt_tokens + self.num_output_tokens


@dataclass(slots=True, frozen=True)
class StepReport:
    """One finished step, for observers.

    Attributes:
        num_rows, num_tokens: requests and tokens computed. num_generated: tokens sampled.
        seconds: from planning to the outputs handed out.
    """

    step_id: int
    num_rows: int
    num_tokens: int
    num_generated: int
    seconds: float
    num_running: int
    num_waiting: int


class EngineObserver:
    """Base of observers: override what you want to see; the rest costs next to nothing.

    Calls come on the engine's thread, between steps. An observer that raises, or takes longer than the
    limit in the settings, is logged with its plugin's name, counted and detached; no request suffers.
    """

    def request_added(self, request: RequestView) -> None:
        """A request was accepted."""

    def step_finished(self, step: StepReport) -> None:
        """A step has run."""

    def request_finished(self, request: RequestView, finish_reason: str) -> None:
        """A request has ended: "stop", "length", "abort" or "error"."""


@runtime_checkable
class LogitsProcessor(Protocol):
    """Changes one request's logits before sampling."""

    def __call__(
        self, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int], logits: Tensor
    ) -> Tensor:
        """The logits to sample from.

        Called once for each coming token, with the tokens before it; under drafts for every draft row.
        It must be a pure function of its arguments: the same tokens give the same logits.

        Args:
            prompt_token_ids: read-only.
            output_token_ids: read-only.
            logits: float32 [V] on the model's device, a copy of this request's own row; it may be
                changed in place and returned.

        Returns:
            float32 [V]. -inf forbids a token. An exception, another type or another shape fails this
            request alone.
        """
        ...


class LogitsProcessorFactory(Protocol):
    """What a LogitsProcessorSpec's factory makes, once per engine."""

    def for_request(self, arguments: object, params: SamplingParams) -> LogitsProcessor | None:
        """A processor for one request, or None to leave it alone.

        Called when the request is added, and again wherever it starts to run: for each of its choices,
        after a preemption, in another process. It must give the same each time.

        Args:
            arguments: what the request gave under the processor's name in `extra_args`; None where it
                gave nothing (then only processors that are always on are asked).
            params: the request's.

        Raises:
            ValueError: the arguments are wrong; the request is refused with the message.
        """
        ...


@runtime_checkable
class SchedulingPolicy(Protocol):
    """Orders candidates; it never owns the loop.

    Waiting requests are admitted, and running ones scheduled, by ascending key; the running request of
    the greatest key is preempted first.
    """

    def key(self, request: RequestView, arrival_index: int) -> tuple[float, ...]:
        """Where a request stands. Asked when it starts to wait, when it is preempted, and when it runs.

        An exception or something else than a tuple of numbers fails this request alone.

        Args:
            request: its counts of now.
            arrival_index: counts the requests in the order in which they were added.
        """
        ...


FailureScope = Literal["start", "request", "observer"]
"""What a failing extension costs: the start of the engine, one request, or only the observer itself."""


class CheckpointReader(Protocol):
    """A checkpoint: tensors by name. Core's own reads safetensors."""

    def names(self) -> Sequence[str]:
        """All tensor names."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        ...

    def read(self, name: str) -> Tensor:
        """A tensor on the CPU; raises CheckpointError naming the file and the tensor."""
        ...

    def metadata(self) -> Mapping[str, str]:
        """What the files say of themselves."""
        ...
