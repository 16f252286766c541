"""`/v1/models`."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends

from quire_serving.protocol.common import ResponseModel, check_model
from quire_serving.state import ServerState, server_of

router = APIRouter(tags=["models"])


class ModelCard(ResponseModel):
    """A name of the model.

    Attributes:
        created: Unix seconds of the server's start. root: the first of its names.
        max_model_len: longest context, prompt and output, in tokens.
        vocab_size: width of the logits; token ids of prompts are below it.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "quire"
    root: str
    parent: str | None = None
    max_model_len: int
    vocab_size: int


class ModelList(ResponseModel):
    """All names of the model."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


@router.get("/v1/models")
async def list_models(state: Annotated[ServerState, Depends(server_of)]) -> ModelList:
    """The model, under each of its names."""
    return ModelList(data=[_card(state, name) for name in state.model_names])


@router.get("/v1/models/{model:path}")
async def get_model(model: str, state: Annotated[ServerState, Depends(server_of)]) -> ModelCard:
    """The model under one of its names, which may hold slashes."""
    check_model(state, model)
    return _card(state, model)


def _card(state: ServerState, name: str) -> ModelCard:
    description = state.client.description
    return ModelCard(
        id=name,
        created=state.created,
        root=state.model_names[0],
        max_model_len=description.max_model_len,
        vocab_size=description.vocab_size,
    )
