"""HTTP on a connection, with the errors of its parser in OpenAI's shape."""

from __future__ import annotations

import sys

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from quire_serving.errors import ApiError
from quire_serving.middleware.answer import encoded


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's. What its parser refuses never reaches the application, so it is answered here."""

    def send_400_response(self, msg: str) -> None:
        """Called while the parser's error is handled."""
        if isinstance(sys.exception(), httptools.HttpParserInvalidMethodError):
            message = "HTTP has no such method: see the header Allow"
            error = ApiError(405, "method_not_allowed", message, headers={"Allow": "GET, POST"})
        else:
            error = ApiError(400, "invalid_http", msg)
        headers, body = encoded(error)
        lines = [name + b": " + value + b"\r\n" for name, value in headers]
        self.transport.write(b"".join([STATUS_LINE[error.status], *lines, b"\r\n", body]))
        self.transport.close()
