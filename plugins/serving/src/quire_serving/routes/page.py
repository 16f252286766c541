"""The page at /: a chat playground and a live view of the engine. It holds no data, so it needs no key."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from quire_serving.errors import ApiError
from quire_serving.state import ServerState, server_of

router = APIRouter(include_in_schema=False)
SCRIPTS = ("api.js", "chat.js", "live.js", "main.js")


@router.get("/")
def page(request: Request, state: Annotated[ServerState, Depends(server_of)]) -> Response:
    """The whole page in one answer, which the browser may keep but asks about again."""
    if not state.settings.page:
        raise ApiError(404, "not_found", "the page is switched off: the server was started without it")
    headers = page_headers()
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(document(), media_type="text/html; charset=utf-8", headers=headers)


@cache
def document() -> str:
    """The HTML with its style and its scripts in place."""
    html = _text("index.html").replace("<!-- style -->", _style(), 1)
    return html.replace("/* script */", _script(), 1)


@cache
def page_headers() -> dict[str, str]:
    """Headers by which the browser runs this style and this script, and talks to this server, only."""
    policy = (
        f"default-src 'none'; style-src {_hash(_style())}; script-src {_hash(_script())}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-cache",
        "ETag": f'"{hashlib.sha256(document().encode()).hexdigest()[:16]}"',
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


def _style() -> str:
    return _text("style.css")


def _script() -> str:
    return '"use strict";\n' + "\n".join(_text(name) for name in SCRIPTS)


def _text(name: str) -> str:
    return (files("quire_serving") / "page" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
