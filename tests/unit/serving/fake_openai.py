"""A server of a few lines that speaks enough of OpenAI's protocol for the commands."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeOpenAI(BaseHTTPRequestHandler):
    """Answers every prompt with the same pieces.

    Attributes:
        refusals: statuses of the first requests. key: what requests must give. delay_s: before an answer.
    """

    protocol_version = "HTTP/1.1"
    requests: list[dict[str, Any]]
    pieces = ("Hi", " é", ".")
    breaks_off = False
    refusals: Sequence[int] = ()
    key = ""
    delay_s = 0.0

    def log_message(self, format: str, *_: object) -> None:
        return

    def do_GET(self) -> None:
        if self.key and self.headers.get("Authorization") != f"Bearer {self.key}":
            self._json(401, {"error": {"message": "give a key"}})
            return
        models = [{"id": "fake", "max_model_len": 64, "vocab_size": 100}]
        self._json(200, {"object": "list", "data": models})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
        time.sleep(self.delay_s)
        if len(self.requests) <= len(self.refusals):
            self._json(self.refusals[len(self.requests) - 1], {"error": {"message": "full"}})
        elif body["model"] != "fake":
            self._json(404, {"error": {"message": "no such model", "code": "model_not_found"}})
        elif not body.get("stream"):
            self._json(200, {"choices": [{"index": 0, "text": "".join(self.pieces)}]})
        else:
            self._stream("messages" in body)

    def _stream(self, is_chat: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in self.pieces:
            choice = {"delta": {"content": piece}} if is_chat else {"text": piece}
            self._event(json.dumps({"choices": [{"index": 0, **choice}]}))
        if not self.breaks_off:
            usage = {"prompt_tokens": 5, "completion_tokens": len(self.pieces)}
            self._event(json.dumps({"choices": [], "usage": usage}))
            self._event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, data: str) -> None:
        event = f"data: {data}\n\n".encode()
        self.wfile.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")

    def _json(self, status: int, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)


class _Server(ThreadingHTTPServer):
    request_queue_size = (
        1024  # many clients come at once; those over it are asked to try again, seconds later
    )


@contextmanager
def fake_openai(**attributes: object) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Gives the URL of a running server, without /v1, and the requests that it gets."""
    requests: list[dict[str, Any]] = []
    handler = type("Handler", (FakeOpenAI,), {"requests": requests, **attributes})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        server.server_close()
