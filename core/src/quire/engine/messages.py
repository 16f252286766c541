"""The messages between an engine's process and the process above it."""

from __future__ import annotations

from typing import Any

import msgspec

from quire.api.outputs import Metric, OutputDelta, PositionLogprobs


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of the messages: an array, of which the first item says which one it is."""


class Start(_Message, frozen=True):
    """Build an engine; the first message. `config` is an EngineConfig as plain data."""

    config: dict[str, Any]


class Submit(_Message, frozen=True):
    """Run a request. `params` are the fields that differ from the defaults; see `Engine.add_request`.

    `is_counted`: the metrics of an engine before have it among the requests.
    """

    request_id: str
    token_ids: list[int]
    params: dict[str, Any]
    text: str | None = None
    priority: int = 0
    salt: str = ""
    resumed: list[list[int] | None] | None = None
    is_counted: bool = False


class Abort(_Message, frozen=True):
    """End a request; its last delta follows."""

    request_id: str


class Forget(_Message, frozen=True):
    """End a request that nobody waits for; Forgotten follows, and nothing of it after that."""

    request_id: str


class Call(_Message, frozen=True):
    """Do something between two steps and reply; `method` is one that the engine's process knows."""

    number: int
    method: str
    arguments: list[str] = []


class Stop(_Message, frozen=True):
    """End after the current step."""


class Started(_Message, frozen=True):
    """The engine is built. The fields of EngineDescription without `config`."""

    description: dict[str, Any]


class StartFailed(_Message, frozen=True):
    """The engine cannot be built; the process ends."""

    error: Exception


class TakingIn(_Message, frozen=True):
    """The engine is about to take a request in; said before, since the process may die of it."""

    request_id: str


class Begun(_Message, frozen=True):
    """The engine is about to run a step, for these requests the first one, or the first since a preemption."""

    request_ids: list[str]


class Refused(_Message, frozen=True):
    """A request was not taken, or is ended because what it got cannot be sent."""

    request_id: str
    error: Exception


class Forgotten(_Message, frozen=True):
    """The answer to Forget: the id means the next request of that name from now on."""

    request_id: str


class PromptLogprobs(_Message, frozen=True):
    """The next positions of a prompt's logprobs; a delta with the last ones follows."""

    request_id: str
    positions: list[PositionLogprobs | None]


class Deltas(_Message, frozen=True):
    """What requests got in a step."""

    deltas: list[OutputDelta]
    num_running: int = 0
    num_waiting: int = 0


class Reply(_Message, frozen=True):
    """What a call gave: metrics, or nothing, or an error."""

    number: int
    metrics: list[Metric] = []
    error: Exception | None = None


class Counters(_Message, frozen=True):
    """The engine's metrics of now, unasked: they outlive the engine."""

    metrics: list[Metric]


class Heartbeat(_Message, frozen=True):
    """The process lives. `progress` grows as long as the engine gets on; it must while `is_busy`."""

    progress: int
    is_busy: bool
    num_running: int = 0
    num_waiting: int = 0


ToEngine = Start | Submit | Abort | Forget | Call | Stop
FromEngine = (
    Started
    | StartFailed
    | TakingIn
    | Begun
    | Refused
    | Forgotten
    | PromptLogprobs
    | Deltas
    | Reply
    | Counters
    | Heartbeat
)
