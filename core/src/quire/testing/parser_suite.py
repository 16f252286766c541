"""The suite of tool and reasoning parsers: the same result however the text comes, nothing lost, linear work."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, ClassVar, cast

from quire.api.serving import ParsedText, ParserContext, TextParser
from quire.api.specs import FactoryRef
from quire.plugins import resolve_factory
from quire.testing.conformance import Conformance, ConformanceError, require

TOOLS: tuple[dict[str, object], ...] = tuple(
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("get_weather", "add")
)
"""The tools that the default texts call."""

_CALL = '{"name": "get_weather", "arguments": {"city": "Zürich", "note": "a \\"b\\" } ] </tool_call>"}}'
_TEXTS = (
    "",
    " \n",
    "Hello, world!",
    " It is < 3 & [1] {2} `x` → 😀 \n",
    "<think>\nFirst, [look].\n</think>\n\nThen answer.",
    "No opening.</think>The answer.",
    f"Let me see.\n<tool_call>\n{_CALL}\n</tool_call>\n<tool_call>{_CALL}</tool_call>",
    f"<|python_tag|>{_CALL}; {_CALL}",
    f"[TOOL_CALLS][{_CALL}, {_CALL}] done",
    "[get_weather(city='a ) \\' ]', days=[1, 2]), add(a=-1, b=None)]",
    f"```json\n[{_CALL}]\n```\n",
    f"{_CALL}{_CALL}",
    '[add(a=f(1)), add(**{"a": 1})]',
    '{"name": "add", "arguments": [1]}',
    '{"name": "add", "arguments": {"a": 1e999, "b": NaN, "c": "\\ud800"}}',
)
_NUM_SPLITS = 8
_NUM_DAMAGES = 6
_LENGTH = 100


@dataclass(slots=True)
class ParsedSum:
    """All that a parser made of one text.

    Attributes:
        calls: name and arguments of each call, in order.
    """

    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)

    def add(self, part: ParsedText) -> None:
        """Add a piece's result.

        Raises:
            ConformanceError: the deltas of calls are not in order.
        """
        self.content += part.content
        self.reasoning += part.reasoning
        for delta in part.tool_calls:
            is_new = delta.index == len(self.calls)
            require(
                is_new or delta.index == len(self.calls) - 1, f"call {delta.index} is out of order: {delta}"
            )
            require(is_new == bool(delta.name), f"a call's name comes with its first part alone: {delta}")
            name, arguments = (str(delta.name), "") if is_new else self.calls.pop()
            self.calls.append((name, arguments + delta.arguments))


class TextParserConformance(Conformance):
    """A tool or reasoning parser.

    In a test file::

        class TestMine(TextParserConformance):
            parser = "my_plugin.parser:my_parser"        # the factory: ParserContext -> TextParser
            texts = ('<call name="add">{"a": 1}</call>',)  # answers as the model writes them
            marks = ("<think>", "</think>")              # what a reasoning parser drops

    `tools` are those of the request, which `texts` call. The suite tries texts of its own too, cut and
    damaged ones among them.
    """

    parser: ClassVar[FactoryRef | None] = None
    texts: ClassVar[Sequence[str]] = ()
    marks: ClassVar[Sequence[str]] = ()
    tools: ClassVar[Sequence[dict[str, object]]] = TOOLS
    options: ClassVar[Any] = None

    def test_any_split(self) -> None:
        """The text char by char, in random pieces and whole gives the same."""
        chance = random.Random(0)
        for text in self._all_texts():
            whole = self._parse([text])
            for pieces in ([*text], *(_split(text, chance) for _ in range(_NUM_SPLITS))):
                found = self._parse(pieces)
                require(found == whole, f"{pieces!r} gives {found}; pushed whole, it gives {whole}")

    def test_never_raises(self) -> None:
        """Whatever comes is parsed, and empty pieces give nothing."""
        for text in self._all_texts():
            try:
                self._parse(["", *text[:3], "", text[3:]])
            except ConformanceError:
                raise
            except Exception as error:
                raise ConformanceError(f"{text!r} raises {type(error).__name__}: {error}") from error
        require(self._make().push("") == ParsedText(), "an empty piece gives something")

    def test_flush_ends(self) -> None:
        """A second flush gives nothing."""
        for text in self._all_texts():
            parser = self._make()
            parser.push(text)
            parser.flush()
            require(parser.flush() == ParsedText(), f"{text!r}: a second flush gives something")

    def test_nothing_is_lost(self) -> None:
        """Without a call, all of the text but `marks` and white space comes out, and nothing else."""
        for text in self._all_texts():
            found = self._parse([text])
            both = found.reasoning + found.content
            if not found.calls:
                require(
                    self._counted(both) == self._counted(text),
                    f"{text!r} becomes {found}: something is lost or added",
                )
            for part in (found.content, found.reasoning):
                require(_is_within(part, text), f"{part!r} is not what {text!r} says")

    def test_calls_are_calls(self) -> None:
        """A call is of one of the tools, and its arguments are a JSON object."""
        names = _names(self.tools)
        for text in self._all_texts():
            for name, arguments in self._parse([text]).calls:
                self.note("tool calls")
                require(name in names, f"{text!r} calls {name!r}, which is not one of {sorted(names)}")
                require(
                    _is_object(arguments), f"{text!r}: the arguments are not a JSON object: {arguments!r}"
                )

    def test_unknown_names_are_content(self) -> None:
        """What calls no tool of the request is content."""
        for text in self._all_texts():
            found = self._parse([text], tools=())
            require(not found.calls, f"{text!r} calls {found.calls}, but the request has no tools")

    def test_own_state(self) -> None:
        """Two parsers at work at once do not meet."""
        for text in self._own_texts():
            parsers, sums = (self._make(), self._make()), (ParsedSum(), ParsedSum())
            for piece in text:
                for parser, total in zip(parsers, sums, strict=True):
                    total.add(parser.push(piece))
            for parser, total in zip(parsers, sums, strict=True):
                total.add(parser.flush())
            require(sums[0] == sums[1] == self._parse([text]), f"{text!r}: two parsers disturb each other")

    def test_linear(self) -> None:
        """Each piece costs what is new: strings at hand in each call, for a text and one four times as long."""
        for text in self._own_texts():
            for head, unit in ((text[: len(text) * 2 // 3], "a"), ("", text or " ")):
                short, long = (
                    self._work((head + unit * size)[: len(head) + size]) for size in (_LENGTH, 4 * _LENGTH)
                )
                require(
                    long <= 7 * short,
                    f"{head!r} and then {unit!r} over and over: four times the text costs {long / short:.1f} "
                    "times the work; look at what is new only, and keep pieces in lists",
                )

    def _work(self, text: str) -> int:
        parser, work = self._make(), _Work()
        before = sys.getprofile()
        sys.setprofile(work.count)
        try:
            for piece in text:
                parser.push(piece)
            parser.flush()
        finally:
            sys.setprofile(before)
        return work.total

    def _parse(self, pieces: Sequence[str], tools: Sequence[dict[str, object]] | None = None) -> ParsedSum:
        parser, total = self._make(tools), ParsedSum()
        for piece in pieces:
            total.add(parser.push(piece))
        total.add(parser.flush())
        return total

    def _make(self, tools: Sequence[dict[str, object]] | None = None) -> TextParser:
        if type(self).parser is None:
            raise ConformanceError("give the suite the `parser`, a factory")
        factory = cast(
            Callable[[ParserContext], TextParser], resolve_factory(cast(FactoryRef, type(self).parser))
        )
        return factory(ParserContext(self.tools if tools is None else tools, None, self.options))

    def _own_texts(self) -> Sequence[str]:
        return (*self.texts, *_TEXTS)

    def _all_texts(self) -> Iterator[str]:
        chance = random.Random(1)
        for text in self._own_texts():
            yield text
            for _ in range(_NUM_DAMAGES if text else 0):
                yield text[: chance.randrange(len(text))]
                yield _damaged(text, chance)

    def _counted(self, text: str) -> Counter[str]:
        for mark in self.marks:
            text = text.replace(mark, "")
        return Counter("".join(text.split()))


class _Work:
    """Counts calls and returns, and with each the characters of the strings that the function can reach."""

    def __init__(self) -> None:
        self.total = 0

    def count(self, frame: FrameType, event: str, argument: object) -> None:
        if event in ("call", "return"):
            values = [*frame.f_locals.values(), *_attributes(frame.f_locals.get("self"))]
            self.total += 1 + sum(len(value) for value in values if isinstance(value, str))


def _attributes(value: object) -> list[object]:
    slots = (
        getattr(value, name, None) for kind in type(value).__mro__ for name in vars(kind).get("__slots__", ())
    )
    return [*getattr(value, "__dict__", {}).values(), *slots]


def _split(text: str, chance: random.Random) -> list[str]:
    cuts = sorted({0, len(text), *(chance.randrange(len(text) + 1) for _ in range(chance.randrange(1, 9)))})
    return [text[begin:end] for begin, end in zip(cuts, cuts[1:], strict=False)]


def _damaged(text: str, chance: random.Random) -> str:
    """The text with a part taken out, doubled, or put elsewhere."""
    begin, end = sorted(chance.randrange(len(text) + 1) for _ in range(2))
    place = chance.randrange(len(text) + 1)
    return chance.choice(
        (text[:begin] + text[end:], text[:end] + text[begin:], text[:place] + text[begin:end] + text[place:])
    )


def _is_within(part: str, text: str) -> bool:
    """Whether the characters stand in the text, in this order."""
    characters = iter(text)
    return all(character in characters for character in part)


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _names(tools: Sequence[dict[str, object]]) -> set[str]:
    return {str(cast(dict[str, object], tool["function"])["name"]) for tool in tools}
