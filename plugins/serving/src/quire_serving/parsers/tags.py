"""Calls written with tags: `<function=NAME><parameter=NAME>VALUE</parameter></function>`."""

from __future__ import annotations

import json
from collections.abc import Mapping

from quire.api.serving import ParserContext
from quire_serving.parsers.calls import Call, json_text, refuse_constant
from quire_serving.parsers.marks import skip_space

OPENING, CLOSING = "<function=", "</function>"
_PARAMETER, _END = "<parameter=", "</parameter>"
_PYTHON_WORDS: Mapping[str, object] = {"True": True, "False": False, "None": None}


class TagScanner:
    """Finds where a text ends that begins with one tag, after white space, and ends with another.

    Attributes:
        is_closed: the closing tag has come.
        is_broken: something else than the opening tag has come.
    """

    def __init__(self, opening: str, closing: str) -> None:
        self._rest = opening  # what has not come of it
        self._is_begun = False
        self._closing = closing
        self._tail = ""  # the last characters, with which the closing tag may have begun
        self.is_closed = False
        self.is_broken = False

    def scan(self, text: str, position: int) -> int:
        """Go on at a position of a piece; returns where the text ends, is broken, or the piece is over."""
        if not self._is_begun:
            position = skip_space(text, position)
        while self._rest and position < len(text):
            self._is_begun = True
            if text[position] != self._rest[0]:
                self.is_broken = True
                return position
            self._rest = self._rest[1:]
            position += 1
        if self._rest:
            return position
        seen = self._tail + text[position:]
        end = seen.find(self._closing)
        if end >= 0:
            self.is_closed = True
            return position - len(self._tail) + end + len(self._closing)
        self._tail = seen[1 - len(self._closing) :]
        return len(text)


def call_of_tags(text: str, types: Mapping[str, Mapping[str, object]]) -> Call:
    """The call of a text between the tags.

    Args:
        text: with both tags.
        types: by function and parameter, the JSON type. Values of others, and strings, are taken as they are.

    Raises:
        ValueError: it is malformed.
    """
    name, sign, body = text.strip().removeprefix(OPENING).removesuffix(CLOSING).partition(">")
    head, *parts = body.split(_PARAMETER)
    if not sign or head.strip():
        raise ValueError("not a function with parameters")
    types_of_name = types.get(name, {})
    arguments: dict[str, object] = {}
    for part in parts:
        key, sign, rest = part.partition(">")
        value, mark, after = rest.rpartition(_END)
        if not sign or not mark or after.strip():
            raise ValueError("a parameter has no end")
        arguments[key] = _value_of(value.removeprefix("\n").removesuffix("\n"), types_of_name.get(key))
    return Call(name, json_text(arguments))


def types_of(context: ParserContext) -> dict[str, dict[str, object]]:
    """The types of the tools' parameters, by function and parameter, where the schema tells them plainly."""
    types: dict[str, dict[str, object]] = {}
    for tool in context.tools:
        function = _mapping(tool.get("function"))
        properties = _mapping(_mapping(function.get("parameters")).get("properties"))
        types[str(function.get("name"))] = {
            str(name): _mapping(schema).get("type") for name, schema in properties.items()
        }
    return types


def _value_of(text: str, kind: object) -> object:
    if kind not in ("integer", "number", "boolean", "object", "array", "null"):
        return text
    try:
        return json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        return _PYTHON_WORDS.get(text.strip(), text)


def _mapping(value: object) -> Mapping[object, object]:
    return value if isinstance(value, Mapping) else {}
