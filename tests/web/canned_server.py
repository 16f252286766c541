"""A server with the page and made-up answers, so that what the page shows is known."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from quire_serving.routes.page import router
from quire_serving.settings import ServeSettings

HOSTILE = '<img src=x onerror="document.title=1"> & <b>bold</b>'
PLUGINS = [
    {"name": "tiny-model", "description": "the embedded model", "is_enabled": True, "reason": ""},
    {"name": "prompt-lookup", "description": "drafts from the prompt", "is_enabled": True, "reason": ""},
    {"name": "triton-kernels", "description": "kernels", "is_enabled": False, "reason": "no GPU"},
]


@dataclass
class Canned:
    """What the server does next, and what it was asked.

    Attributes:
        key: without it, 401. failure: (status, error object) of the next completions.
        gap_s: between tokens. drafts: the engine speculates.
    """

    key: str = ""
    failure: tuple[int, dict[str, Any]] | None = None
    has_template: bool = True
    is_ready: bool = True
    gap_s: float = 0.0
    text: str = "A sum of two and three is five."
    reasoning: str = ""
    is_cut: bool = False
    drafts: bool = False
    prefix: str = "quire"
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    num_left: int = 0
    num_tokens: int = 0

    def metrics(self) -> str:
        drafts = {"spec_decode_num_draft_tokens": 400, "spec_decode_num_accepted_tokens": 300}
        values = {
            'num_requests_running{model_name="tiny"}': 3,
            "num_requests_waiting": 2,
            "num_kv_blocks": 512,
            "kv_cache_usage_perc": 0.25,
            "kv_blocks_cached": 300,
            "kv_blocks_cached_free": 192,
            "prefix_cache_queries_total": 1000,
            "prefix_cache_hits_total": 640,
            'generation_tokens_total{model_name="tiny"}': self.num_tokens,
            "prompt_tokens_total": self.num_tokens // 4,
            **(drafts if self.drafts else {}),
        }
        return "".join(f"# TYPE x gauge\n{self.prefix}:{name} {value}\n" for name, value in values.items())


def create(canned: Canned) -> FastAPI:
    app = FastAPI()
    app.state.server = SimpleNamespace(settings=ServeSettings())
    app.include_router(router)

    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Response:
        given = request.headers.get("authorization", "")
        if canned.key and request.url.path not in ("/", "/ready") and given != f"Bearer {canned.key}":
            return _refusal(401, "invalid_api_key", "this server needs an API key")
        response: Response = await call_next(request)
        return response

    @app.get("/ready")
    def ready() -> Response:
        return JSONResponse({"reason": "the engine is starting"}, 200 if canned.is_ready else 503)

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": "tiny"}, {"id": "tiny-alias"}]}

    @app.get("/plugins")
    def plugins() -> dict[str, Any]:
        return {"fingerprint": "f", "plugins": PLUGINS}

    @app.get("/metrics")
    def metrics() -> Response:
        canned.num_tokens += 37 + int(20 * (time.monotonic() % 3))
        return Response(canned.metrics(), media_type="text/plain")

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        canned.asked.append(("chat", await request.json()))
        if not canned.has_template:
            return _refusal(400, "chat_template_missing", "the model has no chat template")
        if canned.failure is not None:
            status, error = canned.failure
            return JSONResponse(
                {"error": error}, status, headers={"Retry-After": "7"} if status > 400 else {}
            )
        return StreamingResponse(_events(canned, is_chat=True), media_type="text/event-stream")

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        canned.asked.append(("completion", await request.json()))
        return StreamingResponse(_events(canned, is_chat=False), media_type="text/event-stream")

    return app


def _refusal(status: int, code: str, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "x", "param": None, "code": code}}, status)


async def _events(canned: Canned, *, is_chat: bool) -> AsyncIterator[bytes]:
    pieces = [("reasoning_content", word + " ") for word in canned.reasoning.split()]
    pieces += [("content", word + " ") for word in canned.text.split(" ")]
    try:
        for name, word in pieces:
            await asyncio.sleep(canned.gap_s)
            choice = {"delta": {name: word}} if is_chat else {"text": word}
            yield _event({"choices": [{"index": 0, "finish_reason": None, **choice}]})
        if canned.is_cut:
            return
        yield _event({"choices": [{"index": 0, "finish_reason": "stop", "delta": {}, "text": ""}]})
        usage = {"prompt_tokens": 5, "completion_tokens": len(pieces), "total_tokens": 5 + len(pieces)}
        yield _event({"choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"
    except asyncio.CancelledError:
        canned.num_left += 1
        raise


def _event(payload: object) -> bytes:
    # In two chunks of the socket, at times: the page has to put events together.
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


class LiveServer:
    """An application on a free port of this machine, in a thread."""

    def __init__(self, app: FastAPI) -> None:
        self._server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}/"

    def close(self) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(10)
