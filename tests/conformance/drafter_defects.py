"""Drafters, each with one defect, planted in two that are right."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from quire.api.speculation import Drafter, DrafterContext, DraftOutcome, DraftRequest


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    order: int = Field(2, ge=1, le=4)


class LooseSettings(Settings):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Lookup(Drafter):
    """A correct drafter: what followed the last tokens the last time, in the same request."""

    def __init__(self, context: DrafterContext) -> None:
        self.context = context
        self.order = context.settings.order if isinstance(context.settings, Settings) else 2
        self.texts: dict[str, list[int]] = {}
        self.follows: dict[str, dict[tuple[int, ...], int]] = {}

    def propose(self, requests: Sequence[DraftRequest]) -> Sequence[Sequence[int]]:
        return [self.draft(request) for request in requests]

    def released(self, requests: Sequence[DraftRequest]) -> None:
        for request in requests:
            self.texts.pop(request.request_id, None)
            self.follows.pop(request.request_id, None)

    def table(self, request: DraftRequest) -> dict[tuple[int, ...], int]:
        return self.follows.setdefault(request.request_id, {})

    def read(self, request: DraftRequest) -> list[int]:
        text = self.texts.setdefault(request.request_id, [])
        for token in self.new_tokens(request, len(text)):
            if len(text) >= self.order:
                self.table(request)[tuple(text[-self.order :])] = token
            text.append(token)
        return text

    def new_tokens(self, request: DraftRequest, num_known: int) -> list[int]:
        tokens: list[int] = request.token_ids[num_known:].tolist()
        return tokens

    def draft(self, request: DraftRequest) -> list[int]:
        text = self.read(request)
        return self.chain(request, text, request.max_drafts)

    def chain(self, request: DraftRequest, text: list[int], length: int) -> list[int]:
        last, drafts = list(text[-self.order :]), list[int]()
        while len(drafts) < length and (token := self.table(request).get(tuple(last))) is not None:
            drafts.append(token)
            last = [*last, token][-self.order :]
        return drafts


class Shared(Lookup):
    """A correct drafter that remembers for all requests of a salt, once they have ended."""

    def __init__(self, context: DrafterContext) -> None:
        super().__init__(context)
        self.pools: dict[str, dict[tuple[int, ...], int]] = {}

    def released(self, requests: Sequence[DraftRequest]) -> None:
        for request in requests:
            self.pool(request).update(self.follows.get(request.request_id, {}))
        super().released(requests)

    def pool(self, request: DraftRequest) -> dict[tuple[int, ...], int]:
        return self.pools.setdefault(request.salt, {})

    def chain(self, request: DraftRequest, text: list[int], length: int) -> list[int]:
        return super().chain(request, text, length) or self.from_pool(request, text, length)

    def from_pool(self, request: DraftRequest, text: list[int], length: int) -> list[int]:
        last, drafts = tuple(text[-self.order :]), list[int]()
        while len(drafts) < length and (token := self.pool(request).get(last)) is not None:
            drafts.append(token)
            last = (*last, token)[-self.order :]
        return drafts


class Counting(Drafter):
    """A correct drafter that asks a second model."""

    def __init__(self, context: DrafterContext) -> None:
        self.model = context.build_model(context.settings.model)  # type: ignore[attr-defined]  # ModelSettings

    def propose(self, requests: Sequence[DraftRequest]) -> Sequence[Sequence[int]]:
        drafts: list[list[int]] = [[] for _ in requests]
        asked = [index for index, request in enumerate(requests) if request.max_drafts]
        while asked:
            tokens = self.model.next_tokens([requests[i] for i in asked], [drafts[i] for i in asked])
            found = [(index, token) for index, token in zip(asked, tokens, strict=True) if token is not None]
            for index, token in found:
                drafts[index].append(token)
            asked = [index for index, _ in found if len(drafts[index]) < requests[index].max_drafts]
        return drafts


class Guessing(Lookup):
    """A correct drafter with logits of its own: what followed the last token so far."""

    def propose(self, requests: Sequence[DraftRequest]) -> Sequence[Sequence[int]]:
        texts = [self.read(request) for request in requests]
        drafts: list[list[int]] = [[] for _ in requests]
        for step in range(max((request.max_drafts for request in requests), default=0)):
            asked = [index for index, request in enumerate(requests) if step < request.max_drafts]
            logits = torch.stack([self.logits([*texts[index], *drafts[index]]) for index in asked])
            tokens = self.context.sample(
                [requests[index] for index in asked], [drafts[index] for index in asked], logits
            )
            for index, token in zip(asked, tokens, strict=True):
                drafts[index].append(token)
        return drafts

    def logits(self, text: list[int]) -> torch.Tensor:
        result = torch.zeros(self.context.vocab_size)
        for token, following in itertools.pairwise(text):
            if token == text[-1]:
                result[following] += 3.0
        return result


class ForgetsRows(Guessing):
    """Gives the logits of the first request only."""

    def __init__(self, context: DrafterContext) -> None:
        sample = context.sample
        super().__init__(
            replace(context, sample=lambda requests, drafts, logits: sample(requests, drafts, logits[:1]))
        )


class ModelSettings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str


class BuildsLate(Counting):
    def __init__(self, context: DrafterContext) -> None:
        self.context = context

    def propose(self, requests: Sequence[DraftRequest]) -> Sequence[Sequence[int]]:
        super().__init__(self.context)
        return super().propose(requests)


class ExpectsEveryToken(Counting):
    """Takes for granted that the model has room for every token."""

    def propose(self, requests: Sequence[DraftRequest]) -> Any:
        tokens = self.model.next_tokens(requests, [[] for _ in requests]) if requests else []
        return [[token] for token in tokens]


class TooMany(Lookup):
    def draft(self, request: DraftRequest) -> list[int]:
        return self.chain(request, self.read(request), self.context.num_speculative_tokens)


class OneTooMany(Lookup):
    def draft(self, request: DraftRequest) -> list[int]:
        return self.chain(request, self.read(request), request.max_drafts + 1)


class BeyondTheVocabulary(Lookup):
    def draft(self, request: DraftRequest) -> list[int]:
        return super().draft(request) or [self.context.vocab_size]


class Negative(Lookup):
    """Fills up with the sign of nothing."""

    def draft(self, request: DraftRequest) -> list[int]:
        drafts = super().draft(request)
        return drafts + [-1] * (request.max_drafts - len(drafts))


class Floats(Lookup):
    def draft(self, request: DraftRequest) -> Any:
        return [np.float64(token) for token in super().draft(request)]


class Arrays(Lookup):
    def draft(self, request: DraftRequest) -> Any:
        return np.array(super().draft(request), dtype=np.int64)


class Nones(Lookup):
    """None where there is no guess."""

    def draft(self, request: DraftRequest) -> Any:
        return super().draft(request) or None


class LeavesOut(Lookup):
    def propose(self, requests: Sequence[DraftRequest]) -> Sequence[Sequence[int]]:
        return [drafts for drafts in super().propose(requests) if drafts]


class Generates(Lookup):
    def propose(self, requests: Sequence[DraftRequest]) -> Any:
        return (self.draft(request) for request in requests)


class InOrderOfLength(Lookup):
    def propose(self, requests: Sequence[DraftRequest]) -> Sequence[Sequence[int]]:
        return super().propose(sorted(requests, key=lambda request: len(request.token_ids)))


class SharesTheBudget(Lookup):
    """Fewer drafts for each where there are many requests."""

    def propose(self, requests: Sequence[DraftRequest]) -> Sequence[Sequence[int]]:
        limit = 1 + 8 // max(1, len(requests))
        return [self.draft(request)[:limit] for request in requests]


class Neighbours(Lookup):
    """Looks into the texts of those before it in the call."""

    def propose(self, requests: Sequence[DraftRequest]) -> Sequence[Sequence[int]]:
        found = []
        for request in requests:
            self.follows[request.request_id] = {
                **next(reversed(self.follows.values()), {}),
                **self.table(request),
            }
            found.append(self.draft(request))
        return found


class Writes(Lookup):
    """Uses a request's tokens as its own scratch memory."""

    def draft(self, request: DraftRequest) -> list[int]:
        drafts = super().draft(request)
        request.token_ids.flags.writeable = True
        request.token_ids[0] = drafts[0] if drafts else 0
        return drafts


