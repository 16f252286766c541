"""What a server needs of an engine, which runs in this process or in one of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from quire.api.config import EngineConfig
from quire.api.outputs import Metric, OutputDelta
from quire.api.protocols import TokenizerLike
from quire.api.request import SamplingParams


@dataclass(slots=True, frozen=True)
class EngineRequest:
    """A request as a server hands it over: tokenized, and with an id that is free.

    Attributes:
        token_ids: the prompt; checked by the engine against the width of the logits.
        text: the prompt's text where there was one.
        priority: for the priority policy; lower runs first.
        salt: only requests of equal salt share cached prefixes.
    """

    request_id: str
    token_ids: Sequence[int]
    params: SamplingParams
    text: str | None = None
    priority: int = 0
    salt: str = ""


@dataclass(slots=True, frozen=True)
class EngineDescription:
    """An engine that has started; the same after each restart.

    Attributes:
        max_model_len: longest context, prompt and output, in tokens.
        max_num_seqs: most requests in one step.
        vocab_size: width of the logits.
        num_kv_blocks, block_size: the KV cache; a request needs its tokens' blocks at once.
        default_sampling_params: fields of SamplingParams that the model's generation_config.json sets.
        chat_template: the configuration's, else None (the tokenizer may have one).
        fingerprint: of the plugins that can change outputs.
        plugins: names of the enabled ones, in load order.
    """

    config: EngineConfig
    architecture: str
    dtype: str
    device: str
    max_model_len: int
    max_num_seqs: int
    vocab_size: int
    num_kv_blocks: int
    block_size: int
    fingerprint: str
    default_sampling_params: Mapping[str, object] = field(default_factory=dict)
    chat_template: str | None = None
    plugins: tuple[str, ...] = ()


@dataclass(slots=True, frozen=True)
class EngineStatus:
    """An engine as of now; costs nothing to ask.

    Attributes:
        is_ready: it is up and, where it has work, it gets on with it.
        reason: why it is not ready; "" when it is.
        num_requests: given to it and not ended, in whatever state.
        num_running, num_waiting: as the engine last said.
        num_waiting_tokens: prompt tokens of requests that have got nothing yet.
        num_restarts: since the server started.
        is_ended: it was closed or given up, and will not be ready again.
    """

    is_ready: bool
    reason: str
    num_requests: int
    num_running: int
    num_waiting: int
    num_waiting_tokens: int
    num_restarts: int = 0
    is_ended: bool = False


class ChatTokenizer(TokenizerLike, Protocol):
    """A tokenizer that also renders conversations. Its methods may be called in any thread."""

    @property
    def chat_template(self) -> str | Mapping[str, str] | None:
        """The model's template, or its named templates; None where it has none."""
        ...

    @property
    def max_chars_per_token(self) -> int | None:
        """No text has more characters than this for each of its tokens; None where that cannot be said."""
        ...

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        **values: object,
    ) -> str:
        """A conversation as text, to be encoded with `add_special_tokens=False`."""
        ...

    def id_to_piece(self, token_id: int) -> str | None:
        """A token as the vocabulary spells it, or None for an unknown id."""
        ...


class EngineClient(Protocol):
    """An engine, for one event loop: all methods are called there.

    Attributes:
        description: what it is; fixed once it has started.
    """

    @property
    def description(self) -> EngineDescription:
        """What it is; fixed once it has started."""
        ...

    @property
    def tokenizer(self) -> ChatTokenizer | None:
        """None with `skip_tokenizer_init`."""
        ...

    def stream(self, request: EngineRequest) -> AsyncGenerator[OutputDelta, None]:
        """Submit a request and yield what it gets; the last delta has `finished`.

        It is submitted by the first `anext`. Closing the generator, or cancelling the task that waits for
        it, aborts the request in whatever state it is. Where the engine dies, the request goes on in the
        next one; where it cannot, it ends with the finish reason "error" and the delta's `error`.

        Raises:
            PromptError, SamplingParamsError, CapacityError: the request is refused, by the first `anext`.
            EngineClosedError: the client was closed, or its engine could not be started again.
        """
        ...

    async def abort(self, request_id: str) -> None:
        """End a request; its stream gets the finish reason "abort". Unknown ids are ignored."""
        ...

    def status(self) -> EngineStatus:
        """How it does."""
        ...

    async def get_metrics(self) -> list[Metric]:
        """The engine's counters and gauges. Counters go on over restarts."""
        ...

    async def set_plugin(self, name: str, *, is_enabled: bool) -> None:
        """Turn a plugin off or on, between steps; raises PluginError where it cannot be."""
        ...

    async def reset_prefix_cache(self) -> None:
        """Forget cached prefixes that nothing uses."""
        ...

    async def close(self) -> None:
        """End the engine and all its requests; idempotent."""
        ...
