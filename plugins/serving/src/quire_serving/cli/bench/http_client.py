"""A lean HTTP/1.1 client for streamed answers: what it costs is not the server's time.

A general client costs several times more per chunk, on the cores that the server under test runs on.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from quire_serving.cli.remote import ServerError, refusal

READ_BYTES = 1 << 16
MAX_HEAD_BYTES = 1 << 16


@dataclass(slots=True, frozen=True)
class Endpoint:
    """A URL, taken apart."""

    host: str
    port: int
    path: str
    context: ssl.SSLContext | None
    headers: Mapping[str, str]

    @classmethod
    def of(cls, url: str, headers: Mapping[str, str]) -> Endpoint:
        """Raises ServerError where it is no URL of HTTP."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ServerError(f"{url!r} is no URL: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ServerError(f"{url!r} is no URL: give http://HOST:PORT")
        is_secure = parts.scheme == "https"
        context = ssl.create_default_context() if is_secure else None
        return cls(parts.hostname, port or (443 if is_secure else 80), parts.path or "/", context, headers)

    def request(self, method: str, body: bytes) -> bytes:
        """The bytes to send."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [
            f"{method} {self.path} HTTP/1.1",
            f"Host: {host}:{self.port}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Connection: close",
            *(f"{name}: {value}" for name, value in self.headers.items()),
        ]
        return "\r\n".join([*lines, "", ""]).encode() + body


class BodyDecoder:
    """Takes the chunked transfer coding, or none, off a body."""

    def __init__(self, *, is_chunked: bool) -> None:
        self._is_chunked = is_chunked
        self._buffer = b""
        self.is_complete = False

    def feed(self, data: bytes) -> bytes:
        """What is complete of the body; pieces add up."""
        if not self._is_chunked:
            return data
        buffer = self._buffer + data
        start = 0
        pieces = []
        while not self.is_complete:
            line_end = buffer.find(b"\r\n", start)
            if line_end < 0:
                break
            try:
                size = int(buffer[start:line_end].split(b";")[0], 16)
            except ValueError:
                raise ServerError("the server's answer is no valid HTTP (length of a chunk)") from None
            if len(buffer) < line_end + 4 + size:
                break
            pieces.append(buffer[line_end + 2 : line_end + 2 + size])
            start = line_end + 4 + size
            self.is_complete = size == 0
        self._buffer = buffer[start:]
        return b"".join(pieces)


async def post(endpoint: Endpoint, body: bytes) -> AsyncGenerator[bytes, None]:
    """Send a request; yield its answer's server-sent events: the data alone, without [DONE].

    Raises:
        ServerError: refused, malformed, or ended without [DONE]. OSError: no connection.
    """
    async for data in _exchange(endpoint, "POST", body, is_stream=True):
        yield data


async def get(endpoint: Endpoint) -> bytes:
    """The body that a path answers with; raises as `post`."""
    return b"".join([data async for data in _exchange(endpoint, "GET", b"", is_stream=False)])


async def _exchange(
    endpoint: Endpoint, method: str, body: bytes, *, is_stream: bool
) -> AsyncGenerator[bytes, None]:
    reader, writer = await asyncio.open_connection(
        endpoint.host, endpoint.port, ssl=endpoint.context, limit=MAX_HEAD_BYTES
    )
    try:
        writer.write(endpoint.request(method, body))
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            raise ServerError("the server closed the connection before it answered") from None
        status, is_chunked = _parse_head(head)
        decoder = BodyDecoder(is_chunked=is_chunked)
        if status != 200 or not is_stream:
            whole = await _rest(reader, decoder)
            if status != 200:
                raise ServerError(refusal(status, whole))
            yield whole
            return
        async for data in _events(reader, decoder):
            yield data
    finally:
        writer.close()


async def _events(reader: asyncio.StreamReader, decoder: BodyDecoder) -> AsyncGenerator[bytes, None]:
    buffer = b""
    while not decoder.is_complete and (data := await reader.read(READ_BYTES)):
        buffer += decoder.feed(data)
        *events, buffer = buffer.split(b"\n\n")
        for event in events:
            if event.startswith(b"data: [DONE]"):
                return
            if event.startswith(b"data: "):
                yield event[6:]
    raise ServerError("the server broke off in the middle of an answer")


async def _rest(reader: asyncio.StreamReader, decoder: BodyDecoder) -> bytes:
    pieces = []
    while not decoder.is_complete and (data := await reader.read(READ_BYTES)):
        pieces.append(decoder.feed(data))
    return b"".join(pieces)


def _parse_head(head: bytes) -> tuple[int, bool]:
    first, *lines = head.decode("latin-1").lower().split("\r\n")
    words = first.split(" ")
    if len(words) < 2 or not words[0].startswith("http/1.") or not words[1].isdecimal():
        raise ServerError(f"no HTTP answer: {first[:80]!r}")
    fields = [line.replace(" ", "") for line in lines]
    return int(words[1]), "transfer-encoding:chunked" in fields
