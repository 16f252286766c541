"""POST /v1/embeddings: refused, since the engine generates text only."""

from __future__ import annotations

from typing import NoReturn

from fastapi import APIRouter

from quire_serving.errors import ApiError

router = APIRouter()


@router.post(
    "/v1/embeddings",
    tags=["generation"],
    summary="Refused: the engine generates text",
    response_model=None,
    status_code=404,
)
async def create_embeddings() -> NoReturn:
    """Refuse, as a server without this path would, but with the reason."""
    raise ApiError(
        404,
        "embeddings_unsupported",
        "this server makes no embeddings: ask /v1/completions or /v1/chat/completions for text, or another server",
    )
