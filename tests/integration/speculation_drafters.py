"""Drafters and a logits processor for the tests of speculation, given to an engine as one plugin."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from unittest.mock import patch

from extension_plugins import make_plugin
from torch import Tensor

from quire.api.specs import DrafterSpec, LogitsProcessorSpec
from quire.api.speculation import Drafter, DraftRequest
from quire.execution.drafting.adaptive_control import AdaptiveControl

Continuations = Mapping[tuple[int, ...], Sequence[Sequence[int]]]
"""By prompt: what its choices generate without drafts, and some tokens past their ends."""


def mix(*numbers: int) -> int:
    """A number that looks random, and is the same for the same numbers."""
    return zlib.crc32(repr(numbers).encode())


class Oracle(Drafter):
    """Knows what comes. It keeps back some drafts, cuts some short, and spoils some tokens."""

    def __init__(self, known: Continuations, vocab_size: int) -> None:
        self._known = known
        self._vocab_size = vocab_size

    def propose(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        return [self._draft(request) for request in requests]

    def _draft(self, request: DraftRequest) -> list[int]:
        tokens = request.token_ids.tolist()
        prompt, output = tuple(tokens[: request.num_prompt_tokens]), tokens[request.num_prompt_tokens :]
        length = request.max_drafts
        if mix(len(tokens), 1) % 6 == 0:
            length = mix(len(tokens), 2) % length
        for known in self._known.get(prompt, ()):
            if list(known[: len(output)]) == output:
                draft = list(known[len(output) : len(output) + length])
                return [self._spoil(token, len(tokens) + i) for i, token in enumerate(draft)]
        return []

    def _spoil(self, token_id: int, position: int) -> int:
        return (token_id + 1) % self._vocab_size if mix(token_id, position) % 5 == 0 else token_id


class Junk(Drafter):
    """Proposes tokens at random."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def propose(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        return [
            [mix(len(request.token_ids), i) % self._vocab_size for i in range(request.max_drafts)]
            for request in requests
        ]


class Nudge:
    """Makes a token likelier that depends on all tokens so far; its own factory."""

    def __init__(self, context: object = None) -> None:
        self.context = context

    def for_request(self, arguments: object, params: object) -> Nudge | None:
        return None if arguments is None else self

    def __call__(self, prompt: Sequence[int], output: Sequence[int], logits: Tensor) -> Tensor:
        logits[mix(*prompt, *output) % len(logits)] += 6.0
        return logits


def speculation_plugin(known: Continuations) -> ModuleType:
    """The drafters "oracle" and "junk", and the logits processor "nudge"."""
    return make_plugin(
        "speculation-tests",
        register_drafters=lambda: [
            DrafterSpec("oracle", lambda context: Oracle(known, context.vocab_size)),
            DrafterSpec("junk", lambda context: Junk(context.vocab_size)),
        ],
        register_logits_processors=lambda: [LogitsProcessorSpec("nudge", Nudge)],
    )


@contextmanager
def cheap_drafts() -> Iterator[None]:
    """The adaptive control believes that it runs where drafts cost little: what it does depends on no clock."""
    note_step, calibrate = AdaptiveControl.note_step, AdaptiveControl.calibrate

    def note_made_up(self: AdaptiveControl, num_rows: int, num_drafts: int, seconds: float) -> None:
        note_step(self, num_rows, num_drafts, _step_s(num_rows + num_drafts))

    def calibrate_made_up(self: AdaptiveControl, step_times: object, propose_s: float) -> None:
        calibrate(self, [(size, _step_s(size)) for size in (1, 2, 4, 8, 16)], 1e-6)

    with (
        patch.object(AdaptiveControl, "note_step", note_made_up),
        patch.object(AdaptiveControl, "calibrate", calibrate_made_up),
        patch.object(AdaptiveControl, "note_propose", lambda *_: None),
    ):
        yield


def _step_s(num_tokens: int) -> float:
    return 1e-3 + 1e-6 * num_tokens
