"""From a route to the engine and back: tokenizing, streams of deltas, disconnects."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import TYPE_CHECKING

import orjson
from fastapi import Request

from quire.api.client import ChatTokenizer, EngineRequest
from quire.api.errors import EngineClosedError, QuireError
from quire.api.outputs import OutputDelta
from quire_serving.admission import Ticket, check_open
from quire_serving.errors import ApiError, draining, from_quire
from quire_serving.state import ServerState

if TYPE_CHECKING:
    from quire_serving.request_metrics import RequestTimer

DONE = b"data: [DONE]\n\n"
MAX_CHARS_ON_LOOP = 2048  # they take a millisecond at most; a thread's round trip takes 0.1 to 0.3 ms
Item = tuple[int, OutputDelta]


class ClientGoneError(ApiError):
    """The client hung up: whatever is answered, nobody reads it."""

    def __init__(self) -> None:
        super().__init__(499, "client_disconnected", "the client has disconnected")


def new_request_id(prefix: str) -> str:
    """An id that no other request has."""
    return f"{prefix}-{uuid.uuid4().hex}"


def event(payload: object) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(payload) + b"\n\n"


def usage_of(num_prompt: int, num_output: int, num_cached: int | None = None) -> dict[str, object]:
    """OpenAI's usage object; `num_cached` is None where it is not told."""
    usage: dict[str, object] = {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_output,
        "total_tokens": num_prompt + num_output,
    }
    if num_cached is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": num_cached}
    return usage


def tells_cached_tokens(state: ServerState) -> bool:
    """False with several API keys: what is cached would tell of others' prompts."""
    return state.num_api_keys < 2


def salt_of(http_request: Request, cache_salt: str | None) -> str:
    """What the request's cached prefixes are kept apart by: its API key, and the salt that it gives."""
    digest = http_request.scope.get("quire_api_key_digest")
    key = digest[:16] if isinstance(digest, str) else ""
    return f"{key}:{cache_salt or ''}" if key or cache_salt else ""


def tokenizer_of(state: ServerState) -> ChatTokenizer:
    """The tokenizer; ApiError where the engine runs without."""
    tokenizer = state.client.tokenizer
    if tokenizer is None:
        raise ApiError(
            400,
            "tokenizer_unavailable",
            "the server runs with skip_tokenizer_init: give token ids as the prompt",
        )
    return tokenizer


async def tokenize(state: ServerState, text: str, *, add_special_tokens: bool = True) -> list[int]:
    """Token ids of a text, off the event loop where it is long; ApiError where it is hopelessly long."""
    tokenizer = tokenizer_of(state)
    state.admission.check_size(len(text))
    try:
        if len(text) <= MAX_CHARS_ON_LOOP:
            return tokenizer.encode(text, add_special_tokens=add_special_tokens)
        with state.admission.arriving():
            return await asyncio.to_thread(tokenizer.encode, text, add_special_tokens=add_special_tokens)
    except QuireError as error:
        raise from_quire(error) from error


async def decode(state: ServerState, token_ids: Sequence[int]) -> str:
    """The text of token ids, special ones included; off the event loop where they are many."""
    tokenizer = tokenizer_of(state)
    try:
        if len(token_ids) <= MAX_CHARS_ON_LOOP:
            return tokenizer.decode(token_ids, skip_special_tokens=False)
        return await asyncio.to_thread(tokenizer.decode, token_ids, skip_special_tokens=False)
    except QuireError as error:
        raise from_quire(error) from error


