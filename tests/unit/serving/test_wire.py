"""What a socket's other end sees: answers to bodies that are too large, and to what is no HTTP."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Iterator

import pytest
from fake_engine import FakeEngine
from serving_app import state_of

from quire_serving import http_protocol
from quire_serving.http_protocol import HttpProtocol
from quire_serving.server import web_server
from quire_serving.state import ServerState

LIMIT = 2**20


class Served:
    """The application behind uvicorn, in a thread."""

    def __init__(self, state: ServerState) -> None:
        self.state = state
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._web = web_server(state)
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._web.serve(sockets=[self._socket])), daemon=True
        )
        self._thread.start()

    def end(self) -> None:
        self._web.should_exit = True
        self._thread.join(5)

    def send(self, data: bytes) -> tuple[int, dict[str, str], str]:
        """Write everything, then read: status, headers, error code."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(data)
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            body = json.loads(answer.read())
        assert set(body["error"]) == {"message", "type", "param", "code"}
        return answer.status, dict(answer.getheaders()), body["error"]["code"]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    served = Served(state_of(FakeEngine(), max_body_bytes=LIMIT, api_key=("k",)))
    yield served
    served.end()


def post(size: int, *lines: str, key: str = "k") -> bytes:
    head = ["POST /tokenize HTTP/1.1", "Host: localhost", f"Authorization: Bearer {key}",
            "Content-Type: application/json", *lines, "", ""]  # fmt: skip
    return "\r\n".join(head).encode() + b"x" * size


@pytest.mark.parametrize("size", [LIMIT + 1, 8 * LIMIT])
def test_a_body_too_large_is_answered_though_it_is_written_whole_first(served: Served, size: int) -> None:
    assert served.send(post(size, f"Content-Length: {size}"))[::2] == (413, "body_too_large")
    assert served.send(post(size, f"Content-Length: {size}", key="no"))[::2] == (401, "invalid_api_key")


def test_a_body_in_chunks_too(served: Served) -> None:
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    data = post(0, "Transfer-Encoding: chunked") + chunk * 64 + b"0\r\n\r\n"
    assert served.send(data)[::2] == (413, "body_too_large")


def test_the_library_of_python_sees_it(served: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    headers = {"Authorization": "Bearer k", "Content-Type": "application/json"}
    connection.request("POST", "/tokenize", b"x" * 8 * LIMIT, headers)
    assert connection.getresponse().status == 413
    connection.close()


def test_who_asks_first_is_not_waited_for(served: Served) -> None:
    """curl sends `Expect: 100-continue` with large bodies, and keeps them after a refusal."""
    head = post(0, f"Content-Length: {8 * LIMIT}", "Expect: 100-continue")
    assert served.send(head)[::2] == (413, "body_too_large")


def test_the_draining_server_answers_large_bodies(served: Served) -> None:
    served.state.is_draining = True
    data = post(4 * LIMIT, f"Content-Length: {4 * LIMIT}").replace(b"/tokenize", b"/v1/completions")
    status, headers, code = served.send(data)
    served.state.is_draining = False
    assert (status, code) == (503, "server_draining") and headers["retry-after"]


@pytest.mark.parametrize(
    ("line", "status", "code"),
    [
        ("FOO /health HTTP/1.1", 405, "method_not_allowed"),
        ("PROPFIND /health HTTP/1.1", 405, "method_not_allowed"),
        ("DELETE /v1/completions HTTP/1.1", 405, "method_not_allowed"),
        ("GET /health HTTP/banana", 400, "invalid_http"),
        ("GET /health HTTP/1.1\r\nContent-Length: x", 400, "invalid_http"),
    ],
)
def test_methods_and_what_is_no_http(served: Served, line: str, status: int, code: str) -> None:
    lines = [line, "Host: localhost", "Authorization: Bearer k", "", ""]
    got, headers, its_code = served.send("\r\n".join(lines).encode())
    assert (got, its_code) == (status, code)
    assert ({name.lower() for name in headers} >= {"allow"}) == (status == 405)


HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    "data",
    [
        HEAD + b"X-Long: " + b"y" * 40_000,
        HEAD + b"X-Long: " + b"y" * 40_000 + b"\r\n\r\n",
        HEAD + b"X: y\r\n" * 8000 + b"\r\n",
        b"GET /" + b"y" * 40_000 + b" HTTP/1.1\r\n\r\n",
    ],
)
def test_a_head_without_end_is_refused(served: Served, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        connection.sendall(data)
        answer = b"".join(iter(lambda: connection.recv(2**16), b""))
    assert answer.startswith(b"HTTP/1.1 431 ") and b'"code":"headers_too_large"' in answer


def test_bodies_count_for_no_head(served: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    body = json.dumps({"prompt": "hi"}).encode().ljust(LIMIT)
    headers = {"Authorization": "Bearer k", "Content-Type": "application/json"}
    for _ in range(3):
        connection.request("POST", "/tokenize", body, headers)
        answer = connection.getresponse()
        assert answer.status == 200 and answer.read()
    connection.close()


def test_a_head_that_does_not_come_is_given_up(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_S", 0.1)
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        connection.sendall(HEAD)
        assert connection.recv(1) == b""
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        connection.sendall(HEAD)
        connection.sendall(b"\r\n")
        assert connection.recv(2**16).startswith(b"HTTP/1.1 200 ")
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):  # between requests no head is late
            while True:
                assert connection.recv(2**16)


def test_public_paths_take_no_body(served: Served) -> None:
    for path in (b"/health", b"/ready", b"/"):
        data = HEAD.replace(b"/health", path) + b"Content-Length: 1\r\n\r\nx"
        assert served.send(data)[::2] == (413, "body_too_large")


def test_connections_are_kept_alive(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    begin = HttpProtocol.connection_made

    def note(self: HttpProtocol, transport: asyncio.Transport) -> None:
        begin(self, transport)
        connection = transport.get_extra_info("socket")
        made.append(connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))

    monkeypatch.setattr(HttpProtocol, "connection_made", note)
    served.send(b"FOO /health HTTP/1.1\r\n\r\n")
    assert made == [1]
