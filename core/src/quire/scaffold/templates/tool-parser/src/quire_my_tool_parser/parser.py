"""The parser: what is content, and what is a call, while the text comes in pieces."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from quire.api.serving import ParsedText, ParserContext, ToolCallDelta

MARK = "CALL "
LINE = re.compile(r"[^\n]*\n|[^\n]+")


class MyToolParser:
    """Calls are lines of their own, `CALL add {"a": 1}`; see TextParser."""

    def __init__(self, context: ParserContext) -> None:
        functions = [tool.get("function") for tool in context.tools]
        self._names = {each.get("name") for each in functions if isinstance(each, Mapping)}
        self._line: list[str] = []  # what is held back of the line
        self._kind = "unknown"
        self._num_calls = 0

    def push(self, text: str) -> ParsedText:
        """What a new piece of text gives."""
        parsed = ParsedText()
        for piece in LINE.findall(text):
            self._add(piece, parsed)
        return parsed

    def flush(self) -> ParsedText:
        """What was held back, at the end of the text."""
        parsed = ParsedText()
        self._end_line(parsed)
        return parsed

    def _add(self, piece: str, parsed: ParsedText) -> None:
        self._line.append(piece)
        if self._kind == "unknown":
            head = "".join(self._line)
            if head.startswith(MARK):
                self._kind = "call"
            elif not MARK.startswith(head):
                self._kind = "content"
        if self._kind == "content":
            parsed.content += "".join(self._line)
            self._line = []
        if piece.endswith("\n"):
            self._end_line(parsed)

    def _end_line(self, parsed: ParsedText) -> None:
        line, self._line, self._kind = "".join(self._line), [], "unknown"
        call = self._read(line) if line.startswith(MARK) else None
        if call is None:
            parsed.content += line
        else:
            parsed.tool_calls.append(call)
            self._num_calls += 1

    def _read(self, line: str) -> ToolCallDelta | None:
        """The line's call; None where it is malformed, or of no tool of the request."""
        name, _, text = line.removeprefix(MARK).strip().partition(" ")
        try:
            arguments = json.loads(text)
            text = json.dumps(arguments, allow_nan=False)
        except (ValueError, RecursionError):
            return None
        if name not in self._names or not isinstance(arguments, dict):
            return None
        return ToolCallDelta(self._num_calls, name, text)
