"""The logits processor of the plugin `forbid`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from quire.api.extensions import ExtensionContext
from quire.api.request import SamplingParams
from quire_stablelm.forbid_plugin import ForbidOptions


class ForbidArguments(BaseModel):
    """What a request may give: `extra_args={"forbid": {"token_ids": [13], "first": 5}}`, or only a list."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token_ids: tuple[int, ...] = Field(min_length=1, description="tokens that must not appear")
    first: int | None = Field(
        None, ge=1, description="among the first n tokens of the output; null: anywhere"
    )


class Forbid:
    """Forbids tokens among the first `first` of an output, or anywhere: a pure function of its arguments."""

    def __init__(self, token_ids: Sequence[int], first: int | None) -> None:
        self._token_ids = torch.tensor(token_ids, dtype=torch.int64)
        self._first = first

    def __call__(
        self, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int], logits: Tensor
    ) -> Tensor:
        """See LogitsProcessor; changes the row in place."""
        if self._first is None or len(output_token_ids) < self._first:
            logits[self._token_ids.to(logits.device)] = float("-inf")
        return logits


class ForbidBoth:
    """The operator's tokens and the request's."""

    def __init__(self, always: Forbid, own: Forbid) -> None:
        self._always = always
        self._own = own

    def __call__(
        self, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int], logits: Tensor
    ) -> Tensor:
        """See LogitsProcessor."""
        logits = self._always(prompt_token_ids, output_token_ids, logits)
        return self._own(prompt_token_ids, output_token_ids, logits)


class ForbidFactory:
    """Made once per engine; see LogitsProcessorFactory."""

    def __init__(self, context: ExtensionContext) -> None:
        options = context.options
        self._options = options if isinstance(options, ForbidOptions) else ForbidOptions()
        self._vocab_size = context.vocab_size
        always = self._options.token_ids
        self._check(always, "plugins.options.forbid.token_ids")
        self._always = Forbid(always, None) if always else None

    def for_request(self, arguments: object, params: SamplingParams) -> Forbid | ForbidBoth | None:
        """See LogitsProcessorFactory; wrong arguments are a ValueError, which refuses the request."""
        if arguments is None:
            return self._always
        fields = {"token_ids": arguments} if isinstance(arguments, list | tuple) else arguments
        given = ForbidArguments.model_validate(fields)
        if len(given.token_ids) > self._options.max_ids:
            raise ValueError(f"{len(given.token_ids)} token ids; at most {self._options.max_ids} are allowed")
        self._check(given.token_ids, "token_ids")
        own = Forbid(given.token_ids, given.first)
        return own if self._always is None else ForbidBoth(self._always, own)

    def _check(self, token_ids: Sequence[int], name: str) -> None:
        outside = [token_id for token_id in token_ids if not 0 <= token_id < self._vocab_size]
        if outside:
            raise ValueError(f"{name}: {outside[0]} is not between 0 and {self._vocab_size - 1}")
        if len(set(token_ids)) == self._vocab_size:
            raise ValueError(f"{name}: every token is forbidden; leave at least one")
