"""From the scheduler's updates to what a caller sees of a request: its choices, times and errors."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from quire.api.outputs import (
    ChoiceDelta,
    OutputDelta,
    PositionLogprobs,
    RequestMetrics,
    RequestOutput,
    SpeculationMetrics,
)
from quire.api.protocols import TokenizerLike
from quire.api.request import FinishReason, Request
from quire.engine.choice import ChoiceTracker, PieceDecoder
from quire.scheduling.plan import RequestUpdate


class RequestTracker:
    """One user request and its choices, on the way to RequestOutput.

    Outputs are built on demand, so tokens that nobody looks at yet cost only their detokenization.

    Args:
        request_id: the caller's id.
        prompt: the prompt's text, None where it was given as token ids.
        requests: the scheduler's request of each choice that has not ended, in order; the first has prompt
            logprobs.
        tokenizer: None leaves all texts empty.
        metadata: goes into every output.
    """

    def __init__(
        self,
        request_id: str,
        prompt: str | None,
        requests: Sequence[Request],
        tokenizer: TokenizerLike | None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.request_id = request_id
        self.metrics = RequestMetrics(arrival_s=requests[0].arrival_s)
        self._prompt = prompt
        self._pieces = PieceDecoder(tokenizer)
        self._metadata = dict(metadata or {})
        self._choices = [ChoiceTracker(request, tokenizer) for request in requests]
        self._by_id = {choice.request.request_id: choice for choice in self._choices}
        self._prompt_logprobs: list[PositionLogprobs | None] = [None]
        self._is_prompt_taken = False
        self._error: Exception | None = None

    @property
    def requests(self) -> list[Request]:
        """The scheduler's requests, one per choice."""
        return [choice.request for choice in self._choices]

    def request(self, request_id: str) -> Request:
        """The scheduler's request of one choice."""
        return self._by_id[request_id].request

    @property
    def is_finished(self) -> bool:
        """Whether all choices have ended."""
        return all(choice.finish_reason is not None for choice in self._choices)

    @property
    def finish_reason(self) -> str:
        """The first choice's reason; "abort" while it has none."""
        return self._choices[0].finish_reason or FinishReason.ABORT.value

    def apply(self, update: RequestUpdate) -> str | None:
        """Take in what a step gave to one choice.

        Returns:
            The stop string that ended the choice here; the scheduler does not know of it yet.
        """
        choice = self._by_id[update.request.request_id]
        if choice is self._choices[0]:
            self._prompt_logprobs += [self._pieces.position(entry) for entry in update.prompt_logprobs or ()]
        if choice.finish_reason is None:
            self._note_time(update)
        stop = choice.add(update)
        self._note_end()
        return stop

    def end(self, request: Request) -> None:
        """A choice's request was ended from outside (aborted); its reason is in the request."""
        self._by_id[request.request_id].end()
        self._note_end()

    def cut(self, reason: FinishReason, error: Exception) -> None:
        """End all choices as they are; the error is shown unless they had all ended before."""
        if not self.is_finished:
            self._error = error
        for choice in self._choices:
            choice.cut(reason)
        self._note_end()

    def output(self) -> RequestOutput:
        """The cumulative output of now; the caller owns it, nothing of it changes later."""
        first = self._choices[0].request
        wants_prompt_logprobs = first.params.prompt_logprobs is not None
        return RequestOutput(
            request_id=self.request_id,
            prompt=self._prompt,
            prompt_token_ids=list(first.prompt_token_ids),
            outputs=[choice.output(self._pieces) for choice in self._choices],
            finished=self.is_finished,
            prompt_logprobs=list(self._prompt_logprobs) if wants_prompt_logprobs else None,
            num_cached_tokens=first.num_cached_tokens,
            metrics=self.metrics_of_now(),
            error=self._first_error(),
            metadata=self._metadata,
        )

    def take(self) -> OutputDelta:
        """What came since the last call, or since the request was added."""
        taken = (choice.take(self._pieces) for choice in self._choices)
        choices = [delta for delta in taken if delta is not None]
        prompt_logprobs = None
        if choices and not self._is_prompt_taken:
            self._is_prompt_taken = True
            if self._choices[0].request.params.prompt_logprobs is not None:
                prompt_logprobs = list(self._prompt_logprobs)
        return OutputDelta(
            request_id=self.request_id,
            choices=choices,
            finished=self.is_finished,
            prompt_logprobs=prompt_logprobs,
            metrics=self.metrics_of_now() if self.is_finished else None,
            error=self._first_error(),
        )

    def end_without_output(self, error: Exception) -> OutputDelta:
        """The last delta of a request whose output cannot be made: all choices end with the error."""
        ends = [
            ChoiceDelta(request.choice_index, "", [], None, FinishReason.ERROR.value)
            for request in self.requests
        ]
        return OutputDelta(self.request_id, ends, True, None, self.metrics_of_now(), error)

    def metrics_of_now(self) -> RequestMetrics:
        """Times and counts, which nothing changes later."""
        first = self._choices[0].request
        self.metrics.first_scheduled_s = first.first_scheduled_s
        self.metrics.num_cached_tokens = first.num_cached_tokens
        self.metrics.num_preemptions = sum(request.num_preemptions for request in self.requests)
        self.metrics.speculation = _speculation(self.requests)
        return replace(self.metrics)

    def _first_error(self) -> Exception | None:
        errors = [request.error for request in self.requests if request.error is not None]
        return errors[0] if errors else self._error

    def _note_time(self, update: RequestUpdate) -> None:
        if update.new_token_ids:
            now = self.metrics.last_token_s = time.monotonic()
            if self.metrics.first_token_s is None:
                self.metrics.first_token_s = now

    def _note_end(self) -> None:
        if self.metrics.finished_s is None and self.is_finished:
            self.metrics.finished_s = time.monotonic()


def _speculation(requests: Sequence[Request]) -> SpeculationMetrics | None:
    """What became of the choices' drafts, added up; None where there were none."""
    total = SpeculationMetrics()
    counted = [request.speculation for request in requests if request.speculation is not None]
    for metrics in counted:
        total.add(metrics)
    return total if counted else None
