"""The drafter `ngram`: prompt lookup over the prompt and the output."""

from __future__ import annotations

from collections.abc import Sequence

from quire.api.speculation import Drafter, DrafterContext, DraftRequest
from quire_speculative.ngram.index import NgramIndex
from quire_speculative.ngram.settings import NgramSettings


class NgramDrafter(Drafter):
    """Proposes what followed an earlier occurrence of a request's latest tokens.

    A draft that reaches the sequence's end goes on with itself: text in a loop is drafted to the full length.
    """

    def __init__(self, settings: NgramSettings) -> None:
        self._settings = settings
        self._indices: dict[str, NgramIndex] = {}

    def propose(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        """See `Drafter`."""
        return [self._draft(request) for request in requests]

    def _draft(self, request: DraftRequest) -> list[int]:
        token_ids, wanted = request.token_ids, request.max_drafts
        index = self._indices.get(request.request_id)
        if index is None or index.num_tokens > len(token_ids):
            index = NgramIndex(self._settings.prompt_lookup_min, self._settings.prompt_lookup_max)
            self._indices[request.request_id] = index
        index.extend(token_ids)
        start = index.find(token_ids)
        if start is None:
            return []
        draft: list[int] = token_ids[start : start + wanted].tolist()
        while len(draft) < wanted:
            draft += draft[: wanted - len(draft)]
        return draft

    def released(self, requests: Sequence[DraftRequest]) -> None:
        """See `Drafter`."""
        for request in requests:
            self._indices.pop(request.request_id, None)

    def close(self) -> None:
        """See `Drafter`."""
        self._indices.clear()


def make_ngram(context: DrafterContext) -> NgramDrafter:
    """The factory of the spec `ngram`."""
    settings = context.settings
    return NgramDrafter(settings if isinstance(settings, NgramSettings) else NgramSettings())
