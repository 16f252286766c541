"""Tool parsers: each format, what is not one, and the suite of parsers on all of them."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest

from quire.api.serving import ParsedText, ParserContext, TextParser
from quire.testing import TextParserConformance
from quire.testing.conformance import ConformanceError
from quire.testing.parser_suite import TOOLS, ParsedSum
from quire_serving.parsers import tools
from quire_serving.parsers.calls import calls_of_json, calls_of_python
from quire_serving.plugin import quire_register_tool_parsers

TYPED = [
    {
        "type": "function",
        "function": {"name": "add", "parameters": {"properties": {"a": {"type": "integer"}}}},
    }
]
CONTEXT = ParserContext((*TOOLS[:1], *TYPED))
ADD = '{"name": "add", "arguments": {"a": 1}}'
CALL = ("add", '{"a": 1}')
TAGGED = "<function=add>\n<parameter=a>\n1\n</parameter>\n</function>"
FORMATS = ("hermes", "llama3_json", "mistral", "pythonic", "plain_json")


def parse(name: str, *pieces: str) -> ParsedSum:
    return parse_with(getattr(tools, name)(CONTEXT), *pieces)


def parse_with(parser: TextParser, *pieces: str) -> ParsedSum:
    total = ParsedSum()
    for piece in pieces:
        total.add(parser.push(piece))
    total.add(parser.flush())
    return total


@pytest.mark.parametrize(
    ("name", "text", "content", "num_calls"),
    [
        ("hermes", f"<tool_call>\n{ADD}\n</tool_call>", "", 1),
        ("hermes", f"Sure.\n<tool_call>{ADD}</tool_call>\n<tool_call>{ADD}</tool_call>\n", "Sure.\n", 2),
        ("hermes", f"\n\n<tool_call>{ADD}", "", 1),
        ("hermes", f"<tool_call>{ADD}</tool_call> Done.", " Done.", 1),
        (
            "hermes",
            f"<tool_call>{ADD[:-1]}</tool_call><tool_call>{ADD}</tool_call>",
            f"<tool_call>{ADD[:-1]}</tool_call>",
            1,
        ),
        ("hermes", ADD, ADD, 0),
        ("llama3_json", '{"name": "add", "parameters": {"a": 1}}', "", 1),
        ("llama3_json", f"<|python_tag|>{ADD}; {ADD}", "", 2),
        ("llama3_json", f"{ADD}{ADD}", "", 2),
        ("llama3_json", f"It is {ADD}", f"It is {ADD}", 0),
        ("mistral", f"[TOOL_CALLS] [{ADD}, {ADD}]", "", 2),
        ("mistral", f"[{ADD}]", "", 1),
        ("mistral", f"Well [TOOL_CALLS][{ADD}]", "Well ", 1),
        ("mistral", "[T1] is a reference", "[T1] is a reference", 0),
        ("pythonic", "[add(a=1)]", "", 1),
        ("pythonic", " [add(a=1), add(a=1)]\n", "", 2),
        ("pythonic", "[1] says so", "[1] says so", 0),
        ("pythonic", "[]", "[]", 0),
        ("llama4_pythonic", "<|python_start|>[add(a=1)]<|python_end|>", "", 1),
        ("llama4_pythonic", "[add(a=1), add(a=1)]", "", 2),
        ("granite", f"<|tool_call|>[{ADD}, {ADD}]", "", 2),
        ("granite", f"<tool_call>[{ADD}]</tool_call>", "", 1),
        ("granite", f"[{ADD}]", "", 1),
        ("jamba", f"So: <tool_calls>[{ADD}]</tool_calls>", "So: ", 1),
        ("jamba", f"[{ADD}]", f"[{ADD}]", 0),
        ("internlm", f"So<|action_start|><|plugin|>\n{ADD}<|action_end|>\n", "So", 1),
        ("internlm", ADD, "", 1),
        ("phi4_mini_json", f"functools[{ADD}, {ADD}]", "", 2),
        ("phi4_mini_json", "functools are fine", "functools are fine", 0),
        (
            "qwen3_coder",
            f"See.\n<tool_call>\n{TAGGED}\n</tool_call>\n<tool_call>{TAGGED}</tool_call>",
            "See.\n",
            2,
        ),
        ("qwen3_coder", TAGGED, "", 1),
        ("qwen3_coder", f"<tool_call>{ADD}</tool_call>", f"<tool_call>{ADD}</tool_call>", 0),
        ("qwen3_coder", TAGGED[:-1], TAGGED[:-1], 0),
        ("qwen3_coder", "<function", "<function", 0),
        ("plain_json", f"```json\n[{ADD}]\n```", "", 1),
        ("plain_json", f"```\n{ADD}\n```\n", "", 1),
        ("plain_json", f"[{ADD},{ADD}]", "", 2),
        ("plain_json", 'See:\n```json\n{"a": 1}\n```\n', 'See:\n```json\n{"a": 1}\n```\n', 0),
    ],
)
def test_formats(name: str, text: str, content: str, num_calls: int) -> None:
    assert parse(name, text) == ParsedSum(content, "", [CALL] * num_calls)


@pytest.mark.parametrize(
    "arguments",
    [
        '{"q": "a </tool_call> } ] [TOOL_CALLS] ``` \\" b"}',
        '{"a": {"b": [[{}], null, -1.5e3]}}',
        '{"zürich": "\\u00fc😀"}',
    ],
)
@pytest.mark.parametrize("form", ["<tool_call>{}</tool_call>", "[TOOL_CALLS][{}]", "```json\n{}\n```", "{}"])
def test_strings_hold_anything(form: str, arguments: str) -> None:
    name = {"<": "hermes", "[": "mistral", "`": "plain_json", "{": "llama3_json"}[form[0]]
    found = parse(name, *form.replace("{}", f'{{"name": "add", "arguments": {arguments}}}'))
    assert found.content == ""
    assert [(name, json.loads(text)) for name, text in found.calls] == [("add", json.loads(arguments))]


def test_python_literals_become_json() -> None:
    found = parse(
        "pythonic", "[get_weather(city='it\\'s ] (', days=[1, -2], deep={'a': (1, None)}, now=True)]"
    )
    wanted = {"city": "it's ] (", "days": [1, -2], "deep": {"a": [1, None]}, "now": True}
    assert json.loads(found.calls[0][1]) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "[add(1)]", "[add(**{'a': 1})]", "[add(a=add(a=1))]", "[add(a=open('x'))]", "[add(a=__import__('os'))]",
        "[add(a={1, 2})]", "[add(a=b'x')]", "[add(a=1e999)]", "[add(a='\\ud800')]", "[add(a=1), other(a=1)]",
        "[add(a=" + "-" * 20000 + "1)]", "[add(a=" + "1+" * 20000 + "1)]", "[add(a=" + "9" * 5000 + ")]",
        "[add(a=lambda: 1)]",
    ],
)  # fmt: skip
def test_what_is_no_python_call_is_content(text: str) -> None:
    assert parse("pythonic", text) == ParsedSum(text)


@pytest.mark.parametrize(
    "body",
    [
        '{"name": "other", "arguments": {}}', '{"name": 1}', '{"arguments": {}}', '{"name": "add", "arguments": [1]}',
        '{"name": "add", "arguments": {"a": NaN}}', '{"name": "add", "arguments": {"a": 1e999}}', "[" * 100,
        '{"name": "add", "arguments": {"a": "\\ud800"}}', '{"name": "add", "arguments": {"a": 1,}}', "none", "",
    ],
)  # fmt: skip
def test_what_is_no_json_call_is_content(body: str) -> None:
    text = f"<tool_call>{body}</tool_call> after"
    assert parse("hermes", text) == ParsedSum(text)


@pytest.mark.parametrize(
    ("kind", "value", "wanted"),
    [
        ("string", "3", "3"),
        ("string", "\n\n two\nlines \n", "\n two\nlines "),
        ("string", 'a <b> </parameter> & " 日本', 'a <b> </parameter> & " 日本'),
        ("integer", "\n-3\n", -3),
        ("number", "1.5e3", 1500.0),
        ("boolean", "True", True),
        ("boolean", " false ", False),
        ("object", '{"a": [1, null]}', {"a": [1, None]}),
        ("array", "[1,", "[1,"),
        ("array", "[" * 100_000, "[" * 100_000),
        ("null", "None", None),
        (["string", "null"], "null", "null"),
        (None, "3", "3"),
    ],
)
def test_tagged_values_have_the_types_of_the_schema(kind: object, value: str, wanted: object) -> None:
    schema = {"properties": {"a": {} if kind is None else {"type": kind}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    parser = tools.qwen3_coder(ParserContext((tool,)))
    text = f"<function=f><parameter=a>{value}</parameter></function>"
    [call] = parser.push(text).tool_calls
    assert json.loads(call.arguments) == {"a": wanted}


@pytest.mark.parametrize(
    "body",
    [
        "other>", "add", "add><parameter=a>1", "add>x<parameter=a>1</parameter>", "add><parameter=a</parameter>",
        "add><parameter=a>1</parameter>x", "add><parameter=a>1e999</parameter>", "add><parameter=a>\ud800</parameter>",
    ],
)  # fmt: skip
def test_what_is_no_tagged_call_is_content(body: str) -> None:
    text = f"<tool_call><function={body}</function></tool_call> after"
    assert parse("qwen3_coder", text) == ParsedSum(text)


@pytest.mark.parametrize(
    "tools_of", [(), ({},), ({"function": 3},), ({"function": {"name": "f", "parameters": []}},)]
)
def test_tools_without_a_schema_have_no_types(tools_of: Any) -> None:
    assert parse_with(tools.qwen3_coder(ParserContext(tools_of)), "<function=g></function>").calls == []


def test_all_parsers_that_are_registered_are_tested() -> None:
    factories = {str(spec.factory).partition(":")[2] for spec in quire_register_tool_parsers()}
    suites = [suite for name, suite in globals().items() if name.startswith("Test")]
    tested = {str(getattr(suite, "parser", "")).partition(":")[2] for suite in suites}
    assert factories <= tested


def test_readers_refuse_deep_nesting_with_a_value_error() -> None:
    for read, text in ((calls_of_json, "[" * 200_000), (calls_of_python, "[" * 20_000)):
        with pytest.raises(ValueError):
            read(text)


def test_content_is_held_no_longer_than_it_must() -> None:
    parser = tools.hermes(CONTEXT)
    assert parser.push("Hello <tool").content == "Hello "
    assert parser.push(" x").content == "<tool x"
    assert parser.push("<tool_call>" + ADD[:-1]) == ParsedText()
    assert [call.name for call in parser.push("}").tool_calls] == ["add"]
    assert parser.push("</tool_call> ").content == ""
    assert parser.push("end").content == " end"
    assert parser.flush() == ParsedText()


class TestHermes(TextParserConformance):
    parser = "quire_serving.parsers.tools:hermes"
    texts = (f"<tool_call>{ADD}</tool_call><tool_call>{{</tool_call>", "<tool_call>" * 9)


class TestLlama3Json(TextParserConformance):
    parser = "quire_serving.parsers.tools:llama3_json"


class TestMistral(TextParserConformance):
    parser = "quire_serving.parsers.tools:mistral"


class TestPythonic(TextParserConformance):
    parser = "quire_serving.parsers.tools:pythonic"


class TestPlainJson(TextParserConformance):
    parser = "quire_serving.parsers.tools:plain_json"
    texts = (f"```\n{ADD}\n```\n```json {ADD}", f"{ADD}```", f"{ADD}``")


class SameMachinery(TextParserConformance):
    """Formats that differ from those above by their marks alone."""

    @pytest.mark.nightly
    def test_linear(self) -> None:
        super().test_linear()


class TestLlama4Pythonic(SameMachinery):
    parser = "quire_serving.parsers.tools:llama4_pythonic"
    texts = (
        "<|python_start|>[add(a=1)]<|python_end|>",
        "<|python_start|>[add(a=1)<|python_end|>",
        "<|python_end|>",
    )


class TestGranite(SameMachinery):
    parser = "quire_serving.parsers.tools:granite"
    texts = (f"<|tool_call|>[{ADD}]", f"<tool_call>[{ADD}</tool_call>")


class TestJamba(SameMachinery):
    parser = "quire_serving.parsers.tools:jamba"
    texts = (f"<tool_calls>[{ADD}]</tool_calls>", "<tool_calls></tool_calls>")


class TestInternlm(SameMachinery):
    parser = "quire_serving.parsers.tools:internlm"
    texts = (f"<|action_start|><|plugin|>{ADD}<|action_end|>", "<|action_start|><|interpreter|>x")


class TestPhi4MiniJson(SameMachinery):
    parser = "quire_serving.parsers.tools:phi4_mini_json"
    texts = (f"functools[{ADD}]", "functools.cache")


class TestQwen3Coder(TextParserConformance):
    parser = "quire_serving.parsers.tools:qwen3_coder"
    texts = (
        f"Sure.\n<tool_call>\n{TAGGED}\n</tool_call>\n<tool_call>{TAGGED[:-3]}</tool_call>",
        f"{TAGGED}{TAGGED}<function=add>",
        "<function=add><parameter=a>" * 3,
        "<function=get_weather><parameter=city>Zürich 😀</function></parameter></function>",
    )


class Careless:
    """Looks at all of the text every time; gives out the start of a mark; loses what is not closed."""

    def __init__(self, fault: str) -> None:
        self._fault, self._text, self._num_sent = fault, "", 0

    def push(self, text: str) -> ParsedText:
        if self._fault == "raises" and "[" in text:
            raise KeyError(text)
        self._text += text
        if self._fault == "splits" and "<tool_call>" in text:
            return ParsedText("found")
        new, self._num_sent = self._text[self._num_sent :], len(self._text)
        return ParsedText(new.replace("!", "")) if self._fault == "loses" else ParsedText(new)

    def flush(self) -> ParsedText:
        return ParsedText("again") if self._fault == "flushes" else ParsedText()


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("rescans", "test_linear"),
        ("raises", "test_never_raises"),
        ("splits", "test_any_split"),
        ("loses", "test_nothing_is_lost"),
        ("flushes", "test_flush_ends"),
    ],
)
def test_the_suite_finds(fault: str, check: str) -> None:
    class Suite(TextParserConformance):
        parser: ClassVar[Any] = lambda context: Careless(fault)

    with pytest.raises(ConformanceError):
        getattr(Suite(), check)()
