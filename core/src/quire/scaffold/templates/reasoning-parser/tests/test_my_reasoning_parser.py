"""The shipped suite: the same however the text is cut, nothing lost, nothing raised, linear. And an answer."""

from __future__ import annotations

from quire_my_reasoning_parser.parser import CLOSE, OPEN, MyReasoningParser

from quire.api.serving import ParsedText, ParserContext
from quire.testing import TextParserConformance


class TestMyReasoningParser(TextParserConformance):
    parser = MyReasoningParser
    texts = (f"{OPEN}First </ look.{CLOSE}It is 3.", f"{OPEN}never closed", f"It is {OPEN}3{CLOSE}.")
    marks = (OPEN, CLOSE)


def test_reasoning_and_answer() -> None:
    parser = MyReasoningParser(ParserContext())
    assert parser.push(f"{OPEN}Let me see") == ParsedText(reasoning="Let me see")
    assert parser.push(f"{CLOSE}It is 3.") == ParsedText("It is 3.")
    assert parser.flush() == ParsedText()
