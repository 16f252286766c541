"""The sampling fields of all endpoints: OpenAI's and vLLM's."""

from __future__ import annotations

from typing import Annotated, Any, Self

import orjson
from pydantic import Field, ModelWrapValidatorHandler, model_validator

from quire import SamplingParams
from quire.api.errors import QuireError
from quire_serving.errors import ApiError, from_quire
from quire_serving.protocol.common import RequestModel, StreamOptions, conflict
from quire_serving.protocol.fields import INTEGRAL, Keys, Natural
from quire_serving.protocol.limits import NumChoices, NumLogprobs, TokenId
from quire_serving.protocol.unserved import Unserved, foreign
from quire_serving.state import ServerState

StopString = Annotated[str, Field(min_length=1, max_length=256)]
Int32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1), INTEGRAL]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63), INTEGRAL]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenKey = Keys("^[0-9]{1,10}$", 1024)
_GRAMMAR = Unserved("there are no grammars: check the output and ask again, or leave it out")
_BEAMS = Unserved("ask for n sampled choices, with temperature > 0", (False,), code="beam_search_unsupported")

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
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "include_stop_str_in_output",
    "max_draft_tokens",
)


class ForeignFields(RequestModel):
    """Fields of vLLM that this version does not serve."""

    allowed_token_ids: Annotated[Any, foreign("allowed_token_ids")] = None
    bad_words: Annotated[Any, foreign("bad_words")] = None
    data_parallel_rank: Annotated[Any, Unserved("there is one engine: leave it out", (0,))] = None
    early_stopping: Annotated[Any, foreign("early_stopping")] = None
    guided_choice: Annotated[Any, _GRAMMAR] = None
    guided_decoding_backend: Annotated[Any, _GRAMMAR] = None
    guided_grammar: Annotated[Any, _GRAMMAR] = None
    guided_json: Annotated[Any, _GRAMMAR] = None
    guided_regex: Annotated[Any, _GRAMMAR] = None
    guided_whitespace_pattern: Annotated[Any, _GRAMMAR] = None
    kv_transfer_params: Annotated[Any, Unserved("KV is not handed over: leave it out")] = None
    length_penalty: Annotated[Any, foreign("length_penalty")] = None
    logits_processors: Annotated[
        Any, Unserved("name a processor that a plugin registers in vllm_xargs, or use logit_bias")
    ] = None
    lora_request: Annotated[Any, Unserved("adapters are not loaded: leave it out")] = None
    repetition_detection: Annotated[Any, foreign("repetition_detection")] = None
    return_tokens_as_token_ids: Annotated[Any, Unserved("ask with return_token_ids", (False,))] = None
    structured_outputs: Annotated[Any, foreign("structured_outputs")] = None
    thinking_token_budget: Annotated[Any, foreign("thinking_token_budget")] = None
    truncate_prompt_tokens: Annotated[Any, Unserved("cut the prompt before it is sent")] = None
    use_beam_search: Annotated[Any, _BEAMS] = None


