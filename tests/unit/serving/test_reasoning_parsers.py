"""Reasoning parsers, and the suite of parsers on them."""

from __future__ import annotations

import pytest

from quire.api.serving import ParsedText, ParserContext
from quire.testing import TextParserConformance
from quire_serving.parsers import reasoning


def parse(name: str, *pieces: str) -> tuple[str, str]:
    parser = getattr(reasoning, name)(ParserContext())
    parts = [parser.push(piece) for piece in pieces] + [parser.flush()]
    return "".join(part.reasoning for part in parts), "".join(part.content for part in parts)


@pytest.mark.parametrize(
    ("name", "text", "thought", "content"),
    [
        ("deepseek_r1", "<think>\nHm.\n</think>\n\nYes.", "Hm.\n", "Yes."),
        ("deepseek_r1", "Hm.</think>Yes.", "Hm.", "Yes."),
        ("deepseek_r1", "Hm. </thi", "Hm. </thi", ""),
        ("deepseek_r1", "<think></think>Yes </think> no", "", "Yes </think> no"),
        ("qwen3", "<think>Hm.</think>Yes.", "Hm.", "Yes."),
        ("qwen3", "\n<think>\n\n</think>\n\nYes.", "", "Yes."),
        ("qwen3", "Hm.</think>Yes.", "", "Hm.</think>Yes."),
        ("qwen3", "<think>Hm", "Hm", ""),
        ("qwen3", "  <thi", "", "  <thi"),
        ("qwen3", "So <think>Hm.</think>", "", "So <think>Hm.</think>"),
    ],
)
def test_splits(name: str, text: str, thought: str, content: str) -> None:
    assert parse(name, text) == parse(name, *text) == (thought, content)


def test_reasoning_is_held_no_longer_than_it_must() -> None:
    parser = reasoning.qwen3(ParserContext())
    assert parser.push("<think>") == ParsedText()
    assert parser.push("\nHm </") == ParsedText(reasoning="Hm ")
    assert parser.push("b>") == ParsedText(reasoning="</b>")
    assert parser.push("</think>\n") == ParsedText()
    assert parser.push("Yes ") == ParsedText("Yes ")


class TestDeepseekR1(TextParserConformance):
    parser = "quire_serving.parsers.reasoning:deepseek_r1"
    marks = ("<think>", "</think>")


class TestQwen3(TextParserConformance):
    parser = "quire_serving.parsers.reasoning:qwen3"
    marks = ("<think>", "</think>")
