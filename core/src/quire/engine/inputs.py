"""The one door of requests: prompts are normalised and everything is checked against the model's limits."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from quire.api.errors import PromptError, SamplingParamsError, TokenizerError
from quire.api.protocols import TokenizerLike
from quire.api.request import SamplingParams

Prompt = str | Sequence[int] | Mapping[str, object]
"""A text, token ids, {"prompt": text} or {"prompt_token_ids": ids}."""


@dataclass(slots=True, frozen=True)
class ProcessedPrompt:
    """A checked prompt: its text where it was given as one, and its token ids."""

    text: str | None
    token_ids: list[int]


@dataclass(slots=True, frozen=True)
class InputProcessor:
    """Checks prompts and sampling parameters.

    Attributes:
        vocab_size: width of the logits; token ids are checked against it, never against the tokenizer.
        max_model_len: longest context.
        tokenizer: None with `skip_tokenizer_init`.
    """

    vocab_size: int
    max_model_len: int
    tokenizer: TokenizerLike | None

    def process_prompt(self, prompt: Prompt) -> ProcessedPrompt:
        """Token ids of a prompt.

        Raises:
            PromptError: wrong type, empty, an id outside the logits' width, or too long.
            TokenizerError: a text without a tokenizer.
        """
        text, token_ids = self._unpack(prompt)
        if text is not None and token_ids is None:
            token_ids = self._encode(text)
        if token_ids is None or len(token_ids) == 0:
            raise PromptError("the prompt is empty: give at least one token")
        ids = _integers(token_ids)
        for token_id in (min(ids), max(ids)):
            if not 0 <= token_id < self.vocab_size:
                raise PromptError(
                    f"token id {token_id} is outside the model's logits: give 0 to {self.vocab_size - 1}"
                )
        if len(ids) >= self.max_model_len:
            raise PromptError(
                f"the prompt has {len(ids)} tokens, the context holds {self.max_model_len} "
                "with at least one of output: shorten the prompt or raise max_model_len"
            )
        return ProcessedPrompt(text, ids)

    def process_params(self, params: SamplingParams) -> None:
        """Check sampling parameters against the model.

        Raises:
            SamplingParamsError: another type, out of bounds, or a token id outside the logits' width.
        """
        if not isinstance(params, SamplingParams):
            raise SamplingParamsError(f"sampling parameters are SamplingParams, got {params!r}")
        params.validate()
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(params, name)
            if count is not None and count > self.vocab_size:
                raise SamplingParamsError(
                    f"{name}={count} is more than the vocabulary has: give at most {self.vocab_size}, or -1 for all"
                )
        for name in ("logit_bias", "stop_token_ids"):
            for token_id in getattr(params, name) or ():
                if token_id >= self.vocab_size:
                    raise SamplingParamsError(
                        f"{name} holds token id {token_id}, outside the model's logits: give 0 to {self.vocab_size - 1}"
                    )
        if params.stop_strings and self.tokenizer is None:
            raise SamplingParamsError(
                "stop strings need a tokenizer: drop skip_tokenizer_init, or use stop_token_ids"
            )

    def process_resumed(
        self, num_prompt_tokens: int, params: SamplingParams, resumed: Sequence[Sequence[int] | None]
    ) -> list[list[int] | None]:
        """What a request's choices have already got, checked.

        Raises:
            PromptError: not one entry for each choice, none that goes on, an id outside the logits' width,
                or no token left to generate.
            SamplingParamsError: sampled without a seed.
        """
        if isinstance(resumed, str | bytes) or not isinstance(resumed, Sequence):
            raise PromptError(
                f"resumed is a list with an entry for each choice, got {type(resumed).__name__}"
            )
        outputs = [None if output is None else _token_ids(output) for output in resumed]
        running = [output for output in outputs if output is not None]
        if len(outputs) != params.n or not running:
            raise PromptError(
                f"{len(outputs)} resumed outputs, {len(running)} of which go on, for n={params.n}: "
                "give one for each choice, None for those that ended"
            )
        if params.seed is None and params.temperature > 0.0:
            raise SamplingParamsError(
                "a sampled request that is resumed needs its seed: give the first one's"
            )
        limit = self.output_limit(num_prompt_tokens, params)
        for output in running:
            if len(output) >= limit:
                raise PromptError(
                    f"a resumed output has {len(output)} tokens, the limit is {limit}: it had ended, give None"
                )
            if output and not 0 <= min(output) <= max(output) < self.vocab_size:
                raise PromptError(f"a resumed output has ids outside 0 to {self.vocab_size - 1}")
        return outputs

    def output_limit(self, num_prompt_tokens: int, params: SamplingParams) -> int:
        """Most output tokens: `max_tokens`, cut to what the context leaves."""
        room = self.max_model_len - num_prompt_tokens
        return room if params.max_tokens is None else min(params.max_tokens, room)

    def _unpack(self, prompt: Prompt) -> tuple[str | None, Sequence[int] | None]:
        if isinstance(prompt, str):
            return prompt, None
        if isinstance(prompt, Mapping):
            unknown = set(prompt) - {"prompt", "prompt_token_ids"}
            text, ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
            if unknown or (text is None and ids is None):
                raise PromptError(
                    f"a prompt has 'prompt' or 'prompt_token_ids', got keys {sorted(map(str, prompt))}"
                )
            if (
                (text is not None and not isinstance(text, str))
                or not isinstance(ids, Sequence | None)
                or isinstance(ids, str)
            ):
                raise PromptError("'prompt' must be a string and 'prompt_token_ids' a list of integers")
            return text, ids
        if isinstance(prompt, Sequence) and not isinstance(prompt, bytes):
            return None, cast(Sequence[int], prompt)
        raise PromptError(
            f"a prompt is a string, a list of token ids or a mapping, got {type(prompt).__name__}"
        )

    def _encode(self, text: str) -> list[int]:
        if self.tokenizer is None:
            raise TokenizerError(
                "a text prompt needs a tokenizer: give prompt_token_ids, or drop skip_tokenizer_init"
            )
        return self.tokenizer.encode(text)


def check_names(request_id: str, priority: int, salt: str) -> None:
    """Refuse values of the wrong type; raises PromptError."""
    if not isinstance(request_id, str):
        raise PromptError(f"request_id is a string, got {request_id!r}")
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise PromptError(f"priority is an integer, got {priority!r}")
    if not isinstance(salt, str):
        raise PromptError(f"salt is a string, got {salt!r}")


def _token_ids(output: object) -> list[int]:
    if hasattr(output, "tolist"):
        output = output.tolist()
    if isinstance(output, str | bytes) or not isinstance(output, Sequence):
        raise PromptError(f"a resumed output is a list of token ids, got {type(output).__name__}")
    return _integers(output)


def _integers(token_ids: Sequence[int]) -> list[int]:
    """Python ints of any integer type, numpy's included; booleans and anything else are refused."""
    ids: list[int] = []
    for token_id in token_ids:
        try:
            if isinstance(token_id, bool):
                raise TypeError
            ids.append(operator.index(token_id))
        except TypeError:
            raise PromptError(f"token ids must be integers, got {token_id!r}") from None
    return ids
