"""Reads what models write as tool calls."""

from __future__ import annotations

import ast
import json
import warnings
from dataclasses import dataclass
from typing import NoReturn


@dataclass(slots=True, frozen=True)
class Call:
    """A tool call; `arguments` is the text of a JSON object."""

    name: str
    arguments: str


def calls_of_json(text: str) -> list[Call]:
    """Calls of an object, or of a list of objects, with `name` and `arguments` (or `parameters`).

    Raises:
        ValueError: it is not JSON, or not of calls.
    """
    try:
        value = json.loads(text, strict=False, parse_constant=refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return [_call_of_object(item) for item in (value if isinstance(value, list) else [value])]


def calls_of_python(text: str) -> list[Call]:
    """Calls of a Python list of function calls with literal keyword arguments; nothing is evaluated.

    Raises:
        ValueError: it is not such a list.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of escapes that the model got wrong: no business of the server's log
            tree = ast.parse(text.strip(), mode="eval")
        if not isinstance(tree.body, ast.List):
            raise ValueError("not a list")
        return [_call_of_node(node) for node in tree.body.elts]
    except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError("not a list of calls") from error


def _call_of_node(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or node.args or not isinstance(node.func, ast.Name | ast.Attribute):
        raise ValueError("not a call with keyword arguments")
    arguments = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError("unpacked arguments")
        arguments[keyword.arg] = ast.literal_eval(keyword.value)
    return Call(ast.unparse(node.func), json_text(arguments))


def _call_of_object(value: object) -> Call:
    if not isinstance(value, dict) or not isinstance(name := value.get("name"), str):
        raise ValueError("not an object with a name")
    arguments = value.get("arguments", value.get("parameters", {}))
    if not isinstance(arguments, dict):
        raise ValueError("the arguments are not an object")
    return Call(name, json_text(arguments))


def json_text(arguments: dict[str, object]) -> str:
    """A call's arguments as it gives them out; ValueError for what JSON cannot say."""
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    text.encode()  # half of a surrogate pair, written as an escape, cannot be sent: UnicodeEncodeError, a ValueError
    return text


def refuse_constant(name: str) -> NoReturn:
    """Raise ValueError for NaN and Infinity, which Python would read."""
    raise ValueError(f"{name} is not JSON")
