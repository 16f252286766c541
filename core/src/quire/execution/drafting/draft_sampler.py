"""Samples draft tokens as the target will sample, so that equal logits give equal tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import functional as F

from quire.api.errors import ConfigError, NumericalError
from quire.api.speculation import DraftRequest
from quire.execution.sampler import Sampler, SamplingOps
from quire.execution.sampling_state import SamplingState

SlotOf = Callable[[DraftRequest], int]
"""The runner's slot of a request that a drafter is shown."""


class DraftSampler:
    """Temperature, top_k, top_p and min_p of each request, and the draw of the draft's output position.

    Penalties, logit_bias, min_tokens and plugins' logits processors are not applied: they depend on tokens that
    are not verified yet. The target applies them, and refuses drafts that they rule out.
    """

    def __init__(self, ops: SamplingOps | None = None) -> None:
        self._sampler = Sampler(ops)
        self._state: SamplingState | None = None
        self._slot_of: SlotOf | None = None

    def bind(self, state: SamplingState, slot_of: SlotOf) -> None:
        """Use the runner's state of its slots from now on; it is read, never changed."""
        self._state = state.without_edits()
        self._slot_of = slot_of

    def sample(
        self, requests: Sequence[DraftRequest], drafts: Sequence[Sequence[int]], logits: Tensor
    ) -> list[int]:
        """One token for each request.

        Args:
            requests: of one call of `propose`.
            drafts: for each, the drafts so far.
            logits: [R, V]; cut, or filled up with -inf, to the target's width where V is another one.

        Raises:
            ConfigError: the engine does not run yet.
            NumericalError: a request's logits are not finite.
        """
        if self._state is None or self._slot_of is None:
            raise ConfigError("there is no request before the engine runs: call sample() within propose()")
        slots = [self._slot_of(request) for request in requests]
        offsets = [len(draft) for draft in drafts]
        logits = fit_width(logits, self._state.vocab_size)
        drawn = self._sampler.draw(logits, slots, self._state, offsets)
        tokens = []
        for request, token_id, error in zip(requests, drawn.token_ids, drawn.errors, strict=True):
            if token_id is None:
                raise NumericalError(f"the draft logits of request {request.request_id!r}: {error}")
            tokens.append(token_id)
        return tokens


def fit_width(logits: Tensor, vocab_size: int) -> Tensor:
    """Logits [R, V] cut, or filled up with -inf, to [R, vocab_size]."""
    missing = vocab_size - logits.shape[1]
    if missing > 0:
        return F.pad(logits, (0, missing), value=float("-inf"))
    return logits[:, :vocab_size]
