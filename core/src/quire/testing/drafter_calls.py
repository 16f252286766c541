"""How the suite of drafters calls them: as an engine does, with memory that it uses again, every answer checked."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from quire.api.request import SamplingParams
from quire.api.speculation import Drafter, DraftOutcome, DraftRequest
from quire.testing.conformance import ConformanceError, require
from quire.testing.toy_model import VOCAB_SIZE

T = TypeVar("T")

UNUSED_TOKEN = VOCAB_SIZE - 1
"""In no text: what memory is overwritten with."""

_BEYOND = -7
"""What stands behind a request's tokens."""


@dataclass(frozen=True)
class Text:
    """What a request will hold in the end.

    Attributes:
        name: the request's id.
    """

    name: str
    token_ids: tuple[int, ...]
    salt: str
    num_prompt_tokens: int = 1
    params: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=0.0), hash=False)


@dataclass(frozen=True)
class Asked:
    """A request in a call: the first `length` tokens of a text."""

    text: Text
    length: int
    max_drafts: int


Proposals = dict[tuple[str, int], tuple[int, ...]]
"""What was proposed for a request of so many tokens."""


class CheckedDrafter(Drafter):
    """A drafter whose every call is checked; what is wrong is remembered and raised.

    Attributes:
        problems: what was wrong, in the order of the calls.
        num_proposed: tokens so far.
    """

    def __init__(self, drafter: Drafter, vocab_size: int) -> None:
        self._drafter = drafter
        self._vocab_size = vocab_size
        self.problems: list[str] = []
        self.num_proposed = 0

    def propose(self, requests: Sequence[DraftRequest]) -> Sequence[Sequence[int]]:
        """See Drafter; ConformanceError where the answer is none."""
        with _Remembered(self.problems):
            before = [(request.token_ids.copy(), repr(request.params)) for request in requests]
            proposals = self._call("propose", lambda: self._drafter.propose(requests), requests)
            check_proposals(requests, proposals, self._vocab_size)
            for request, (token_ids, params) in zip(requests, before, strict=True):
                what = f"propose() changed the {{}} of a {describe(request)}; a drafter only reads"
                require(np.array_equal(request.token_ids, token_ids), what.format("token_ids"))
                require(repr(request.params) == params, what.format("params"))
            self.num_proposed += sum(len(drafts) for drafts in proposals)
            return proposals

    def verified(self, outcomes: Sequence[DraftOutcome]) -> None:
        """See Drafter."""
        self._call("verified", lambda: self._drafter.verified(outcomes), ())

    def released(self, requests: Sequence[DraftRequest]) -> None:
        """See Drafter."""
        self._call("released", lambda: self._drafter.released(requests), requests)

    def close(self) -> None:
        """See Drafter."""
        self._call("close", self._drafter.close, ())

    def _call(self, name: str, call: Callable[[], T], requests: Sequence[DraftRequest]) -> T:
        with _Remembered(self.problems):
            try:
                return call()
            except ConformanceError:
                raise
            except Exception as error:
                who = ", ".join(describe(request) for request in requests[:4]) or "no requests"
                more = f" and {len(requests) - 4} more" if len(requests) > 4 else ""
                raise ConformanceError(
                    f"{name}() raised {type(error).__name__}: {error}; it was called with {who}{more}"
                ) from error


def check_proposals(requests: Sequence[DraftRequest], proposals: object, vocab_size: int) -> None:
    """Raise ConformanceError unless these are proposals for these requests."""
    if not isinstance(proposals, Sequence) or isinstance(proposals, str | bytes):
        raise ConformanceError(
            f"propose() gave a {type(proposals).__name__}, not a sequence with a sequence of ids for each request"
        )
    require(
        len(proposals) == len(requests),
        f"propose() gave {len(proposals)} sequences for {len(requests)} requests: give an empty one where "
        "there is no guess",
    )
    for request, drafts in zip(requests, proposals, strict=True):
        where = f"for a {describe(request)}"
        require(
            isinstance(drafts, Sequence) and not isinstance(drafts, str | bytes),
            f"propose() gave {drafts!r} {where}, which is no sequence of token ids",
        )
        require(
            len(drafts) <= request.max_drafts,
            f"propose() gave {len(drafts)} drafts {where}, whose max_drafts is {request.max_drafts}",
        )
        for token in drafts:
            require(
                isinstance(token, int) and not isinstance(token, bool),
                f"propose() gave {token!r}, a {type(token).__name__}, {where}: ids are ints (tolist() makes them)",
            )
            require(
                0 <= token < vocab_size,
                f"propose() gave the id {token} {where}; ids are from 0 to {vocab_size - 1}",
            )


def describe(request: DraftRequest) -> str:
    """A request, for messages."""
    return f"request {request.request_id!r} of {len(request.token_ids)} tokens"


class TextCalls:
    """Calls a drafter with texts.

    Args:
        drafter: who is called.
        is_memory_reused: overwrite the token ids of a call after it, as an engine may.
    """

    def __init__(self, drafter: CheckedDrafter, *, is_memory_reused: bool = True) -> None:
        self.drafter = drafter
        self._is_memory_reused = is_memory_reused
        self._kept: list[object] = []

    def propose(self, *asked: Asked) -> Proposals:
        """One call."""
        memory, requests = _requests(asked)
        proposals = self.drafter.propose(requests)
        found = {
            (entry.text.name, entry.length): tuple(drafts)
            for entry, drafts in zip(asked, proposals, strict=True)
        }
        self._leave(memory)
        return found

    def verified(self, asked: Sequence[Asked], proposals: Proposals) -> None:
        """Tell what became of drafts: those are accepted that the text goes on with."""
        outcomes = []
        for entry in asked:
            drafts = proposals[entry.text.name, entry.length]
            rest = entry.text.token_ids[entry.length :]
            equal = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(drafts, rest, strict=False))
            if drafts:
                outcomes.append(DraftOutcome(entry.text.name, len(drafts), len(list(equal))))
        self.drafter.verified(outcomes)

    def release(self, *released: tuple[Text, int]) -> None:
        """Texts end, or are preempted, with so many tokens."""
        memory, requests = _requests([Asked(text, length, 0) for text, length in released])
        self.drafter.released(requests)
        self._leave(memory)

    def _leave(self, memory: object) -> None:
        if self._is_memory_reused and isinstance(memory, np.ndarray):
            memory[:] = UNUSED_TOKEN
        self._kept.append(memory)  # not given back: what a stale view shows is decided here


def _requests(asked: Sequence[Asked]) -> tuple[object, list[DraftRequest]]:
    """Requests whose token ids are views of one array, and the array."""
    width = max((entry.length for entry in asked), default=0) + 3
    memory = np.full((len(asked), width), _BEYOND, dtype=np.int32)
    requests = []
    for row, entry in zip(memory, asked, strict=True):
        row[: entry.length] = entry.text.token_ids[: entry.length]
        view = row[: entry.length]
        view.flags.writeable = False
        num_prompt = min(entry.text.num_prompt_tokens, entry.length)
        requests.append(
            DraftRequest(
                entry.text.name, view, num_prompt, entry.max_drafts, entry.text.params, entry.text.salt
            )
        )
    return memory, requests


class _Remembered:
    """Keeps the text of what is raised in the block: an engine goes on without such a drafter."""

    def __init__(self, problems: list[str]) -> None:
        self._problems = problems

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if error is not None and str(error) not in self._problems:
            self._problems.append(str(error))
