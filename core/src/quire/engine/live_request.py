"""What a supervisor keeps of a request, so that another engine can go on with it."""

from __future__ import annotations

import asyncio
import operator
import time
from collections.abc import Sequence

from quire.api.client import EngineRequest
from quire.api.outputs import ChoiceDelta, OutputDelta, PositionLogprobs, RequestMetrics
from quire.api.request import FinishReason
from quire.engine.messages import Submit
from quire.engine.unread import Unread
from quire.engine.wire import encode, plain_params


class LiveRequest:
    """A request that has not ended: what it got, and what of it nobody has read.

    Attributes:
        disabled_plugins: those that were off when it came.
        is_sent: the engine of now has it.
        is_taken_in: that engine has said that it takes it in.
        has_begun: that engine has said that it runs it, or did.
        is_counted: the metrics that outlive an engine have it among the requests.
        is_aborted: it shall end.
        has_output: some token or end came, from whichever engine.
        num_fruitless_deaths: engines that died after they had begun it, since its last token.
        num_own_deaths: of these, those in which it was the only one begun.
    """

    def __init__(self, request: EngineRequest) -> None:
        self.request = request
        self.disabled_plugins: frozenset[str] = frozenset()
        self.is_sent = self.is_taken_in = self.has_begun = False
        self.is_counted = False
        self.is_aborted = False
        self.has_output = False
        self.num_fruitless_deaths = 0
        self.num_own_deaths = 0
        self._num_engines = 0
        self._arrival_s = time.monotonic()
        self._first_token_s: float | None = None
        self._tokens: list[list[int] | None] = [[] for _ in range(request.params.n)]
        self._prompt_logprobs: list[PositionLogprobs | None] = []  # as far as the engine of now has sent them
        self._has_prompt_logprobs = False
        self._unread = Unread()
        self._error: Exception | None = None
        self._is_read = False
        self._is_ready = asyncio.Event()

    @property
    def num_prompt_tokens(self) -> int:
        """Of its prompt."""
        return len(self.request.token_ids)

    @property
    def is_over(self) -> bool:
        """Whether every choice has ended, even if no last delta came."""
        return all(tokens is None for tokens in self._tokens)

    def frame(self) -> bytes:
        """What has an engine begin it, or go on with it.

        Raises:
            TypeError, WireError, CapacityError, SamplingParamsError: it cannot be sent.
        """
        request = self.request
        message = Submit(
            request_id=request.request_id,
            token_ids=[operator.index(token_id) for token_id in request.token_ids],
            params=plain_params(request.params),
            text=request.text,
            priority=request.priority,
            salt=request.salt,
            resumed=self._tokens if self.has_output else None,
            is_counted=self.is_counted,
        )
        return encode(message)

    def note_sent(self) -> None:
        """An engine has it."""
        self.is_sent = True
        self._num_engines += 1

    def note_lost(self) -> None:
        """The engine that had it is no more."""
        self.is_sent = self.is_taken_in = self.has_begun = False
        self._prompt_logprobs.clear()

    def put_prompt_logprobs(self, positions: Sequence[PositionLogprobs | None]) -> None:
        """Take in some of its prompt's logprobs; the rest comes later, the last of it in a delta."""
        self._prompt_logprobs += positions

    def put(self, delta: OutputDelta) -> bool:
        """Take in what it got; whether that is output, not just news."""
        if delta.prompt_logprobs is not None:
            whole = [*self._prompt_logprobs, *delta.prompt_logprobs]
            delta.prompt_logprobs = None if self._has_prompt_logprobs else whole
            self._has_prompt_logprobs = True
            self._prompt_logprobs.clear()
        is_output = False
        delta.choices = [choice for choice in delta.choices if self._tokens[choice.index] is not None]
        for choice in delta.choices:
            is_output = self._record(choice) or is_output
        if is_output:
            self.has_output = True
            self.num_fruitless_deaths = self.num_own_deaths = 0
        if delta.metrics is not None:
            self._correct(delta.metrics)
        self._unread.add(delta)
        self._is_ready.set()
        return is_output

    def end(self, reason: FinishReason, error: Exception | None = None) -> bool:
        """End it here: its choices that go on get this reason; whether there were any."""
        ends = [
            ChoiceDelta(index, "", [], None, reason.value)
            for index, tokens in enumerate(self._tokens)
            if tokens is not None
        ]
        now = time.monotonic()
        metrics = RequestMetrics(self._arrival_s, first_token_s=self._first_token_s, finished_s=now)
        self.put(OutputDelta(self.request.request_id, ends, True, None, metrics, error if ends else None))
        return bool(ends)

    def refuse(self, error: Exception) -> None:
        """End it with an exception: its reader gets it where it had nothing, else a last delta."""
        if self._is_read or self._unread:
            self.end(FinishReason.ERROR, error)
        else:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Raise this in its reader, after what is unread."""
        self._error = error
        self._is_ready.set()

    async def take(self) -> OutputDelta:
        """All that came since the last call, in one delta; waits until something does."""
        await self._is_ready.wait()
        delta = self._unread.take()
        if delta is None:
            if self._error is None:
                raise RuntimeError("a request was woken with nothing to read: a defect of the supervisor")
            raise self._error
        if self._error is None:
            self._is_ready.clear()
        self._is_read = True
        return delta

    def _record(self, choice: ChoiceDelta) -> bool:
        tokens = self._tokens[choice.index]
        if tokens is None:
            return False
        tokens += choice.token_ids
        if choice.token_ids and self._first_token_s is None:
            self._first_token_s = time.monotonic()
        if choice.finish_reason is not None:
            self._tokens[choice.index] = None
        return bool(choice.token_ids) or choice.finish_reason is not None

    def _correct(self, metrics: RequestMetrics) -> None:
        """Its times began here, before the engine that ended it had it."""
        metrics.arrival_s = self._arrival_s
        if self._num_engines > 1:
            metrics.first_token_s = self._first_token_s
            if self._first_token_s is not None and metrics.first_scheduled_s is not None:
                metrics.first_scheduled_s = min(metrics.first_scheduled_s, self._first_token_s)
