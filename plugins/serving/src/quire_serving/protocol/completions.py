"""/v1/completions: its request and its responses."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from quire_serving.protocol.common import PromptLogprobs, ResponseModel, StreamOptions, TokenId, Usage
from quire_serving.protocol.sampling import SamplingFields

TokenIds = Annotated[list[TokenId], Field(max_length=2**21, fail_fast=True)]
Prompt = (
    str
    | Annotated[list[str], Field(min_length=1, max_length=16384, fail_fast=True)]
    | TokenIds
    | Annotated[list[TokenIds], Field(min_length=1, max_length=16384, fail_fast=True)]
)


class CompletionRequest(SamplingFields):
    """A text to go on with, or several.

    Attributes:
        prompt: text, texts, token ids, or lists of token ids.
        max_tokens: 0 only with `echo`, for the prompt's log-probabilities.
        best_of: equal to `n`, or left out.
        suffix: not served.
        add_special_tokens: put BOS and EOS around texts as the tokenizer says.
    """

    model: str | None = Field(None, max_length=512)
    prompt: Prompt
    max_tokens: int | None = Field(None, ge=0, le=2**31 - 1)
    best_of: int | None = Field(None, ge=1, le=16384)
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=2**31 - 1)
    suffix: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    add_special_tokens: bool = True


class CompletionLogprobs(ResponseModel):
    """Tokens of a choice: their text, where it begins, and the likeliest ones at their places."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(ResponseModel):
    """One choice of one prompt; with several prompts the first has the indices 0 to n - 1."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None


class CompletionResponse(ResponseModel):
    """The answer; as a stream, each event is one of these with what is new."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
