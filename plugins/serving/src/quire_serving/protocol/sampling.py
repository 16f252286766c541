"""The sampling fields of all endpoints: OpenAI's and vLLM's."""

from __future__ import annotations

import re
from typing import Annotated, Any, Self

import orjson
from pydantic import BeforeValidator, Field, ModelWrapValidatorHandler, model_validator

from quire import SamplingParams
from quire.api.errors import QuireError
from quire.api.foreign_fields import FOREIGN_FIELDS, ForeignField
from quire_serving.errors import ApiError, from_quire
from quire_serving.protocol.common import RequestModel, TokenId
from quire_serving.state import ServerState

StopString = Annotated[str, Field(min_length=1, max_length=256)]
Int32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
MAX_BIASES = 1024
Bias = Annotated[float, Field(ge=-100, le=100)]
_NEUTRAL_ONLY = Field(default=None, description="not served: only values that ask for nothing are accepted")
_TOKEN_ID = re.compile("[0-9]{1,10}")
_GRAMMAR = ForeignField("check the output and ask again, or leave it out")
_LEAVE = ForeignField("leave it out", (False,))

# What a request may give, and SamplingParams takes as it is.
_SAME = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "min_tokens",
    "prompt_logprobs",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "include_stop_str_in_output",
    "max_draft_tokens",
)


def few_biases(value: object) -> object:
    """Refuse a mapping by its length before its values are looked at."""
    if isinstance(value, dict) and len(value) > MAX_BIASES:
        raise ValueError(f"it has {len(value)} entries, the limit is {MAX_BIASES}")
    return value


class ForeignFields(RequestModel):
    """Fields of vLLM that this version does not serve."""

    allowed_token_ids: Any = _NEUTRAL_ONLY
    bad_words: Any = _NEUTRAL_ONLY
    early_stopping: Any = _NEUTRAL_ONLY
    guided_choice: Any = _NEUTRAL_ONLY
    guided_decoding_backend: Any = _NEUTRAL_ONLY
    guided_grammar: Any = _NEUTRAL_ONLY
    guided_json: Any = _NEUTRAL_ONLY
    guided_regex: Any = _NEUTRAL_ONLY
    guided_whitespace_pattern: Any = _NEUTRAL_ONLY
    kv_transfer_params: Any = _NEUTRAL_ONLY
    length_penalty: Any = _NEUTRAL_ONLY
    logits_processors: Any = _NEUTRAL_ONLY
    lora_request: Any = _NEUTRAL_ONLY
    repetition_detection: Any = _NEUTRAL_ONLY
    return_tokens_as_token_ids: Any = _NEUTRAL_ONLY
    structured_outputs: Any = _NEUTRAL_ONLY
    thinking_token_budget: Any = _NEUTRAL_ONLY
    truncate_prompt_tokens: Any = _NEUTRAL_ONLY
    use_beam_search: Any = _NEUTRAL_ONLY

    def refuse_foreign(self) -> None:
        """Raise ApiError where one of them asks for something."""
        for name in ForeignFields.model_fields:
            value = getattr(self, name)
            field = FOREIGN_FIELDS.get(name, _GRAMMAR if name.startswith("guided") else _LEAVE)
            if field.is_neutral(value):
                continue
            if name == "use_beam_search":
                raise ApiError(
                    400,
                    "beam_search_unsupported",
                    "use_beam_search is not served by this version: ask for n sampled choices, with temperature > 0",
                    name,
                )
            raise ApiError(
                400,
                "unsupported_parameter",
                f"{name} is not served by this version: {field.remedy}",
                name,
            )


class SamplingFields(ForeignFields):
    """How the tokens of a request are chosen; see SamplingParams. What is left out, the model's own apply.

    Attributes:
        priority: for the priority policy; lower runs first.
        cache_salt: only requests of equal salt share cached prefixes.
        vllm_xargs: arguments of logits processors that plugins bring, by their names.
        request_id: taken and not used: the server makes ids.
        return_token_ids: the token ids of prompt and output are answered too.
    """

    n: int | None = Field(None, ge=1, le=16384)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=2**31 - 1)
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: StopString | Annotated[list[StopString], Field(max_length=16, fail_fast=True)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=1024, fail_fast=True)] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = Field(None, ge=0, le=2**31 - 1)
    prompt_logprobs: int | None = Field(None, ge=-1, le=2**31 - 1)
    logit_bias: Annotated[dict[str, Bias], BeforeValidator(few_biases)] | None = Field(
        None, max_length=MAX_BIASES
    )
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    max_draft_tokens: int | None = Field(None, ge=0, le=2**31 - 1)
    priority: Int32 = 0
    cache_salt: str | None = Field(None, pattern="^[A-Za-z0-9_-]{1,128}$")
    vllm_xargs: dict[str, Any] | None = Field(None, max_length=64)
    request_id: str | None = Field(None, max_length=128)
    return_token_ids: bool | None = None
    user: str | None = Field(None, max_length=1024)

    @model_validator(mode="wrap")
    @classmethod
    def _check_sendable(cls, value: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Refuse what Python reads from JSON and cannot write again: lone surrogates, numbers past 64 bits."""
        request = handler(value)
        try:
            orjson.dumps(value, default=lambda _: None)
        except TypeError as error:
            raise ValueError(f"it cannot be answered as JSON: {error}") from error
        return request

    def sampling_params(
        self,
        state: ServerState,
        *,
        max_tokens: int | None,
        default_max_tokens: int | None,
        logprobs: int | None,
    ) -> SamplingParams:
        """What the engine is asked for.

        Args:
            state: for the model's own defaults, and limits.
            max_tokens: as the request gives it.
            default_max_tokens: where the request gives none; None is the model's own, or the whole context.
            logprobs: as the request gives it, in its endpoint's way.

        Raises:
            ApiError: a value is over a limit of this server, contradicts another, or is not served.
        """
        self.refuse_foreign()
        settings = state.settings
        _check_limit("n", self.n, settings.max_n, "--max-n")
        _check_limit("logprobs", logprobs, settings.max_logprobs, "--max-logprobs")
        _check_limit("prompt_logprobs", self.prompt_logprobs, settings.max_logprobs, "--max-logprobs")
        values: dict[str, Any] = dict(state.client.description.default_sampling_params)
        if default_max_tokens is not None or "max_tokens" not in values:
            values["max_tokens"] = default_max_tokens
        given: dict[str, object] = {name: getattr(self, name) for name in _SAME}
        given |= {
            "n": self.n,
            "max_tokens": max_tokens,
            "logprobs": logprobs,
            "logit_bias": self._bias(),
            "extra_args": self.vllm_xargs,
        }
        values |= {name: value for name, value in given.items() if value is not None}
        try:
            return SamplingParams(**values)
        except QuireError as error:
            raise from_quire(error) from error

    def _bias(self) -> dict[int, float] | None:
        if self.logit_bias is None:
            return None
        for key in self.logit_bias:
            if _TOKEN_ID.fullmatch(key) is None:
                raise ApiError(
                    400,
                    "invalid_sampling_params",
                    f"logit_bias maps token ids to numbers: {key[:40]!r} is no token id",
                    "logit_bias",
                )
        return {int(key): value for key, value in self.logit_bias.items()}


def _check_limit(name: str, value: int | None, limit: int, flag: str) -> None:
    """All of the vocabulary (-1) is over any limit."""
    if value is not None and not 0 <= value <= limit:
        raise ApiError(
            400,
            "invalid_sampling_params",
            f"{name}={value} is over this server's limit of {limit}: ask for less, or raise {flag}",
            name,
        )
