"""Parsers of tool calls.

A call is given out when its text is complete, name and arguments at once: what was sent cannot be taken
back, and only a complete call is known to be one. Text that turns out not to be a call of one of the
request's tools is content, every character of it. White space around calls is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from quire.api.serving import ParsedText, ParserContext, ToolCallDelta
from quire_serving.parsers.brackets import JSON, PYTHON, BracketScanner, Syntax
from quire_serving.parsers.calls import Call, calls_of_json, calls_of_python
from quire_serving.parsers.marks import any_of, begun_mark, is_begun, skip_space
from quire_serving.parsers.tags import CLOSING, OPENING, TagScanner, call_of_tags, types_of


@dataclass(slots=True, frozen=True)
class CallFormat:
    """How a family of models writes tool calls: blocks, each one bracketed text with marks around it.

    Attributes:
        read: gives the calls of a bracketed text; raises ValueError.
        starts: the brackets that it may begin with; each is one character.
        openers: marks before a block, anywhere in the answer.
        leading: marks before a block, only at the answer's start or after another block.
        trailers: marks after a block.
        is_bare: a block needs no mark at the answer's start or after another block.
        syntax: of the text between brackets.
        tags: what a block begins and ends with, where it is no bracketed text.
    """

    read: Callable[[str], list[Call]]
    starts: str
    openers: tuple[str, ...] = ()
    leading: tuple[str, ...] = ()
    trailers: tuple[str, ...] = ()
    is_bare: bool = False
    syntax: Syntax = JSON
    tags: tuple[str, str] | None = None

    def new_scanner(self) -> BracketScanner | TagScanner:
        """What finds the end of a block."""
        return TagScanner(*self.tags) if self.tags else BracketScanner(self.syntax, self.starts)


HERMES = CallFormat(calls_of_json, "{", openers=("<tool_call>",), trailers=("</tool_call>",))
LLAMA3_JSON = CallFormat(calls_of_json, "{", openers=("<|python_tag|>",), trailers=(";",), is_bare=True)
MISTRAL = CallFormat(calls_of_json, "[", openers=("[TOOL_CALLS]",), is_bare=True)
PYTHONIC = CallFormat(calls_of_python, "[", is_bare=True, syntax=PYTHON)
LLAMA4_PYTHONIC = replace(PYTHONIC, openers=("<|python_start|>",), trailers=("<|python_end|>",))
GRANITE = replace(MISTRAL, openers=("<|tool_call|>", "<tool_call>"), trailers=("</tool_call>",))
JAMBA = CallFormat(calls_of_json, "[", openers=("<tool_calls>",), trailers=("</tool_calls>",))
PHI4_MINI_JSON = CallFormat(calls_of_json, "[", openers=("functools",))
INTERNLM = CallFormat(
    calls_of_json,
    "{",
    openers=("<|action_start|><|plugin|>",),
    trailers=("<|action_end|>",),
    is_bare=True,
)
PLAIN_JSON = CallFormat(
    calls_of_json, "[{", openers=("```json",), leading=("```",), trailers=("```",), is_bare=True
)


class CallParser:
    """Splits an answer into content and tool calls; a TextParser."""

    def __init__(self, form: CallFormat, context: ParserContext) -> None:
        """Expect calls of the context's tools."""
        self._form = form
        self._names = frozenset(_names(context))
        self._openers = any_of(form.openers)
        self._num_calls = 0
        self._is_fresh = True  # at the start of the answer, or right after a block
        self._is_trailer_due = False
        self._space: list[str] = []  # white space at a fresh place
        self._held = ""  # what may be the start of a mark
        self._block: list[str] = []  # a block's marks and text so far
        self._scanner: BracketScanner | TagScanner | None = None  # of the block
        self._content: list[str] = []

    def push(self, text: str) -> ParsedText:
        """See TextParser."""
        calls: list[ToolCallDelta] = []
        text, self._held = self._held + text, ""
        position = 0
        while position < len(text):
            if self._scanner is not None:
                position = self._go_on_in_block(text, position, self._scanner, calls)
            elif self._is_fresh:
                position = self._look_for_start(text, position)
            else:
                position = self._look_for_opener(text, position)
        return self._take(calls)

    def flush(self) -> ParsedText:
        """See TextParser."""
        is_trailer = self._is_trailer_due and self._held in self._form.trailers
        if self._held and not is_trailer:
            self._leave_fresh()
            self._content.append(self._held)
        if self._num_calls == 0 or self._block:
            self._leave_fresh()
        self._content += self._block
        self._held, self._block, self._space, self._scanner = "", [], [], None
        return self._take([])

    def _look_for_start(self, text: str, position: int) -> int:
        """Where a block may begin: white space is held, and marks are looked for right here."""
        begin, position = position, skip_space(text, position)
        self._space.append(text[begin:position])
        if position == len(text):
            return position
        form = self._form
        trailers = form.trailers if self._is_trailer_due else ()
        marks = (*form.openers, *form.leading, *trailers)
        if is_begun(text, position, marks):
            self._held = text[position:]
            return len(text)
        match = any_of(marks).match(text, position)
        if match and match.group() in trailers:
            self._is_trailer_due = False
            return match.end()
        if match:
            return self._begin_block(match.group(), match.end())
        if form.is_bare and text[position] in form.starts:
            return self._begin_block("", position)
        self._leave_fresh()
        return position

    def _look_for_opener(self, text: str, position: int) -> int:
        """In content: all of it is given out, but what may be the start of a mark."""
        match = self._openers.search(text, position)
        end = match.start() if match else begun_mark(text, position, self._form.openers)
        self._content.append(text[position:end])
        if match:
            return self._begin_block(match.group(), match.end())
        self._held = text[end:]
        return len(text)

    def _begin_block(self, mark: str, position: int) -> int:
        self._block = [mark]
        self._scanner = self._form.new_scanner()
        return position

    def _go_on_in_block(
        self, text: str, position: int, scanner: BracketScanner | TagScanner, calls: list[ToolCallDelta]
    ) -> int:
        end = scanner.scan(text, position)
        self._block.append(text[position:end])
        if not (scanner.is_closed or scanner.is_broken):
            return end
        found = self._read("".join(self._block[1:])) if scanner.is_closed else []
        if found:
            calls += [
                ToolCallDelta(self._num_calls + index, call.name, call.arguments)
                for index, call in enumerate(found)
            ]
            self._num_calls += len(found)
            self._is_fresh = self._is_trailer_due = True
            self._space = []
        else:
            self._leave_fresh()
            self._content += self._block
        self._block, self._scanner = [], None
        return end

    def _read(self, text: str) -> list[Call]:
        """The calls of a block; none where it is malformed or a name is unknown."""
        try:
            calls = self._form.read(text)
        except ValueError:
            return []
        return calls if all(call.name in self._names for call in calls) else []

    def _leave_fresh(self) -> None:
        self._content += self._space
        self._space = []
        self._is_fresh = self._is_trailer_due = False

    def _take(self, calls: list[ToolCallDelta]) -> ParsedText:
        content, self._content = "".join(self._content), []
        return ParsedText(content, tool_calls=calls)


