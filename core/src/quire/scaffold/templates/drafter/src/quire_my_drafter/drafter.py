"""The drafter: guesses the next tokens of running requests. What it guesses never changes what is generated."""

from __future__ import annotations

from collections.abc import Sequence

from quire.api.speculation import Drafter, DrafterContext, DraftRequest
from quire_my_drafter.settings import MyDrafterSettings


class MyDrafter(Drafter):
    """Drafts what followed the last tokens the last time that they stood in the same request."""

    def __init__(self, context: DrafterContext) -> None:
        settings = context.settings
        self._settings = settings if isinstance(settings, MyDrafterSettings) else MyDrafterSettings()
        self._memories: dict[str, _Memory] = {}

    def propose(self, requests: Sequence[DraftRequest]) -> Sequence[Sequence[int]]:
        """See Drafter: a list of tokens for each request, an empty one where there is no good guess."""
        drafts = []
        for request in requests:
            memory = self._memories.setdefault(request.request_id, _Memory(self._settings.match_tokens))
            memory.read(request.token_ids[memory.num_tokens :].tolist())
            drafts.append(memory.continuation(request.max_drafts))
        return drafts

    def released(self, requests: Sequence[DraftRequest]) -> None:
        """See Drafter: a preempted request comes back under its id, and is then read from its beginning."""
        for request in requests:
            self._memories.pop(request.request_id, None)


class _Memory:
    """What followed what in one request."""

    def __init__(self, match_tokens: int) -> None:
        self._match_tokens = match_tokens
        self._last: tuple[int, ...] = ()
        self._following: dict[tuple[int, ...], int] = {}
        self.num_tokens = 0

    def read(self, token_ids: Sequence[int]) -> None:
        """Go on with these tokens."""
        for token in token_ids:
            if len(self._last) == self._match_tokens:
                self._following[self._last] = token
            self._last = (*self._last, token)[-self._match_tokens :]
        self.num_tokens += len(token_ids)

    def continuation(self, max_drafts: int) -> list[int]:
        """What may follow."""
        drafts: list[int] = []
        last = self._last
        while len(drafts) < max_drafts and last in self._following:
            drafts.append(self._following[last])
            last = (*last, drafts[-1])[-self._match_tokens :]
        return drafts
