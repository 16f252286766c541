"""JSON bodies of requests: bounded before they are parsed, and parsed off the event loop where they are long."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.responses import Response

from quire_serving.errors import PROMPT_CODES, ApiError

MAX_DEPTH = 64
MAX_CONTAINERS = 2**16
MAX_STRINGS = 2**16
MAX_VALUES = 2**19
MAX_BYTES_ON_LOOP = 2**16
_PROMPT_FIELDS = ("messages", "input", "prompt")
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class JsonRequest(Request):
    """A request whose JSON body was parsed before its route reads it."""

    parsed: object = None

    async def json(self) -> Any:
        """See Request."""
        return self.parsed


class JsonRoute(APIRoute):
    """A route whose body is parsed by `parse_json`; errors about the prompt name the field that holds it."""

    has_any_type = False  # whether the body is JSON whatever its Content-Type says

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See APIRoute."""
        handle = super().get_route_handler()

        async def handle_json(given: Request) -> Response:
            is_any = self.has_any_type and "origin" not in given.headers
            request = JsonRequest(_as_json(given.scope) if is_any else given.scope, given.receive)
            body = await request.body()
            if body and is_json(request.headers):
                is_short = len(body) <= MAX_BYTES_ON_LOOP
                request.parsed = parse_json(body) if is_short else await asyncio.to_thread(parse_json, body)
            try:
                return await handle(request)
            except ApiError as error:
                if error.param is None and error.code in PROMPT_CODES and isinstance(request.parsed, dict):
                    error.param = next((name for name in _PROMPT_FIELDS if name in request.parsed), None)
                raise

        return handle_json


class AnyTypeRoute(JsonRoute):
    """Reads bodies as JSON whatever their Content-Type: `curl -d` says that it sends a form.

    Browsers say where a page comes from, and let any page send forms: theirs must be declared as JSON.
    """

    has_any_type = True


def is_json(headers: Headers) -> bool:
    """Whether a body is declared as JSON."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def parse_json(body: bytes) -> object:
    """The value that a body holds.

    Raises:
        ApiError: 400: it is not JSON in UTF-8, holds too much, or an object names a field twice.
    """
    check_shape(body)
    try:
        return json.loads(body.decode("utf-8-sig"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise _invalid(f"it is not UTF-8 at byte {error.start}: encode it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise _invalid(f"{error.msg} at line {error.lineno} column {error.colno}") from None
    except ValueError:  # an integer with more digits than Python reads
        raise _invalid("it holds an integer of more than 4300 digits: send at most 64 bits") from None


def check_shape(body: bytes) -> None:
    """Refuse JSON that is nested too deep or holds too many values to be parsed and checked in no time.

    What is not JSON may pass: its parser refuses it. Each pass over the body is one of the C library's.

    Raises:
        ApiError: 400.
    """
    num_containers = body.count(b"[") + body.count(b"{")
    if num_containers <= MAX_DEPTH and body.count(b'"') <= MAX_STRINGS and body.count(b",") <= MAX_VALUES:
        return
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    _check_count("strings", plain.count(b'"') // 2, MAX_STRINGS)
    outside = b"".join(plain.split(b'"')[::2])
    _check_count("objects and lists", outside.count(b"[") + outside.count(b"{"), MAX_CONTAINERS)
    _check_count("values", outside.count(b","), MAX_VALUES)
    if _is_too_deep(outside):
        raise ApiError(
            400, "json_too_deep", f"the JSON is nested deeper than {MAX_DEPTH} levels: send a flatter one"
        )


def _is_too_deep(outside: bytes) -> bool:
    """Take one level of brackets off after the other, the innermost first."""
    brackets = outside.translate(_ONE_KIND, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"")
    return b"[" in brackets


def _check_count(what: str, count: int, limit: int) -> None:
    if count > limit:
        raise ApiError(
            400,
            "json_too_large",
            f"the JSON holds {count} {what}, the limit is {limit}: send less in one request",
        )


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) == len(pairs):
        return fields
    [(name, _)] = Counter(name for name, _ in pairs).most_common(1)
    text = ascii(name[:64])[1:-1]
    raise ApiError(400, "duplicate_field", f"the JSON names the field '{text}' twice: give it once", text)


def _invalid(reason: str) -> ApiError:
    return ApiError(400, "invalid_request", f"the body is not valid JSON: {reason}")


def _as_json(scope: Any) -> dict[str, Any]:
    headers = [item for item in scope["headers"] if item[0] != b"content-type"]
    return {**scope, "headers": [*headers, (b"content-type", b"application/json")]}
