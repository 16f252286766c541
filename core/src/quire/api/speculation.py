"""Speculative decoding: what a drafter is given, and what it proposes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from quire.api.extensions import ExtensionContext
from quire.api.request import SamplingParams

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor


@dataclass(slots=True, frozen=True)
class DraftRequest:
    """A running request, as a drafter sees it after its latest verified token.

    Attributes:
        request_id: the same from the first call to `Drafter.released`; a preempted request comes back under it.
        token_ids: int32 [n]: prompt and verified output. Read-only, valid during the call. Between two calls
            of one request tokens are only added, however many.
        num_prompt_tokens: how many of them are the prompt.
        max_drafts: most tokens that can be used now, at least 1; more are refused.
        params: the request's. salt: requests of different salts must not learn from each other.
    """

    request_id: str
    token_ids: npt.NDArray[np.int32]
    num_prompt_tokens: int
    max_drafts: int
    params: SamplingParams
    salt: str = ""


@dataclass(slots=True, frozen=True)
class DraftOutcome:
    """What became of a request's drafts: the first `num_accepted` of `num_drafts` were the target's tokens."""

    request_id: str
    num_drafts: int
    num_accepted: int


@runtime_checkable
class Drafter(Protocol):
    """Guesses the next tokens of running requests; derive from it.

    What it proposes never changes what is generated, only how many steps that takes. Calls come on the
    engine's thread, between the sampling of a step and its result. One that raises is asked again request by
    request: those for which it raises then, or gives something else than token ids, get no more drafts.
    """

    def propose(self, requests: Sequence[DraftRequest]) -> Sequence[Sequence[int]]:
        """The tokens that may follow each request's, in the order of the requests.

        Args:
            requests: those that can use drafts in the coming step. It need not be the same ones each time.

        Returns:
            For each request up to `max_drafts` token ids below the vocabulary's size; an empty sequence
            where there is no good guess, since every draft costs.
        """
        ...

    def verified(self, outcomes: Sequence[DraftOutcome]) -> None:
        """Drafts of earlier calls were verified. Not all are: some are dropped when room is short."""
        return  # a default: without a body the method would count as abstract

    def released(self, requests: Sequence[DraftRequest]) -> None:
        """These requests ended or were preempted: forget them. Their `max_drafts` is 0."""
        return

    def close(self) -> None:
        """The engine ends."""
        return


class DraftModel(Protocol):
    """A second model, which core runs over the requests' own KV blocks."""

    def next_tokens(
        self, requests: Sequence[DraftRequest], drafts: Sequence[Sequence[int]]
    ) -> list[int | None]:
        """This model's token after each request's tokens and the drafts so far.

        What the model has not computed yet of a request is computed first, within the step's token budget.
        Tokens are sampled as the target will sample: the request's temperature, top_k, top_p and min_p, and that
        position's draw. Penalties, logit_bias, min_tokens and logits processors are not applied.

        Args:
            requests: of one call of `propose`.
            drafts: for each, the drafts so far of this call.

        Returns:
            None for a request that did not fit into the budget, which later calls go on with; and for one that is
            longer than this model's context, or has a token that this model does not have.
        """
        ...


@dataclass(slots=True, frozen=True, kw_only=True)
class DrafterContext(ExtensionContext):
    """What a drafter's factory is given.

    Attributes:
        num_speculative_tokens: most drafts per request and step; bounds every `max_drafts`.
        max_model_len, max_num_seqs: the engine's limits.
        settings: the drafter's own keys of `speculative_config`: an instance of DrafterSpec.settings, or None.
        build_model: loads a second model from a folder or a name, with a KV cache over the same blocks. To be
            called within the factory; raises ConfigError where its vocabulary is not the target's.
        sample: (requests, drafts so far, logits [R, V]) to R tokens: as a DraftModel samples them, so that logits
            equal to the target's give equal tokens. To be called within `propose`.
    """

    num_speculative_tokens: int
    max_model_len: int
    max_num_seqs: int
    settings: object = None
    build_model: Callable[[str], DraftModel]
    sample: Callable[[Sequence[DraftRequest], Sequence[Sequence[int]], Tensor], list[int]]
