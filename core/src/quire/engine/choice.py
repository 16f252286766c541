"""One choice of a request, on the way to its output: text, logprobs, and how it ended."""

from __future__ import annotations

from quire.api.errors import PromptError
from quire.api.outputs import ChoiceDelta, CompletionOutput, Logprob, PositionLogprobs
from quire.api.protocols import TokenizerLike
from quire.api.request import FinishReason, Request
from quire.api.step import TokenLogprobs
from quire.engine.choice_text import ChoiceText
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
