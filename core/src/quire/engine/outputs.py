"""From the scheduler's updates to what a caller sees: text, logprobs and reasons, per request and choice."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from quire.api.errors import PromptError
from quire.api.outputs import (
    ChoiceDelta,
    CompletionOutput,
    Logprob,
    OutputDelta,
    PositionLogprobs,
    RequestMetrics,
    RequestOutput,
    SpeculationMetrics,
)
from quire.api.protocols import TokenizerLike
from quire.api.request import FinishReason, Request
from quire.api.step import TokenLogprobs
from quire.engine.detokenizer import IncrementalDetokenizer
from quire.engine.stop_strings import StopStringMatcher
from quire.scheduling.plan import RequestUpdate


class PieceDecoder:
    """Texts of single tokens, for logprobs; each is decoded once. Without a tokenizer they are None."""

    def __init__(self, tokenizer: TokenizerLike | None) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}

    def decode(self, token_id: int) -> str | None:
        """A token's text by itself."""
        if self._tokenizer is None:
            return None
        text = self._texts.get(token_id)
        if text is None:
            text = self._texts[token_id] = self._tokenizer.decode([token_id], skip_special_tokens=False)
        return text

    def position(self, entry: TokenLogprobs) -> PositionLogprobs:
        """One position's logprobs: the token itself first, then the likeliest."""
        values = {entry.token_id: Logprob(entry.logprob, entry.rank, self.decode(entry.token_id))}
        for rank, (token_id, logprob) in enumerate(
            zip(entry.top_ids, entry.top_logprobs, strict=True), start=1
        ):
            if token_id != entry.token_id:
                values[token_id] = Logprob(logprob, rank, self.decode(token_id))
        return values


class ChoiceText:
    """The text of one choice: detokenized as tokens come, cut at stop strings.

    Attributes:
        num_tokens: taken in so far, up to a stop string.
    """

    def __init__(self, request: Request, tokenizer: TokenizerLike | None) -> None:
        params = request.params
        self._min_tokens = params.min_tokens
        self.num_tokens = 0
        self._pieces: list[str] = []
        self._num_pieces_taken = 0
        self._untaken = ""  # of pieces that were looked at: what a stop string may yet cut
        self._num_chars_taken = 0
        self._is_flushed = False
        self._matcher: StopStringMatcher | None = None
        if params.stop_strings:
            self._matcher = StopStringMatcher(
                params.stop_strings, include_in_output=params.include_stop_str_in_output
            )
        self._detokenizer: IncrementalDetokenizer | None = None
        if tokenizer is not None and params.detokenize:
            has_spaces = params.skip_special_tokens or params.spaces_between_special_tokens
            self._detokenizer = IncrementalDetokenizer(
                tokenizer,
                skip_special_tokens=params.skip_special_tokens,
                special_tokens=None if has_spaces else _added_tokens(tokenizer),
                context=request.prompt_token_ids,
            )

    def push(self, token_ids: Sequence[int]) -> str | None:
        """Add tokens; the stop string that they complete, at which the text is cut."""
        if self._detokenizer is None or self._is_flushed:
            return None
        for token_id in token_ids:
            self.num_tokens += 1
            stop = self._add(self._detokenizer.push(token_id))
            if stop is not None:
                return stop
        return None

    def flush(self) -> str | None:
        """Add what the detokenizer holds back, once; the stop string that it completes."""
        if self._detokenizer is None or self._is_flushed:
            return None
        stop = self._add(self._detokenizer.flush())
        self._is_flushed = True
        return stop

    def text(self) -> str:
        """All text once flushed or stopped; before, without what a stop string may yet cut."""
        text = "".join(self._pieces)
        return text[: max(0, len(text) - self._num_held_back)]

    def take(self) -> str:
        """What came to `text` since the last call; costs what is new."""
        text = self._untaken + "".join(self._pieces[self._num_pieces_taken :])
        self._num_pieces_taken = len(self._pieces)
        end = max(0, len(text) - self._num_held_back)
        self._untaken = text[end:]
        self._num_chars_taken += end
        return text[:end]

    @property
    def _num_held_back(self) -> int:
        return 0 if self._is_flushed or self._matcher is None else self._matcher.num_held_back

    def _add(self, piece: str) -> str | None:
        if not piece:
            return None
        self._pieces.append(piece)
        if self._matcher is None:
            return None
        if self._min_tokens and self.num_tokens <= self._min_tokens:
            self._matcher.skip(piece)
            return None
        match = self._matcher.push(piece)
        if match is None:
            return None
        text = "".join(self._pieces)[: match.text_length]
        self._pieces, self._num_pieces_taken = [text], 1
        self._untaken = text[self._num_chars_taken :]
        self._is_flushed = True
        return match.stop


