"""Deltas back to the cumulative output of a request."""

from __future__ import annotations

from dataclasses import replace

from quire.api.outputs import ChoiceDelta, CompletionOutput, OutputDelta, RequestOutput


class OutputAssembler:
    """Adds up a request's deltas.

    Args:
        start: the output as it was when the request was added; goes over to the assembler.
    """

    def __init__(self, start: RequestOutput) -> None:
        self._output = start
        self._choices = {choice.index: choice for choice in start.outputs}

    def add(self, delta: OutputDelta) -> None:
        """Take in the next delta."""
        output = self._output
        for part in delta.choices:
            _extend(self._choices[part.index], part)
        output.finished = delta.finished
        output.prompt_logprobs = delta.prompt_logprobs or output.prompt_logprobs
        output.error = delta.error or output.error
        if delta.metrics is not None:
            output.metrics = delta.metrics
            output.num_cached_tokens = delta.metrics.num_cached_tokens

    def output(self) -> RequestOutput:
        """The cumulative output of now; nothing of it changes later."""
        choices = [
            replace(
                choice,
                token_ids=list(choice.token_ids),
                logprobs=None if choice.logprobs is None else list(choice.logprobs),
            )
            for choice in self._output.outputs
        ]
        return replace(self._output, outputs=choices)


def _extend(choice: CompletionOutput, part: ChoiceDelta) -> None:
    choice.text += part.text
    choice.token_ids += part.token_ids
    choice.finish_reason, choice.stop_reason = part.finish_reason, part.stop_reason
    if choice.logprobs is not None and part.logprobs is not None:
        choice.logprobs += part.logprobs
        added = zip(part.token_ids, part.logprobs, strict=True)
        choice.cumulative_logprob = (choice.cumulative_logprob or 0.0) + sum(
            entries[token_id].logprob for token_id, entries in added
        )
