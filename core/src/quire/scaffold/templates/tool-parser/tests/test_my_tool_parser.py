"""The shipped suite: the same however the text is cut, nothing lost, nothing raised, linear. And an answer."""

from __future__ import annotations

from quire_my_tool_parser.parser import MyToolParser

from quire.api.serving import ParsedText, ParserContext, ToolCallDelta
from quire.testing import TextParserConformance


class TestMyToolParser(TextParserConformance):
    parser = MyToolParser
    texts = ('CALL add {"a": 1}\nCALL add {"a": \nCALL sub {}\nDone', "CAL\nCALLS\n")


def test_a_call_and_what_is_none() -> None:
    parser = MyToolParser(ParserContext([{"type": "function", "function": {"name": "add"}}]))
    assert parser.push("Let me see.\nCALL a") == ParsedText("Let me see.\n")
    assert parser.push('dd {"a": 1}\n') == ParsedText(tool_calls=[ToolCallDelta(0, "add", '{"a": 1}')])
    assert parser.push("CALL me back") == ParsedText()
    assert parser.flush() == ParsedText("CALL me back")