class WritesLater(Lookup):
    """Keeps the engine's memory, and writes there when drafts were rejected."""

    def __init__(self, context: DrafterContext) -> None:
        super().__init__(context)
        self.views: dict[str, Any] = {}

    def draft(self, request: DraftRequest) -> list[int]:
        self.views[request.request_id] = request.token_ids
        return super().draft(request)

    def verified(self, outcomes: Sequence[DraftOutcome]) -> None:
        for outcome in outcomes:
            whole = self.views[outcome.request_id].base
            if outcome.num_accepted < outcome.num_drafts and whole.flags.writeable:
                whole[...] = 0


class ChangesParams(Lookup):
    def draft(self, request: DraftRequest) -> list[int]:
        request.params.temperature = 0.5
        return super().draft(request)


class KeepsViews(Lookup):
    """Reads the tokens of the call before, where they were then."""

    def __init__(self, context: DrafterContext) -> None:
        super().__init__(context)
        self.views: dict[str, Any] = {}

    def draft(self, request: DraftRequest) -> list[int]:
        before = self.views.get(request.request_id, request.token_ids[:0])
        self.views[request.request_id] = request.token_ids
        self.texts[request.request_id] = []
        self.follows[request.request_id] = {}
        text = [*before.tolist(), *request.token_ids[len(before) :].tolist()]
        for index in range(self.order, len(text)):
            self.table(request)[tuple(text[index - self.order : index])] = text[index]
        return self.chain(request, text, request.max_drafts)

    def released(self, requests: Sequence[DraftRequest]) -> None:
        for request in requests:
            self.views.pop(request.request_id, None)