class Submission:
    """The requests of one HTTP request while the engine has them.

    `async with` submits them and waits for the first delta; `async for index, delta in submission` gives what
    comes, the first one included, `index` being the place in `requests`. Leaving the block, or the client's
    hanging up, aborts what has not ended.

    Raises:
        ApiError: (entering) the server drains, or the engine refused a request; (iterating) a request ended
            by an error or an abort, or the client has gone.
    """

    def __init__(self, state: ServerState, http_request: Request, requests: Sequence[EngineRequest]) -> None:
        self.state = state
        self.requests = requests
        self._http_request = http_request
        self._streams = [state.client.stream(request) for request in requests]
        self._ticket: Ticket | None = None
        self._timers: list[RequestTimer] = []
        self._first: Item | None = None
        self._num_open = len(requests)
        self._task: asyncio.Task[object] | None = None  # the one that waits in __anext__
        self._is_gone = False
        self._watcher: asyncio.Task[None] | None = None
        self._pumps: list[asyncio.Task[None]] = []
        self._items: asyncio.Queue[Item | Exception] = asyncio.Queue()

    async def __aenter__(self) -> Submission:
        """See the class."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """See the class."""
        await self.close()

    async def start(self) -> None:
        """What entering the block does; after an error nothing stays behind."""
        state = self.state
        try:
            check_open(state)
            self._ticket = state.admission.admit(self.requests)
        except ApiError as error:
            state.metrics.rejected(error.code)
            raise
        self._timers = [state.metrics.started(request) for request in self.requests]
        self._http_request.scope.setdefault("state", {})["timers"] = self._timers  # for the access log
        self._watcher = asyncio.create_task(self._watch())
        if len(self._streams) > 1:  # one stream needs no task between it and its reader
            self._pumps = [asyncio.create_task(self._pump(index)) for index in range(len(self._streams))]
        try:
            self._first = await self.__anext__()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Abort what has not ended; idempotent. Whatever fails here, or is cancelled, the rest is done."""
        if self._watcher is not None:
            self._watcher.cancel()
        timers, self._watcher, self._timers = self._timers, None, []
        async with (
            AsyncExitStack() as stack
        ):  # the last one first: nothing is awaited before the place is free
            for stream in self._streams:
                stack.push_async_callback(stream.aclose)
            stack.push_async_callback(self._stop_pumps)
            for timer in timers:
                stack.callback(timer.close)
            if self._ticket is not None:
                stack.callback(self._ticket.close)

    async def _stop_pumps(self) -> None:
        for pump in self._pumps:
            pump.cancel()
        if self._pumps:
            await asyncio.wait(self._pumps)
        self._pumps = []

    def __aiter__(self) -> Submission:
        """See the class."""
        return self

    async def __anext__(self) -> Item:
        """See the class."""
        item, self._first = self._first, None
        if item is not None:
            return item
        if self._is_gone:
            raise ClientGoneError
        if not self._num_open:
            raise StopAsyncIteration
        self._task = asyncio.current_task()
        try:
            index, delta = item = await self._next()
        except asyncio.CancelledError:
            if self._is_gone and self._task is not None and not self._task.uncancel():
                raise ClientGoneError from None
            raise
        except EngineClosedError as error:
            if not self.state.is_draining:
                raise from_quire(error) from error
            raise draining("the server has ended before the request was done: send it again") from None
        except QuireError as error:
            raise from_quire(error) from error
        finally:
            self._task = None
        self._note(index, delta)
        _check_end(delta)
        return item

    def _note(self, index: int, delta: OutputDelta) -> None:
        self._timers[index].delta(delta)
        self._num_open -= delta.finished
        if self._ticket is not None:
            (self._ticket.note_end if delta.finished else self._ticket.note_output)(index)

    async def _next(self) -> Item:
        if not self._pumps:
            return 0, await anext(self._streams[0])
        item = await self._items.get()
        if isinstance(item, Exception):
            raise item
        return item

    async def _pump(self, index: int) -> None:
        try:
            async for delta in self._streams[index]:
                self._items.put_nowait((index, delta))
        except Exception as error:  # whatever it is, the reader gets it
            self._items.put_nowait(error)

    async def _watch(self) -> None:
        """Wait until the client hangs up, and wake the reader."""
        while (await self._http_request.receive())["type"] != "http.disconnect":
            pass
        self._is_gone = True
        if self._task is not None:
            self._task.cancel()


def _check_end(delta: OutputDelta) -> None:
    """Raise where the engine ended the request for its own reasons."""
    if delta.error is not None:
        raise from_quire(delta.error)
    if not delta.finished:
        return
    reasons = {choice.finish_reason for choice in delta.choices}
    if "error" in reasons:
        raise ApiError(500, "generation_failed", "the request failed in the engine")
    if "abort" in reasons:
        raise ApiError(
            503, "request_aborted", "the request was ended by the server", headers={"Retry-After": "5"}
        )