class SamplingFields(ForeignFields):
    """How the tokens of a request are chosen; see SamplingParams. What is left out, the model's own apply.

    Attributes:
        priority: for the priority policy; lower runs first.
        cache_salt: only requests of equal salt share cached prefixes.
        vllm_xargs: arguments of logits processors that plugins bring, by their names.
        request_id: taken and not used: the server makes ids.
    """

    n: NumChoices | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1), INTEGRAL] | None = None
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)
    seed: Seed | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=16, fail_fast=True)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=1024, fail_fast=True), INTEGRAL] | None = None
    ignore_eos: bool | None = None
    min_tokens: Natural | None = None
    logit_bias: Annotated[dict[str, Bias], TokenKey] | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    max_draft_tokens: Natural | None = None
    priority: Int32 = 0
    cache_salt: str | None = Field(None, pattern="^[A-Za-z0-9_-]{1,128}$")
    vllm_xargs: Annotated[dict[str, Any], Keys("^.{1,256}$", 64)] | None = None
    request_id: str | None = Field(None, max_length=128)
    user: str | None = Field(None, max_length=1024)

    @model_validator(mode="wrap")
    @classmethod
    def _check_sendable(cls, value: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Refuse what Python reads and orjson cannot write: lone surrogates, numbers past 64 bits."""
        request = handler(value)
        try:
            orjson.dumps(value, default=lambda _: None)
        except TypeError as error:
            raise ApiError(
                400, "invalid_json_value", f"the body has what JSON cannot hold: {error}"
            ) from error
        return request

    def sampling_params(
        self,
        state: ServerState,
        *,
        max_tokens: int | None,
        default_max_tokens: int | None,
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
    ) -> SamplingParams:
        """What the engine is asked for.

        Args:
            state: for the model's own defaults, and limits.
            max_tokens: as the request gives it.
            default_max_tokens: where the request gives none; None is the model's own, or the whole context.
            logprobs: as the request gives it, in its endpoint's way.
            prompt_logprobs: so many of the likeliest tokens at each place of the prompt.

        Raises:
            ApiError: a value is over a limit of this server, contradicts another, or is not served.
        """
        settings = state.settings
        check_limit("n", self.n, settings.max_n, "--max-n")
        check_limit("logprobs", logprobs, settings.max_logprobs, "--max-logprobs")
        check_limit("prompt_logprobs", prompt_logprobs, settings.max_logprobs, "--max-logprobs")
        values: dict[str, Any] = dict(state.client.description.default_sampling_params)
        if default_max_tokens is not None or "max_tokens" not in values:
            values["max_tokens"] = default_max_tokens
        given: dict[str, object] = {name: getattr(self, name) for name in _SAME}
        given |= {
            "n": self.n,
            "max_tokens": max_tokens,
            "logprobs": logprobs,
            "prompt_logprobs": prompt_logprobs,
            "logit_bias": {int(key): bias for key, bias in (self.logit_bias or {}).items()} or None,
            "extra_args": self.vllm_xargs,
        }
        values |= {name: value for name, value in given.items() if value is not None}
        least, most = values.get("min_tokens", 0), values["max_tokens"]
        if most is not None and least > most:
            message = f"min_tokens={least} is over max_tokens={most}: lower the one or raise the other"
            raise conflict(message, "min_tokens")
        try:
            return SamplingParams(**values)
        except QuireError as error:
            raise from_quire(error) from error


class StreamFields(SamplingFields):
    """And how they are answered.

    Attributes:
        prompt_logprobs: so many of the likeliest tokens at each place of the prompt; not in streams.
        return_token_ids: the token ids of prompt and output are answered too.
    """

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    prompt_logprobs: NumLogprobs | None = None
    return_token_ids: bool | None = None

    @property
    def has_usage(self) -> bool:
        """Whether a stream's last chunk tells the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def has_continuous_usage(self) -> bool:
        """Whether each of its chunks does."""
        return self.stream_options is not None and bool(self.stream_options.continuous_usage_stats)

    def check_stream(self) -> None:
        """Raise ApiError where other fields contradict `stream`."""
        if self.stream_options is not None and not self.stream:
            raise conflict("stream_options need stream=true: add it, or drop them", "stream_options")
        if self.stream and self.prompt_logprobs is not None:
            raise conflict("prompt_logprobs are not streamed: drop stream", "prompt_logprobs")


def check_limit(name: str, value: int | None, limit: int, flag: str) -> None:
    """Raise ApiError where a value is over a limit of this server; all of the vocabulary (-1) always is."""
    if value is not None and not 0 <= value <= limit:
        raise ApiError(
            400,
            "invalid_sampling_params",
            f"{name}={value} is over this server's limit of {limit}: ask for less, or raise {flag}",
            name,
        )