class ReadsOn(Lookup):
    """Looks at what stands in memory behind the tokens."""

    def draft(self, request: DraftRequest) -> list[int]:
        whole = request.token_ids.base
        drafts = super().draft(request)
        if drafts or not isinstance(whole, np.ndarray):
            return drafts
        row = whole[np.flatnonzero((whole[:, : len(request.token_ids)] == request.token_ids).all(1))[0]]
        return [int(token) for token in row[len(request.token_ids) :][: request.max_drafts]]


class LeaksWhenReleased(Shared):
    def pool(self, request: DraftRequest) -> dict[tuple[int, ...], int]:
        return self.pools.setdefault("", {})


class LeaksWhileRunning(Lookup):
    """One table for all requests."""

    def table(self, request: DraftRequest) -> dict[tuple[int, ...], int]:
        return self.follows.setdefault("", {})


class TakesNoSaltForNoSecret(Shared):
    """What has no salt is for everyone."""

    def from_pool(self, request: DraftRequest, text: list[int], length: int) -> list[int]:
        self.pools[request.salt] = {**self.pools.get("", {}), **self.pool(request)}
        return super().from_pool(request, text, length)


class NeverForgets(Lookup):
    def released(self, requests: Sequence[DraftRequest]) -> None:
        pass


class ForgetsHalf(Lookup):
    """The table goes, the tokens that were read stay."""

    def released(self, requests: Sequence[DraftRequest]) -> None:
        for request in requests:
            self.follows.pop(request.request_id, None)


class RemembersRejections(Lookup):
    """An id whose drafts were rejected once gets one at a time, whoever has it now."""

    def __init__(self, context: DrafterContext) -> None:
        super().__init__(context)
        self.rejected: set[str] = set()

    def verified(self, outcomes: Sequence[DraftOutcome]) -> None:
        self.rejected.update(
            outcome.request_id for outcome in outcomes if outcome.num_accepted < outcome.num_drafts
        )

    def draft(self, request: DraftRequest) -> list[int]:
        return super().draft(request)[: 1 if request.request_id in self.rejected else None]


