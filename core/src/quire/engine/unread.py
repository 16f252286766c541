"""What a request got and nobody has read, as one delta."""

from __future__ import annotations

from quire.api.outputs import ChoiceDelta, OutputDelta


class Unread:
    """Joins deltas as they come: the cost is that of what they hold, and few objects are kept."""

    def __init__(self) -> None:
        self._delta: OutputDelta | None = None
        self._choices: dict[int, ChoiceDelta] = {}
        self._texts: dict[int, list[str]] = {}  # of choices that got more than once

    def __bool__(self) -> bool:
        return self._delta is not None

    def add(self, delta: OutputDelta) -> None:
        """Take a delta over; what came before is added to it."""
        before, self._delta = self._delta, delta
        if before is not None and before.prompt_logprobs is not None:
            delta.prompt_logprobs = before.prompt_logprobs
        for choice in delta.choices:
            whole = self._choices.setdefault(choice.index, choice)
            if whole is not choice:
                self._add_choice(whole, choice)

    def take(self) -> OutputDelta | None:
        """All that came since the last call; None where nothing did."""
        delta = self._delta
        if delta is not None:
            for index, parts in self._texts.items():
                self._choices[index].text = "".join(parts)
            delta.choices = [self._choices[index] for index in sorted(self._choices)]
        self._delta, self._choices, self._texts = None, {}, {}
        return delta

    def _add_choice(self, whole: ChoiceDelta, choice: ChoiceDelta) -> None:
        self._texts.setdefault(choice.index, [whole.text]).append(choice.text)
        whole.token_ids += choice.token_ids
        if choice.logprobs is not None:
            whole.logprobs = whole.logprobs or []
            whole.logprobs += choice.logprobs
        whole.finish_reason, whole.stop_reason = choice.finish_reason, choice.stop_reason
