"""Errors of routes, and of FastAPI, as answers in OpenAI's shape; and how the schema tells of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from quire.api.errors import ExtensionError
from quire_serving.errors import ApiError, from_quire
from quire_serving.json_body import is_json

MAX_MESSAGE_CHARS = 2000
Path = list[str | int]


class ErrorDetail(BaseModel):
    """What went wrong.

    Attributes:
        code: stable, for programs. param: the field of the request that it is about.
    """

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


ERROR_STATUSES = {
    400: "The request is malformed, out of bounds, or asks for what is not supported.",
    401: "The API key is missing or wrong.",
    403: "The request comes from a page of another origin, which may not change anything.",
    404: "Nothing has this path, or no model this name.",
    405: "The path has no such method.",
    408: "The request's body did not come in time.",
    413: "The request's body is too large.",
    415: "The request's body is not declared as JSON.",
    429: "The queue is full: try again after the seconds of Retry-After.",
    431: "The request's headers are too many or too large.",
    500: "The server or a plugin failed; what is known is in its log.",
    503: "The server drains, or has no engine: try again after the seconds of Retry-After.",
}

ERROR_RESPONSES: dict[int | str, dict[str, object]] = {
    status: {"model": ErrorAnswer, "description": text} for status, text in ERROR_STATUSES.items()
}


def answer(error: ApiError) -> JSONResponse:
    """An error as a response."""
    return JSONResponse(error.body(), error.status, dict(error.headers))


def add_error_handlers(app: FastAPI) -> None:
    """Give every error that leaves a route OpenAI's shape."""

    @app.exception_handler(ApiError)
    async def _api_error(_: Request, error: ApiError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(ExtensionError)
    async def _plugin_failed(_: Request, error: ExtensionError) -> JSONResponse:
        return answer(from_quire(error))  # whoever called the plugin has logged it

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return answer(_validation_error(request, error))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        return answer(_http_error(request, error))

    @app.exception_handler(Exception)
    async def _unexpected(_: Request, error: Exception) -> JSONResponse:
        del error  # goes on to the outermost middleware, which logs it; the client is told nothing of it
        return answer(ApiError(500, "internal_error", "internal error"))


def _validation_error(request: Request, error: RequestValidationError) -> ApiError:
    errors: Sequence[Mapping[str, Any]] = error.errors()
    if list(errors[0]["loc"]) == ["body"] and not is_json(request.headers):
        return ApiError(
            415, "unsupported_media_type", "send the body as JSON, with Content-Type: application/json"
        )
    paths = [_client_path(each, error.body) for each in errors]
    # Where a value may be of several types there is an error for each: the one that got furthest is the one meant.
    path = max((path for path in paths if path[:1] == paths[0][:1]), key=_how_far)
    reasons = dict.fromkeys(each["msg"] for each, its in zip(errors, paths, strict=True) if its == path)
    param = ".".join(map(str, path)) or None
    text = f"{param or 'the body'}: {'; or: '.join(reasons)}"
    return ApiError(400, "invalid_request", text[:MAX_MESSAGE_CHARS], param)


def _how_far(path: Path) -> tuple[int, Path]:
    return len(path), [part for part in path if isinstance(part, int)]


def _client_path(error: Mapping[str, Any], body: object) -> Path:
    """Where in the body an error is; pydantic puts the types that it tried between the fields."""
    path: Path = []
    parts: Path
    source, *parts = error["loc"]
    if source != "body":
        return parts
    value = body
    for place, part in enumerate(parts, 1):
        is_missing = place == len(parts) and error["type"] == "missing"
        if isinstance(value, dict) and (part in value or is_missing):
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            continue
        path.append(part)
    return path


def _http_error(request: Request, error: HTTPException) -> ApiError:
    headers = error.headers or {}
    if error.status_code == 404:
        return ApiError(404, "not_found", "nothing has this path", headers=headers)
    if error.status_code == 405:
        message = f"this path has no method {request.method[:20]}: see the header Allow"
        return ApiError(405, "method_not_allowed", message, headers=headers)
    if error.status_code < 500:
        return ApiError(error.status_code, "invalid_request", str(error.detail), headers=headers)
    return ApiError(error.status_code, "internal_error", "internal error", headers=headers)