class ReleasesKnownOnly(Lookup):
    def released(self, requests: Sequence[DraftRequest]) -> None:
        for request in requests:
            del self.texts[request.request_id]
            self.follows.pop(request.request_id, None)


class TakesPreemptedForEnded(Lookup):
    def __init__(self, context: DrafterContext) -> None:
        super().__init__(context)
        self.ended: set[str] = set()

    def released(self, requests: Sequence[DraftRequest]) -> None:
        super().released(requests)
        self.ended.update(request.request_id + request.salt for request in requests)

    def draft(self, request: DraftRequest) -> list[int]:
        return [] if request.request_id + request.salt in self.ended else super().draft(request)


class Rolls(Lookup):
    """Drafts as many as the dice say."""

    def draft(self, request: DraftRequest) -> list[int]:
        return super().draft(request)[: random.randint(0, request.max_drafts)]


class CountsCalls(Lookup):
    """Every third request gets none."""

    def __init__(self, context: DrafterContext) -> None:
        super().__init__(context)
        self.calls = itertools.count()

    def draft(self, request: DraftRequest) -> list[int]:
        drafts = super().draft(request)
        return [] if next(self.calls) % 3 == 2 else drafts


class NeedsTwoTokens(Lookup):
    def draft(self, request: DraftRequest) -> list[int]:
        return [] if request.token_ids[-2] == request.token_ids[-1] else super().draft(request)


class NeedsRequests(Lookup):
    def propose(self, requests: Sequence[DraftRequest]) -> Sequence[Sequence[int]]:
        limit = max(request.max_drafts for request in requests)
        return [drafts[:limit] for drafts in super().propose(requests)]


class RefusesGaps(Lookup):
    """Takes for granted that it is asked after every token."""

    def new_tokens(self, request: DraftRequest, num_known: int) -> list[int]:
        if num_known and len(request.token_ids) > num_known + 1:
            raise RuntimeError("tokens are missing")
        return super().new_tokens(request, num_known)


class NeedsNewTokens(Lookup):
    """Fails where nothing has come since the last call."""

    def new_tokens(self, request: DraftRequest, num_known: int) -> list[int]:
        first, *others = super().new_tokens(request, num_known)
        return [first, *others]


class MissesGaps(Lookup):
    def new_tokens(self, request: DraftRequest, num_known: int) -> list[int]:
        return super().new_tokens(request, num_known)[-1:] if num_known else super().new_tokens(request, 0)

    def read(self, request: DraftRequest) -> list[int]:
        super().read(request)
        tokens: list[int] = request.token_ids.tolist()
        return tokens


class BelievesItsDrafts(Lookup):
    """Takes what it drafted for what follows."""

    def draft(self, request: DraftRequest) -> list[int]:
        text = self.read(request)
        drafts = self.chain(request, text, request.max_drafts)
        text.extend(drafts)
        return drafts


class DraftsNothing(Lookup):
    def draft(self, request: DraftRequest) -> list[int]:
        return []


class WantsEveryOutcome(Lookup):
    """Divides by the drafts of a call's outcomes."""

    def verified(self, outcomes: Sequence[DraftOutcome]) -> None:
        self.rate = sum(outcome.num_accepted for outcome in outcomes) / len(outcomes)


class GreedyOnly(Lookup):
    """Fails in an engine alone: only there are there penalties."""

    def draft(self, request: DraftRequest) -> list[int]:
        if request.params.repetition_penalty != 1:
            raise ValueError("penalties are not supported")
        return super().draft(request)


class NoDrafter:
    """Has one method of four."""

    def __init__(self, context: DrafterContext) -> None:
        pass

    def propose(self, requests: Sequence[DraftRequest]) -> Sequence[Sequence[int]]:
        return [[] for _ in requests]
