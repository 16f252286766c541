"""What a supervisor keeps of a request, so that another engine can go on with it."""

from __future__ import annotations

import asyncio
import operator
import time
from dataclasses import replace

from quire.api.client import EngineRequest
from quire.api.outputs import ChoiceDelta, OutputDelta, RequestMetrics
from quire.api.request import FinishReason
from quire.engine.wire import Submit, encode, plain_params


class LiveRequest:
    """A request that has not ended: what it got, and what of it nobody has read.

    Attributes:
        is_sent: the engine of now has it.
        is_aborted: it shall end.
        has_output: some token or end came, from whichever engine.
        num_fruitless_deaths: engines in a row that died with it since its last token.
        num_engines: that it was given to.
    """

    def __init__(self, request: EngineRequest) -> None:
        self.request = request
        self.is_sent = False
        self.is_aborted = False
        self.has_output = False
        self.num_fruitless_deaths = 0
        self.num_engines = 0
        self._arrival_s = time.monotonic()
        self._first_token_s: float | None = None
        self._tokens: list[list[int] | None] = [[] for _ in range(request.params.n)]
        self._has_prompt_logprobs = False
        self._unread: OutputDelta | None = None
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
        """What has an engine begin it, or go on with it; raises TypeError, WireError, SamplingParamsError."""
        request = self.request
        message = Submit(
            request_id=request.request_id,
            token_ids=[operator.index(token_id) for token_id in request.token_ids],
            params=plain_params(request.params),
            text=request.text,
            priority=request.priority,
            salt=request.salt,
            resumed=self._tokens if self.has_output else None,
        )
        return encode(message)

    def put(self, delta: OutputDelta) -> bool:
        """Take in what it got; whether that is output, not just news."""
        if delta.prompt_logprobs is not None:
            if self._has_prompt_logprobs:
                delta.prompt_logprobs = None
            self._has_prompt_logprobs = True
        is_output = False
        for choice in delta.choices:
            is_output = self._record(choice) or is_output
        if is_output:
            self.has_output, self.num_fruitless_deaths = True, 0
        if delta.metrics is not None:
            self._correct(delta.metrics)
        self._unread = delta if self._unread is None else merged(self._unread, delta)
        self._is_ready.set()
        return is_output

    def end(self, reason: FinishReason, error: Exception | None = None) -> None:
        """End it here: its choices that go on get this reason."""
        ends = [
            ChoiceDelta(index, "", [], None, reason.value)
            for index, tokens in enumerate(self._tokens)
            if tokens is not None
        ]
        now = time.monotonic()
        metrics = RequestMetrics(self._arrival_s, first_token_s=self._first_token_s, finished_s=now)
        self.put(OutputDelta(self.request.request_id, ends, True, None, metrics, error if ends else None))

    def refuse(self, error: Exception) -> None:
        """End it with an exception: its reader gets it where it had nothing, else a last delta."""
        if self._is_read or self._unread is not None:
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
        delta, self._unread = self._unread, None
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
        if self.num_engines > 1:
            metrics.first_token_s = self._first_token_s
            if self._first_token_s is not None and metrics.first_scheduled_s is not None:
                metrics.first_scheduled_s = min(metrics.first_scheduled_s, self._first_token_s)


def merged(first: OutputDelta, second: OutputDelta) -> OutputDelta:
    """Two deltas of a request, in order, as one."""
    by_index = {choice.index: choice for choice in first.choices}
    for choice in second.choices:
        before = by_index.get(choice.index)
        by_index[choice.index] = choice if before is None else _merged_choice(before, choice)
    return replace(
        second,
        choices=[by_index[index] for index in sorted(by_index)],
        prompt_logprobs=second.prompt_logprobs if first.prompt_logprobs is None else first.prompt_logprobs,
    )


def _merged_choice(first: ChoiceDelta, second: ChoiceDelta) -> ChoiceDelta:
    logprobs = None
    if first.logprobs is not None or second.logprobs is not None:
        logprobs = [*(first.logprobs or ()), *(second.logprobs or ())]
    return replace(
        second,
        text=first.text + second.text,
        token_ids=[*first.token_ids, *second.token_ids],
        logprobs=logprobs,
    )
