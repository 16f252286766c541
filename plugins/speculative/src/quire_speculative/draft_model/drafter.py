"""The drafter `draft-model`: a small model of the same vocabulary generates the drafts."""

from __future__ import annotations

from collections.abc import Sequence

from quire.api.errors import ConfigError
from quire.api.speculation import Drafter, DrafterContext, DraftModel, DraftRequest
from quire_speculative.draft_model.settings import DraftModelSettings


class DraftModelDrafter(Drafter):
    """Proposes what the model generates, token by token for all requests at once."""

    def __init__(self, model: DraftModel) -> None:
        self._model = model

    def propose(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        """See `Drafter`."""
        drafts: list[list[int]] = [[] for _ in requests]
        active = list(range(len(requests)))
        while active:
            asked = [requests[index] for index in active]
            tokens = self._model.next_tokens(asked, [drafts[index] for index in active])
            for index, token_id in zip(active, tokens, strict=True):
                if token_id is not None:
                    drafts[index].append(token_id)
            active = [
                index
                for index, token_id in zip(active, tokens, strict=True)
                if token_id is not None and len(drafts[index]) < requests[index].max_drafts
            ]
        return drafts


def make_draft_model(context: DrafterContext) -> DraftModelDrafter:
    """The factory of the spec `draft-model`."""
    settings = context.settings
    if not isinstance(settings, DraftModelSettings):
        raise ConfigError('draft-model needs a model: give speculative_config={"model": a folder or a name}')
    return DraftModelDrafter(context.build_model(settings.model))
