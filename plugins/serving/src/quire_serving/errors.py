"""Errors in OpenAI's shape, with stable codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from quire.api.errors import (
    CapacityError,
    EngineClosedError,
    ExtensionError,
    PluginError,
    PromptError,
    QuireError,
    SamplingParamsError,
    TokenizerError,
)

PROMPT_CODES = frozenset({"context_length_exceeded", "invalid_prompt", "tokenizer_error"})
"""Codes of errors about a prompt, which is in another field in each endpoint."""


@dataclass
class ApiError(Exception):
    """What a client is answered.

    Attributes:
        code: stable, for programs ("model_not_found"). message: for people; never holds a traceback,
            a path or an object's repr.
        param: the field of the request that it is about.
        headers: of the response, such as Retry-After.
    """

    status: int
    code: str
    message: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def type(self) -> str:
        """OpenAI's class of errors, by status."""
        names = {
            401: "authentication_error",
            403: "permission_error",
            404: "not_found_error",
            429: "rate_limit_error",
            503: "overloaded_error",
        }
        return names.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    def body(self) -> dict[str, object]:
        """The JSON body."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def draining(message: str = "the server is about to end: try again, or ask another one") -> ApiError:
    """Why a server that is about to end does not answer."""
    return ApiError(503, "server_draining", message, headers={"Retry-After": "5"})


def engine_unavailable() -> ApiError:
    """Why a server without an engine does not answer."""
    message = "the engine is not available: try again later"
    return ApiError(503, "engine_unavailable", message, headers={"Retry-After": "5"})


def from_quire(error: Exception) -> ApiError:
    """What a client is told of an error that the engine or a plugin raised."""
    message = " ".join(str(error).split())
    if isinstance(error, CapacityError):
        return ApiError(400, "context_length_exceeded", message)
    if isinstance(error, PromptError):
        return ApiError(400, "invalid_prompt", message)
    if isinstance(error, SamplingParamsError):
        return ApiError(400, "invalid_sampling_params", message)
    if isinstance(error, TokenizerError):
        return ApiError(400, "tokenizer_error", message)
    if isinstance(error, EngineClosedError):
        return engine_unavailable()
    if isinstance(error, ExtensionError):
        name = f"the plugin {error.plugin!r}" if error.plugin else "a plugin"
        return ApiError(500, "plugin_failed", f"{name} failed on this request")
    if isinstance(error, PluginError):
        return ApiError(400, "plugin_error", message)
    if isinstance(error, QuireError):
        return ApiError(500, "generation_failed", "the request failed in the engine")
    return ApiError(500, "internal_error", "internal error")
