"""A plugin's drafter behind a guard: what it raises, or proposes amiss, costs its request's drafts and nothing else."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import SupportsIndex, cast

from quire.api.speculation import Drafter, DraftOutcome, DraftRequest
from quire.execution.processors import PluginCall
from quire.execution.progress import PROGRESS

MAX_FAILURES = 8
"""Requests in a row for which a drafter fails before it is left out for good."""

_FAULTS = (Exception, SystemExit, GeneratorExit)

logger = logging.getLogger("quire.plugins")


@dataclass(slots=True, frozen=True)
class LoadedDrafter:
    """The drafter of an engine.

    Attributes:
        name: as `speculative_config` calls it. plugin: who brought it.
        origin: plugin, distribution and version, for messages.
    """

    name: str
    plugin: str
    origin: str
    drafter: Drafter

    def describe(self) -> str:
        """For messages."""
        return f"drafter {self.name!r} of {self.origin}"


class GuardedDrafter:
    """Calls a drafter and checks what it proposes.

    A request for which it fails gets no more drafts; after `MAX_FAILURES` such requests with no proposal
    between them the drafter is left out, and decoding goes on without.

    Attributes:
        is_off: whether it was left out.
    """

    def __init__(self, loaded: LoadedDrafter, vocab_size: int, call: PluginCall) -> None:
        self.is_off = False
        self._loaded = loaded
        self._vocab_size = vocab_size
        self._call = call
        self._refused: set[str] = set()
        self._num_failures = 0

    def propose(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        """One list of valid drafts per request; empty where the drafter has none, or failed."""
        drafts: list[list[int]] = [[] for _ in requests]
        asked = [i for i, request in enumerate(requests) if request.request_id not in self._refused]
        if self.is_off or not asked:
            return drafts
        try:
            answers = self._ask([requests[index] for index in asked])
        except _FAULTS as error:
            if len(asked) == 1:
                self._refuse(requests[asked[0]], error)
            else:
                for index in asked:
                    drafts[index] = self._propose_alone(requests[index])
            return drafts
        for index, answer in zip(asked, answers, strict=True):
            drafts[index] = self._read(requests[index], answer)
        return drafts

    def verified(self, outcomes: Sequence[DraftOutcome]) -> None:
        """Tell the drafter."""
        self._tell("verified", self._loaded.drafter.verified, outcomes)

    def released(self, requests: Sequence[DraftRequest]) -> None:
        """Tell the drafter, and forget what it did to these requests."""
        self._refused.difference_update(request.request_id for request in requests)
        self._tell("released", self._loaded.drafter.released, requests)

    def close(self) -> None:
        """Tell the drafter that the engine ends."""
        self._tell("close", self._loaded.drafter.close)

    def _ask(self, requests: Sequence[DraftRequest]) -> list[object]:
        propose = self._loaded.drafter.propose
        answers = self._call(self._loaded.plugin, "Drafter.propose", propose, tuple(requests))
        if not isinstance(answers, Sequence):
            raise TypeError(f"propose gave {type(answers).__name__}, expected one sequence for each request")
        listed = list(islice(answers, len(requests) + 1))
        PROGRESS.count += 1
        if len(listed) != len(requests):
            raise TypeError(
                f"propose gave drafts of another number of requests than the {len(requests)} given"
            )
        return listed

    def _propose_alone(self, request: DraftRequest) -> list[int]:
        """Ask for one request, to find out whose fault a failure was."""
        if self.is_off:
            return []
        try:
            answer = self._ask([request])[0]
        except _FAULTS as error:
            self._refuse(request, error)
            return []
        return self._read(request, answer)

    def _read(self, request: DraftRequest, answer: object) -> list[int]:
        try:
            drafts = cast(
                "list[int]",
                self._call(self._loaded.plugin, "Drafter.propose", _read_ids, answer, request.max_drafts + 1),
            )
            if len(drafts) > request.max_drafts:
                raise ValueError(f"it proposed more than the {request.max_drafts} tokens that can be used")
            if drafts and not 0 <= min(drafts) <= max(drafts) < self._vocab_size:
                raise ValueError(f"it proposed {drafts}, token ids are from 0 to {self._vocab_size - 1} here")
        except _FAULTS as error:
            self._refuse(request, error)
            return []
        if drafts:
            self._num_failures = 0
        return drafts

    def _refuse(self, request: DraftRequest, error: BaseException) -> None:
        self._refused.add(request.request_id)
        self._num_failures += 1
        logger.warning(
            "%s failed for request %r: %s: %s; the request gets no more drafts",
            self._loaded.describe(),
            request.request_id,
            type(error).__name__,
            error,
        )
        if self._num_failures >= MAX_FAILURES:
            self._leave_out(f"it failed for {self._num_failures} requests in a row")

    def _tell(self, what: str, function: Callable[..., None], *args: object) -> None:
        if self.is_off and what != "close":
            return
        try:
            self._call(self._loaded.plugin, f"Drafter.{what}", function, *args)
        except _FAULTS as error:
            self._leave_out(f"{what} raised {type(error).__name__}: {error}")

    def _leave_out(self, reason: str) -> None:
        self.is_off = True
        logger.error(
            "%s is left out from now on, requests go on without drafts: %s", self._loaded.describe(), reason
        )


def _read_ids(answer: object, most: int) -> list[int]:
    """Up to so many token ids of a proposal, which may be endless."""
    return [operator.index(token_id) for token_id in islice(cast("Iterable[SupportsIndex]", answer), most)]
