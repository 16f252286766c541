"""A running server, as the commands `chat`, `complete` and `run-batch` see it: blocking, and streaming."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from quire.api.errors import QuireError

if TYPE_CHECKING:
    import httpx

DEFAULT_URL = "http://127.0.0.1:8000/v1"
CONNECT_TIMEOUT_S = 10.0


class ServerError(QuireError, RuntimeError):
    """A server cannot be reached, refuses a request, or breaks off in the middle of an answer."""


@dataclass(slots=True, frozen=True)
class ServerAddress:
    """Where a server is, and how one is let in.

    Attributes:
        url: of the API, ending in /v1.
        model: the name in requests; None takes the first that the server has.
    """

    url: str
    api_key: str | None = None
    model: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Those that let one in."""
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}


def add_server_flags(parser: argparse.ArgumentParser, default_model: str = "the server's first") -> None:
    """Declare where a running server is."""
    group = parser.add_argument_group("server")
    group.add_argument("--url", metavar="URL", help=f"a running server's API (default: {DEFAULT_URL})")
    group.add_argument(
        "--api-key", metavar="KEY", help="what the server asks for (default: QUIRE_API_KEY, OPENAI_API_KEY)"
    )
    group.add_argument(
        "--model-name", metavar="NAME", help=f"the model in requests (default: {default_model})"
    )


def api_key_of(args: argparse.Namespace) -> str | None:
    """The key of the flags, else of the environment."""
    key: str | None = args.api_key
    return key or os.environ.get("QUIRE_API_KEY") or os.environ.get("OPENAI_API_KEY")


def address_of(args: argparse.Namespace) -> ServerAddress:
    """The server that the flags name."""
    return ServerAddress(_api_url(args.url or DEFAULT_URL), api_key_of(args), args.model_name)


def _api_url(text: str) -> str:
    """A URL without a path is a server's, whose API is at /v1.

    Raises:
        ServerError: it is no URL of HTTP.
    """
    url = text.rstrip("/")
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid:
        raise ServerError(f"--url {text!r} is no URL: give http://HOST:PORT/v1")
    return url if parts.path else f"{url}/v1"


def at_least(least: int) -> Callable[[str], int]:
    """The type of a flag: an integer that is not below `least`."""

    def integer(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} is out of bounds: give {least} or more")
        return value

    return integer


def port(text: str) -> int:
    """The type of a flag: a port to connect to."""
    value = int(text)
    if not 1 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is out of bounds: give 1 to 65535")
    return value


class Server:
    """A connection to a server; a context manager."""

    def __init__(self, address: ServerAddress, transport: httpx.BaseTransport | None = None) -> None:
        import httpx

        self.address = address
        timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)
        try:
            self._http = httpx.Client(headers=address.headers, timeout=timeout, transport=transport)
        except UnicodeEncodeError:
            raise ServerError("the API key holds a character that is not ASCII") from None
        self._model = address.model

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    @property
    def model(self) -> str:
        """The name of the model in requests; asks the server where none was given."""
        if self._model is None:
            models = self._get("/models").get("data") or []
            if not models:
                raise ServerError(f"{self.address.url} has no models: give --model-name")
            self._model = str(models[0]["id"])
        return self._model

    def stream(self, path: str, body: Mapping[str, object]) -> Iterator[dict[str, Any]]:
        """Send a request and yield the events of its answer.

        Raises:
            ServerError: refused, or ended without [DONE].
        """
        import httpx

        payload = {"model": self.model, "stream": True, **body}
        try:
            with self._http.stream("POST", self.address.url + path, json=payload) as response:
                if response.status_code != 200:
                    response.read()
                    raise ServerError(refusal(response.status_code, response.content))
                yield from _events(response.iter_lines())
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServerError(self._unreachable(error)) from None
        except UnicodeEncodeError:
            raise ServerError("the text is not valid UTF-8") from None

    def _get(self, path: str) -> dict[str, Any]:
        import httpx

        try:
            response = self._http.get(self.address.url + path)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServerError(self._unreachable(error)) from None
        if response.status_code != 200:
            raise ServerError(refusal(response.status_code, response.content))
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise ServerError(f"{self.address.url}{path} did not answer with a JSON object: is --url right?")
        return answer

    def _unreachable(self, error: Exception) -> str:
        return (
            f"no answer from {self.address.url} ({error}): start one with `quire serve MODEL`, name it with --url, "
            f"or give --model to run a model in this process"
        )


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            return
        event: dict[str, Any] = json.loads(data)
        if "error" in event:
            raise ServerError(str((event["error"] or {}).get("message", event["error"])))
        yield event
    raise ServerError("the server broke off in the middle of an answer")


def refusal(status: int, body: bytes) -> str:
    """What a server said with a status that is no success."""
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = body[:200].decode(errors="replace")
    return f"the server answered {status}: {message}"
