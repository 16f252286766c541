"""The parser: what is reasoning, and what is the answer, while the text comes in pieces."""

from __future__ import annotations

from quire.api.serving import ParsedText, ParserContext

OPEN, CLOSE = "<think>", "</think>"


class MyReasoningParser:
    """Reasoning is what stands between the marks, where the text begins with the first; see TextParser."""

    def __init__(self, context: ParserContext) -> None:
        self._place = "start"
        self._held = ""  # what may be the beginning of a mark

    def push(self, text: str) -> ParsedText:
        """What a new piece of text gives."""
        parsed = ParsedText()
        text, self._held = self._held + text, ""
        if self._place == "start" and text:
            if text.startswith(OPEN):
                self._place, text = "reasoning", text.removeprefix(OPEN)
            elif OPEN.startswith(text):
                self._held, text = text, ""
            else:
                self._place = "content"
        if self._place == "reasoning":
            parsed.reasoning, mark, text = text.partition(CLOSE)
            if mark:
                self._place = "content"
            else:
                self._hold_back(parsed)
        parsed.content = text
        return parsed

    def flush(self) -> ParsedText:
        """What was held back, at the end of the text."""
        text, self._held = self._held, ""
        return ParsedText(reasoning=text) if self._place == "reasoning" else ParsedText(text)

    def _hold_back(self, parsed: ParsedText) -> None:
        """Keep the end of the reasoning where it may become the closing mark."""
        text = parsed.reasoning
        for size in range(min(len(text), len(CLOSE) - 1), 0, -1):
            if text.endswith(CLOSE[:size]):
                parsed.reasoning, self._held = text[:-size], text[-size:]
                return
