"""What an answer's text goes through: the reasoning parser, then the tool parser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quire.api.serving import ParsedText, ParserContext, TextParser
from quire_serving.errors import ApiError
from quire_serving.state import ServerState


class PlainText:
    """All text is content."""

    def push(self, text: str) -> ParsedText:
        """See TextParser."""
        return ParsedText(text)

    def flush(self) -> ParsedText:
        """See TextParser."""
        return ParsedText()


class ParserChain:
    """A reasoning parser whose content a tool parser reads; a TextParser."""

    def __init__(self, reasoning: TextParser, tools: TextParser) -> None:
        self._reasoning = reasoning
        self._tools = tools

    def push(self, text: str) -> ParsedText:
        """See TextParser."""
        return self._pass_on(self._reasoning.push(text))

    def flush(self) -> ParsedText:
        """See TextParser."""
        parsed, rest = self._pass_on(self._reasoning.flush()), self._tools.flush()
        return ParsedText(
            parsed.content + rest.content,
            parsed.reasoning + rest.reasoning,
            parsed.tool_calls + rest.tool_calls,
        )

    def _pass_on(self, parsed: ParsedText) -> ParsedText:
        found = self._tools.push(parsed.content) if parsed.content else ParsedText()
        return ParsedText(found.content, parsed.reasoning + found.reasoning, found.tool_calls)


def answer_parser(state: ServerState, tools: Sequence[Mapping[str, object]] = ()) -> TextParser:
    """A parser of one answer, as the server's settings say; call it once a choice.

    Args:
        state: for its settings and parsers.
        tools: those that the model may call, as /v1/chat/completions spells them.

    Raises:
        ApiError: there are tools, and the server has no parser of tool calls.
    """
    settings, extensions = state.settings, state.extensions
    if tools and settings.tool_call_parser is None:
        raise ApiError(
            400,
            "tool_parser_missing",
            "this server looks for no tool calls: start it with --tool-call-parser, or leave tools out",
            "tools",
        )
    reasoning: TextParser = PlainText()
    if settings.reasoning_parser is not None:
        context = ParserContext((), state.client.tokenizer)
        reasoning = extensions.reasoning_parsers[settings.reasoning_parser](context)
    if not tools or settings.tool_call_parser is None or not settings.enable_auto_tool_choice:
        return reasoning
    context = ParserContext(tools, state.client.tokenizer)
    return ParserChain(reasoning, extensions.tool_parsers[settings.tool_call_parser](context))
