"""What requests and responses of several endpoints share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from quire.api.outputs import Logprob, PositionLogprobs
from quire_serving.errors import ApiError
from quire_serving.state import ServerState

MIN_LOGPROB = -9999.0  # JSON has no -inf


class RequestModel(BaseModel):
    """Base of requests: unknown fields are refused, and nothing is converted (true is no number)."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _one_unknown_field(cls, values: Any) -> Any:
        """Keep one unknown field to be refused: a body of a million would make as many errors."""
        if not isinstance(values, dict):
            return values
        known = {field.alias or name for name, field in cls.model_fields.items()} | cls.model_fields.keys()
        unknown = [name for name in values if name not in known]
        return (
            values
            if len(unknown) < 2
            else {name: values[name] for name in values.keys() & known} | {unknown[0]: 0}
        )


class ResponseModel(BaseModel):
    """Base of the models that describe responses; routes build plain dicts."""

    model_config = ConfigDict(protected_namespaces=())


class StreamOptions(RequestModel):
    """What a stream holds besides its text.

    Attributes:
        include_usage: a last chunk without choices tells the usage.
        continuous_usage_stats: and so does each chunk.
        include_obfuscation: of OpenAI; nothing is padded here.
    """

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class PromptTokensDetails(ResponseModel):
    """Of the prompt's tokens, those taken from the prefix cache."""

    cached_tokens: int


class Usage(ResponseModel):
    """Tokens of a request, over all its prompts and choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None


class PromptLogprob(ResponseModel):
    """A token at a position of the prompt."""

    logprob: float
    rank: int | None
    decoded_token: str | None


PromptLogprobs = list[dict[str, PromptLogprob] | None]


def conflict(message: str, param: str) -> ApiError:
    """The refusal of a field that contradicts others."""
    return ApiError(400, "conflicting_parameters", message, param)


def check_model(state: ServerState, name: str | None) -> str:
    """The name that answers give the model; ApiError where a request names another one."""
    if name is not None and name not in state.model_names:
        known = ", ".join(state.model_names)
        raise ApiError(
            404, "model_not_found", f"the model {name!r} does not exist; this server serves {known}", "model"
        )
    return state.model_names[0]


def system_fingerprint(state: ServerState) -> str:
    """What answers depend on besides the request: the plugins that can change outputs."""
    return f"fp_{state.client.description.fingerprint}"


def clamped(value: float) -> float:
    """A log-probability that JSON can hold."""
    return max(value, MIN_LOGPROB)


def text_of(token_id: int, logprob: Logprob) -> str:
    """A token's text, or its id where there is no tokenizer."""
    return f"token_id:{token_id}" if logprob.decoded_token is None else logprob.decoded_token


def by_rank(position: PositionLogprobs) -> list[tuple[int, Logprob]]:
    """A position's tokens, the likeliest first."""
    return sorted(position.items(), key=lambda item: -item[1].logprob)


def prompt_logprobs_body(
    positions: Sequence[PositionLogprobs | None],
) -> list[Mapping[str, object] | None]:
    """In vLLM's shape: for each position, token ids to logprob, rank and text."""
    return [
        None
        if position is None
        else {
            str(token_id): {
                "logprob": clamped(each.logprob),
                "rank": each.rank,
                "decoded_token": each.decoded_token,
            }
            for token_id, each in position.items()
        }
        for position in positions
    ]
