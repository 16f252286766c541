"""Token ids to text, as they come: what was given out never changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quire.api.protocols import TokenizerLike

REPLACEMENT = "\ufffd"

_MAX_PENDING = 32
_MAX_CONTEXT = 24


class IncrementalDetokenizer:
    """The text of a growing list of token ids, at a bounded cost per token.

    Only a short window is decoded: the tokens of the last piece of text given out, which settle
    spaces and joins, and the pending ones after it. While the window ends in U+FFFD its last
    character may be incomplete, so its tokens stay pending; after `_MAX_PENDING` of them they are
    given out as they are. The pieces together equal `tokenizer.decode` of all ids, except where later
    tokens change the text of earlier ones (a run of byte tokens that turns out not to be UTF-8).

    Args:
        tokenizer: decodes the windows.
        skip_special_tokens: special tokens give no text.
        special_tokens: ids and texts of special tokens; those among them that follow each other are
            then given out without spaces between them (spaces_between_special_tokens=False).
        context: ids before the first one, e.g. the prompt: they give no text, but decide whether the
            first token begins with a space. Their end is enough.
    """

    def __init__(
        self,
        tokenizer: TokenizerLike,
        *,
        skip_special_tokens: bool = True,
        special_tokens: Mapping[int, str] | None = None,
        context: Sequence[int] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._special_tokens = special_tokens or {}
        self._is_after_special = False
        self._window: list[int] = []
        self._num_pending = 0
        self._num_emitted = 0  # characters of the window's text that were given out
        if context:
            self._start_after(context)

    def push(self, token_id: int) -> str:
        """Add a token; the text that has become certain, often empty."""
        if self._special_tokens and self._is_special_run(token_id):
            return self._replace_window(token_id)
        self._window.append(token_id)
        self._num_pending += 1
        text = self._decode(self._window)
        if text.endswith(REPLACEMENT) and self._num_pending < _MAX_PENDING:
            return ""
        return self._emit(text)

    def flush(self) -> str:
        """The text of the tokens still pending, incomplete characters as U+FFFD. Nothing follows it."""
        return self._emit(self._decode(self._window)) if self._num_pending else ""

    def _emit(self, text: str) -> str:
        piece = text[self._num_emitted :]
        if piece:
            self._window = self._window[-self._num_pending :]
            self._num_emitted = len(self._decode(self._window))
            self._num_pending = 0
        elif self._num_pending >= _MAX_PENDING:  # skipped special tokens: they decide nothing
            del self._window[-self._num_pending :]
            self._num_pending = 0
        return piece

    def _start_after(self, context: Sequence[int]) -> None:
        """Begin with the shortest end of the context that does not start inside a character."""
        for length in range(4, _MAX_CONTEXT):
            self._window = list(context[-length:])
            text = self._decode(self._window)
            if length >= len(context) or REPLACEMENT not in text:
                break
        self._num_emitted = len(self._decode(self._window))

    def _is_special_run(self, token_id: int) -> bool:
        was_special = self._is_after_special
        self._is_after_special = token_id in self._special_tokens and not self._skip_special_tokens
        return was_special and self._is_after_special

    def _replace_window(self, token_id: int) -> str:
        piece = self.flush() + self._special_tokens[token_id]
        self._window = [token_id]
        self._num_pending = 0
        self._num_emitted = len(self._decode(self._window))
        return piece

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skip_special_tokens)