def hermes(context: ParserContext) -> CallParser:
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Hermes, Qwen2.5, Qwen3."""
    return CallParser(HERMES, context)


def llama3_json(context: ParserContext) -> CallParser:
    """`{"name": ..., "parameters": {...}}`, several with `;` between, `<|python_tag|>` before: Llama 3.1 and later."""
    return CallParser(LLAMA3_JSON, context)


def mistral(context: ParserContext) -> CallParser:
    """`[TOOL_CALLS][{"name": ..., "arguments": {...}}]`; without the mark, where special tokens are left out."""
    return CallParser(MISTRAL, context)


def pythonic(context: ParserContext) -> CallParser:
    """`[f(a=1), g(b="x")]`: Llama 3.2 and 4, among others."""
    return CallParser(PYTHONIC, context)


def llama4_pythonic(context: ParserContext) -> CallParser:
    """As pythonic, between `<|python_start|>` and `<|python_end|>`, both of which may be missing: Llama 4."""
    return CallParser(LLAMA4_PYTHONIC, context)


def granite(context: ParserContext) -> CallParser:
    """`<|tool_call|>[{"name": ..., "arguments": {...}}]`, or with `<tool_call>`, or without: Granite 3."""
    return CallParser(GRANITE, context)


def jamba(context: ParserContext) -> CallParser:
    """`<tool_calls>[{"name": ..., "arguments": {...}}]</tool_calls>`: Jamba 1.5, Hunyuan."""
    return CallParser(JAMBA, context)


def internlm(context: ParserContext) -> CallParser:
    """`<|action_start|><|plugin|>{"name": ..., "parameters": {...}}<|action_end|>`: InternLM 2.5."""
    return CallParser(INTERNLM, context)


def phi4_mini_json(context: ParserContext) -> CallParser:
    """`functools[{"name": ..., "arguments": {...}}]`: Phi-4-mini."""
    return CallParser(PHI4_MINI_JSON, context)


def qwen3_coder(context: ParserContext) -> CallParser:
    """`<tool_call><function=f><parameter=a>1</parameter></function></tool_call>`: Qwen3-Coder."""
    types = types_of(context)
    form = CallFormat(
        lambda text: [call_of_tags(text, types)],
        "<",
        openers=("<tool_call>",),
        trailers=("</tool_call>",),
        is_bare=True,
        tags=(OPENING, CLOSING),
    )
    return CallParser(form, context)


def plain_json(context: ParserContext) -> CallParser:
    """A call, or a list of calls, as JSON, fenced or not."""
    return CallParser(PLAIN_JSON, context)


def _names(context: ParserContext) -> list[str]:
    functions = (tool.get("function") for tool in context.tools)
    return [
        str(function["name"])
        for function in functions
        if isinstance(function, Mapping) and "name" in function
    ]
