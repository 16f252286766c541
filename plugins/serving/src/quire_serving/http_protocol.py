"""HTTP on a connection: what a request's head may cost, and the parser's errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
import socket
import sys

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from quire_serving.errors import ApiError
from quire_serving.middleware.answer import DISCARD_S, encoded

MAX_HEAD_BYTES = 32 * 2**10
HEAD_S = 10.0


class _HeadTooLargeError(Exception):
    """Stops the parser."""


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's. What its parser refuses never reaches the application, so it is answered here.

    Its parser collects URL and headers without a limit: a head longer than MAX_HEAD_BYTES is refused, and a
    connection closed whose head has begun and is not complete after HEAD_S.
    """

    _is_in_head = False
    _is_refused = False
    _num_head_bytes = 0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Ask the system to notice clients that vanish."""
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, and count what belongs to a head that is not complete."""
        if self._is_refused:
            return
        self._num_head_bytes += len(data)
        super().data_received(data)
        if not self._is_in_head or self.transport.is_closing():
            return
        if self._num_head_bytes > MAX_HEAD_BYTES:
            self._refuse_head()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_S, self._give_up)

    def on_message_begin(self) -> None:
        """A head begins."""
        self._is_in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head may have come in one piece with more: it is measured once more, alone."""
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > MAX_HEAD_BYTES:
            raise _HeadTooLargeError
        self._end_head()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """What comes from now on is the next head."""
        self._num_head_bytes = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Called while the parser's error is handled."""
        cause = sys.exception()
        if cause is not None and isinstance(cause.__context__, _HeadTooLargeError):
            self._refuse_head()
            return
        self._end_head()
        if isinstance(cause, httptools.HttpParserInvalidMethodError):
            message = "HTTP has no such method: see the header Allow"
            error = ApiError(405, "method_not_allowed", message, headers={"Allow": "GET, POST"})
        else:
            error = ApiError(400, "invalid_http", msg)
        self._write(error)
        self.transport.close()

    def _refuse_head(self) -> None:
        """Answer and close; what still comes is thrown away, since a reset would lose the answer."""
        self._end_head()
        self._is_refused = True
        if self._is_answering():  # an answer amid another one would be read as part of it
            self.transport.close()
            return
        message = f"URL and headers are longer than {MAX_HEAD_BYTES} bytes together: send less"
        self._write(ApiError(431, "headers_too_large", message))
        self.transport.write_eof()
        self._deadline = self.loop.call_later(DISCARD_S, self.transport.close)

    def _give_up(self) -> None:
        self._deadline = None
        if self._is_answering():  # the connection may not even be read until this is done
            self._deadline = self.loop.call_later(HEAD_S, self._give_up)
        else:
            self.transport.close()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _end_head(self) -> None:
        self._is_in_head = False
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _write(self, error: ApiError) -> None:
        headers, body = encoded(error)
        lines = [name + b": " + value + b"\r\n" for name, value in headers]
        self.transport.write(b"".join([STATUS_LINE[error.status], *lines, b"\r\n", body]))
