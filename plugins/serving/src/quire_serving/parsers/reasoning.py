"""Parsers of reasoning: what a model writes between `<think>` and `</think>` before it answers.

White space after either mark is dropped. What was never closed is reasoning.
"""

from __future__ import annotations

from enum import Enum, auto

from quire.api.serving import ParsedText, ParserContext
from quire_serving.parsers.marks import begun_mark, is_begun, skip_space

_OPEN, _CLOSE = "<think>", "</think>"


class _Place(Enum):
    START = auto()
    AFTER_OPEN = auto()
    REASONING = auto()
    AFTER_CLOSE = auto()
    CONTENT = auto()


class ThinkParser:
    """Splits an answer into reasoning and content; a TextParser."""

    def __init__(self, is_open: bool) -> None:
        """Begin in reasoning where the prompt ended with `<think>`; elsewhere the answer must begin with it."""
        self._unmarked = _Place.REASONING if is_open else _Place.CONTENT
        self._place = _Place.START
        self._space: list[str] = []  # at the start
        self._held = ""  # what may be the start of a mark

    def push(self, text: str) -> ParsedText:
        """See TextParser."""
        parsed = ParsedText()
        text, self._held = self._held + text, ""
        position = 0
        while position < len(text):
            if self._place is _Place.START:
                position = self._look_for_open(text, position, parsed)
            elif self._place is _Place.REASONING:
                position = self._look_for_close(text, position, parsed)
            elif self._place is _Place.CONTENT:
                parsed.content += text[position:]
                position = len(text)
            else:
                position = self._drop_space(text, position)
        return parsed

    def flush(self) -> ParsedText:
        """See TextParser."""
        text = "".join(self._space) + self._held
        self._space, self._held = [], ""
        is_content = self._place is _Place.START and self._unmarked is _Place.CONTENT
        return ParsedText(content=text) if is_content else ParsedText(reasoning=text)

    def _look_for_open(self, text: str, position: int, parsed: ParsedText) -> int:
        begin, position = position, skip_space(text, position)
        self._space.append(text[begin:position])
        if position == len(text):
            return position
        if is_begun(text, position, (_OPEN,)):
            self._held = text[position:]
            return len(text)
        if text.startswith(_OPEN, position):
            self._place = _Place.AFTER_OPEN
            position += len(_OPEN)
        else:
            self._place = self._unmarked
            self._give("".join(self._space), parsed)
        self._space = []
        return position

    def _look_for_close(self, text: str, position: int, parsed: ParsedText) -> int:
        end = text.find(_CLOSE, position)
        if end >= 0:
            self._give(text[position:end], parsed)
            self._place = _Place.AFTER_CLOSE
            return end + len(_CLOSE)
        end = begun_mark(text, position, (_CLOSE,))
        self._give(text[position:end], parsed)
        self._held = text[end:]
        return len(text)

    def _drop_space(self, text: str, position: int) -> int:
        position = skip_space(text, position)
        if position < len(text):
            is_open = self._place is _Place.AFTER_OPEN
            self._place = _Place.REASONING if is_open else _Place.CONTENT
        return position

    def _give(self, text: str, parsed: ParsedText) -> None:
        if self._place is _Place.REASONING:
            parsed.reasoning += text
        else:
            parsed.content += text


def deepseek_r1(context: ParserContext) -> ThinkParser:
    """Reasoning from the start, with or without `<think>`, since some templates end with it: DeepSeek-R1."""
    return ThinkParser(is_open=True)


def qwen3(context: ParserContext) -> ThinkParser:
    """Reasoning only where the answer begins with `<think>`: Qwen3 and other models that may think or not."""
    return ThinkParser(is_open=False)