class ChoiceTracker:
    """One choice: what its request has generated, and how it ended."""

    def __init__(self, request: Request, tokenizer: TokenizerLike | None) -> None:
        self.request = request
        self.finish_reason: str | None = None
        self._stop_reason: int | str | None = None
        self._text = ChoiceText(request, tokenizer)
        self._go_on()
        self._num_tokens = self._num_taken = len(request.output_token_ids)
        self._text.take()
        self._num_logprobs_taken = 0
        self._is_end_taken = False
        self._cumulative_logprob = 0.0
        self._raw_logprobs: list[TokenLogprobs] = []
        self._logprobs: list[PositionLogprobs] = []

    def add(self, update: RequestUpdate) -> str | None:
        """Take in new tokens; a stop string that they complete ends the choice and is returned."""
        if self.finish_reason is not None:
            return None
        num_before = self._text.num_tokens
        stop = self._text.push(self._visible(update))
        if stop is not None:
            self._drop_after_stop(update, self._text.num_tokens - num_before)
        if stop is None and update.is_finished:
            stop = self._text.flush()
        self._num_tokens += len(update.new_token_ids)
        for entry in update.logprobs or ():
            self._raw_logprobs.append(entry)
            self._cumulative_logprob += entry.logprob
        if stop is not None:
            self.finish_reason, self._stop_reason = FinishReason.STOP.value, stop
        elif update.is_finished:
            self.end()
        return stop

    def end(self) -> None:
        """The request ended without a stop string; its reason is in the request. Idempotent."""
        if self.finish_reason is not None:
            return
        stop = self._text.flush()
        reason = self.request.finish_reason or FinishReason.ABORT
        self.finish_reason = FinishReason.STOP.value if stop is not None else reason.value
        self._stop_reason = stop if stop is not None else self.request.stop_reason

    def cut(self, reason: FinishReason) -> None:
        """End the choice as it is, without the text held back; after an interrupted `add` too. Idempotent."""
        if self.finish_reason is None:
            self.finish_reason = reason.value

    def output(self, pieces: PieceDecoder) -> CompletionOutput:
        """The choice as of now."""
        wants_logprobs = self.request.params.logprobs is not None
        for entry in self._raw_logprobs[len(self._logprobs) :]:
            self._logprobs.append(pieces.position(entry))
        return CompletionOutput(
            index=self.request.choice_index,
            text=self._text.text(),
            token_ids=self.request.output_token_ids[: self._num_tokens],
            cumulative_logprob=self._cumulative_logprob if wants_logprobs else None,
            logprobs=list(self._logprobs) if wants_logprobs else None,
            finish_reason=self.finish_reason,
            stop_reason=self._stop_reason,
        )

    def _go_on(self) -> None:
        """Take in the tokens of a request that is resumed."""
        request = self.request
        tokens = request.output_token_ids
        ends = (
            bool(tokens) and tokens[-1] in request.stop_token_ids and len(tokens) > request.params.min_tokens
        )
        stop = self._text.push(tokens)
        if ends or stop is not None:
            found = f"token {tokens[-1]}" if stop is None else f"stop string {stop!r}"
            raise PromptError(f"a resumed output ends with {found}: it had ended, give None")

    def take(self, pieces: PieceDecoder) -> ChoiceDelta | None:
        """What came since the last call; None where nothing did."""
        is_end = self.finish_reason is not None and not self._is_end_taken
        text = self._text.take()
        if not is_end and self._num_tokens == self._num_taken and not text:
            return None
        new_logprobs = self._raw_logprobs[self._num_logprobs_taken :]
        wants_logprobs = self.request.params.logprobs is not None
        delta = ChoiceDelta(
            index=self.request.choice_index,
            text=text,
            token_ids=self.request.output_token_ids[self._num_taken : self._num_tokens],
            logprobs=[pieces.position(entry) for entry in new_logprobs] if wants_logprobs else None,
            finish_reason=self.finish_reason,
            stop_reason=self._stop_reason,
        )
        self._num_taken, self._num_logprobs_taken = self._num_tokens, len(self._raw_logprobs)
        self._is_end_taken = self._is_end_taken or is_end
        return delta

    def _drop_after_stop(self, update: RequestUpdate, num_kept: int) -> None:
        """Of the tokens of a step with drafts, those after the stop string were never asked for."""
        num_dropped = len(update.new_token_ids) - num_kept
        if num_dropped <= 0:
            return
        del self.request.output_token_ids[-num_dropped:]
        update.new_token_ids = update.new_token_ids[:num_kept]
        if update.logprobs is not None:
            update.logprobs = update.logprobs[:num_kept]

    def _visible(self, update: RequestUpdate) -> list[int]:
        """The new tokens that give text: not an EOS or stop token that ended the request."""
        request = self.request
        ends_at_token = update.is_finished and request.finish_reason is FinishReason.STOP
        if not ends_at_token or request.params.include_stop_str_in_output:
            return update.new_token_ids
        is_stop = bool(update.new_token_ids) and update.new_token_ids[-1] in request.stop_token_ids
        return update.new_token_ids[:-1] if is_stop else update.new_token_ids


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


def _added_tokens(tokenizer: TokenizerLike) -> Mapping[int, str] | None:
    """A tokenizer's added tokens, where it tells them."""
    tokens = getattr(tokenizer, "added_tokens", None)
    return tokens if isinstance(tokens, Mapping) else None
