"""API keys. Everything needs one, but for a short list of paths."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from quire.api.errors import ConfigError
from quire_serving.errors import ApiError
from quire_serving.middleware.answer import refuse
from quire_serving.settings import ServeSettings

ENVIRONMENT_VARIABLE = "QUIRE_API_KEY"
PROBES = frozenset({"/health", "/ready"})


def read_keys(settings: ServeSettings, environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The keys of flags, of the file and of the environment; none leaves the server open.

    Raises:
        ConfigError: the file cannot be read or holds no key, or a key has characters no header can carry.
    """
    keys = [*settings.api_key, *_keys_of_file(settings.api_key_file)]
    if environment.get(ENVIRONMENT_VARIABLE):
        keys.append(environment[ENVIRONMENT_VARIABLE])
    for place, key in enumerate(keys, 1):
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(f"API key {place} is empty or has a character other than printable ASCII")
    return tuple(dict.fromkeys(keys))


def _keys_of_file(name: str | None) -> list[str]:
    if name is None:
        return []
    try:
        lines = Path(name).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"api_key_file={name!r} cannot be read: {reason}") from None
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise ConfigError(f"api_key_file={name!r} holds no key: write one a line, or leave the setting out")
    return keys


class KeyAuth:
    """Lets in who has a key. Looks at the path as it was received, never at one rebuilt from headers.

    Args:
        keys: any of them opens everything. They are kept as digests.
        public: pairs of method and path that need none, beside the probes.
    """

    def __init__(self, app: ASGIApp, keys: Collection[str], public: Collection[tuple[str, str]] = ()) -> None:
        self._app = app
        self._digests = [_digest(key.encode("ascii")) for key in keys]
        self._public = {(method, path) for method in ("GET", "HEAD") for path in PROBES} | set(public)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        is_public = scope["type"] == "http" and (scope["method"], scope["path"]) in self._public
        key = None if scope["type"] == "lifespan" else _bearer(scope)
        if scope["type"] == "lifespan" or is_public or self._is_known(key):
            if key is not None:
                scope["quire_api_key_digest"] = _digest(key).hex()  # each key has cached prefixes of its own
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refuse(scope, receive, send, _refusal())

    def _is_known(self, key: bytes | None) -> bool:
        given = _digest(b"" if key is None else key)
        # All are compared, so that the time tells nothing of which one was close.
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return any(matches) and key is not None


def _refusal() -> ApiError:
    message = "give a valid API key in the header: Authorization: Bearer KEY"
    return ApiError(401, "invalid_api_key", message, headers={"WWW-Authenticate": "Bearer"})


def _bearer(scope: Scope) -> bytes | None:
    """The key of the request; None without one, or where there are two."""
    values: list[bytes] = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(values) != 1:
        return None
    kind, _, key = values[0].partition(b" ")
    return key.strip() if kind.lower() == b"bearer" else None


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
