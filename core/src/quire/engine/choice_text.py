"""From a choice's tokens to its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quire.api.protocols import TokenizerLike
from quire.api.request import Request
from quire.engine.detokenizer import IncrementalDetokenizer
from quire.engine.stop_strings import StopStringMatcher


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


def _added_tokens(tokenizer: TokenizerLike) -> Mapping[int, str] | None:
    """A tokenizer's added tokens, where it tells them."""
    tokens = getattr(tokenizer, "added_tokens", None)
    return tokens if isinstance(tokens, Mapping) else None
