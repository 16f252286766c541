"""/v1/completions: its request and its responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from quire_serving.protocol.common import PromptLogprobs, ResponseModel, Usage
from quire_serving.protocol.fields import Natural
from quire_serving.protocol.limits import ModelName, NumChoices, NumLogprobs, Texts, TokenIds, TokenLists
from quire_serving.protocol.sampling import StreamFields
from quire_serving.protocol.unserved import RESPONSE_FORMAT, Unserved

Prompt = str | Texts | TokenIds | TokenLists


class CompletionRequest(StreamFields):
    """A text to go on with, or several.

    Attributes:
        prompt: text, texts, token ids, or lists of token ids.
        max_tokens: 0 only with `echo`, for the prompt's log-probabilities.
        best_of: equal to `n`, or left out.
        add_special_tokens: put BOS and EOS around texts as the tokenizer says.
    """

    model: ModelName | None = None
    prompt: Prompt
    max_tokens: Natural | None = None
    best_of: NumChoices | None = None
    echo: bool | None = None
    logprobs: NumLogprobs | None = None
    add_special_tokens: bool = True
    suffix: Annotated[
        Any, Unserved("the model only goes on with a text", ("",), code="suffix_unsupported")
    ] = None
    prompt_embeds: Annotated[Any, Unserved("give token ids as the prompt")] = None
    response_format: Annotated[Any, RESPONSE_FORMAT] = None


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
    system_fingerprint: str
    usage: Usage | None = None
