"""The processor: one per request, made by one factory per engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quire.api.extensions import ExtensionContext
from quire.api.request import SamplingParams
from quire_my_logits_processor.options import MyLogitsProcessorArguments, MyLogitsProcessorOptions


class MyLogitsProcessor:
    """Takes `strength` off a token's logit for each time that it was generated.

    It keeps nothing between calls: the same tokens give the same logits, whatever ran in between.
    """

    def __init__(self, strength: float) -> None:
        self._strength = strength

    def __call__(
        self, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int], logits: Tensor
    ) -> Tensor:
        """See LogitsProcessor: float32 [V], this request's own row, which may be changed in place."""
        if output_token_ids:
            ids = torch.tensor(list(output_token_ids), dtype=torch.int64, device=logits.device)
            logits -= self._strength * torch.bincount(ids, minlength=logits.shape[0])
        return logits


class MyLogitsProcessorFactory:
    """Made once per engine; asked for each request."""

    def __init__(self, context: ExtensionContext) -> None:
        options = context.options
        self._options = (
            options if isinstance(options, MyLogitsProcessorOptions) else MyLogitsProcessorOptions()
        )

    def for_request(self, arguments: object, params: SamplingParams) -> MyLogitsProcessor | None:
        """None leaves the request alone; a ValueError (pydantic's is one) refuses it with the message."""
        if arguments is None:
            return None
        strength = MyLogitsProcessorArguments.model_validate(arguments).strength
        return MyLogitsProcessor(self._options.strength if strength is None else strength)
