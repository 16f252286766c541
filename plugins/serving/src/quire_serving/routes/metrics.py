"""`GET /metrics`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from quire_serving.state import ServerState, server_of

router = APIRouter(tags=["operator"])


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(state: Annotated[ServerState, Depends(server_of)]) -> Response:
    """All figures of the server and its engine, for Prometheus; without an engine, the server's own."""
    return Response(await state.metrics.render(), media_type=CONTENT_TYPE_PLAIN_0_0_4)
