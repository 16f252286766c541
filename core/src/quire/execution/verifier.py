"""The verifier: the target's own tokens at every draft row, of which drafts are accepted while they are equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from quire.api.step import TokenLogprobs
from quire.execution.sampler import SampledRows, Sampler, gather_logprobs
from quire.execution.sampling_state import SamplingState


@dataclass(slots=True, frozen=True)
class DraftedRow:
    """A request whose coming tokens are sampled: one, and one for each draft that is accepted."""

    slot: int
    draft_ids: list[int] = field(default_factory=list)


@dataclass(slots=True)
class VerifiedRow:
    """What a row gave.

    Attributes:
        token_ids: accepted drafts and the target's token after them; empty where the row failed.
        logprobs: one per token where the request asks for them, else None.
        error, failed_plugin: why the row failed, and whose code it was, where a plugin's.
    """

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    error: str | None = None
    failed_plugin: str | None = None


class Verifier:
    """Samples rows with and without drafts, and notes their tokens in the sampling state.

    Each token is the one that the same request would have got without drafts: it is drawn from the logits
    after the tokens before it, with the draw of its own output position, and a row after a rejected draft
    counts for nothing. Where penalties, processors and the like look at the tokens so far, a request's rows
    are sampled one after another, so that they only ever see verified tokens.

    Source: Leviathan et al. 2023, section 2, with draws shared instead of an acceptance test.
    """

    def __init__(self, sampler: Sampler, state: SamplingState) -> None:
        self._sampler = sampler
        self._state = state

    def verify(self, logits: Tensor, rows: Sequence[DraftedRow]) -> list[VerifiedRow]:
        """Sample each row's tokens.

        Args:
            logits: [L, V]: for each row one after its known tokens, then one after each of its drafts.
            rows: whose logits these are.

        Returns:
            One entry per row. A row that fails after accepted drafts keeps these, and fails in a later step.
        """
        if not any(row.draft_ids for row in rows):
            return self._sample(logits, [row.slot for row in rows])
        counts = np.array([1 + len(row.draft_ids) for row in rows])
        firsts = (np.cumsum(counts) - counts).tolist()
        is_stepwise = self._state.needs_edits(np.array([row.slot for row in rows], dtype=np.int64)).tolist()
        verified = [VerifiedRow() for _ in rows]
        pending = list(range(len(rows)))
        while pending:
            pending = self._round(logits, rows, firsts, is_stepwise, verified, pending)
        self._add_logprobs(logits, rows, firsts, verified)
        return verified

    def _sample(self, logits: Tensor, slots: list[int]) -> list[VerifiedRow]:
        """One token for each slot."""
        sampled = self._sampler.sample(logits, slots, self._state)
        verified = []
        for index, (slot, token_id) in enumerate(zip(slots, sampled.token_ids, strict=True)):
            if token_id is None:
                verified.append(_failed(sampled, index))
                continue
            self._state.append(slot, token_id)
            entry = sampled.logprobs[index]
            verified.append(VerifiedRow([token_id], None if entry is None else [entry]))
        return verified

    def _round(
        self,
        logits: Tensor,
        rows: Sequence[DraftedRow],
        firsts: list[int],
        is_stepwise: list[bool],
        verified: list[VerifiedRow],
        pending: list[int],
    ) -> list[int]:
        """Sample what can be sampled now of some rows; gives those that have an accepted draft to go on from."""
        spans: list[tuple[int, int, int]] = []
        logits_rows: list[int] = []
        slots: list[int] = []
        offsets: list[int] = []
        for index in pending:
            num_known = len(verified[index].token_ids)
            num_rows = 1 if is_stepwise[index] else 1 + len(rows[index].draft_ids)
            spans.append((index, len(slots), num_rows))
            first = firsts[index] + num_known
            logits_rows.extend(range(first, first + num_rows))
            slots.extend([rows[index].slot] * num_rows)
            offsets.extend(range(num_rows))
        if len(slots) < len(logits):
            logits = logits[torch.tensor(logits_rows, device=logits.device)]
        drawn = self._sampler.draw(logits, slots, self._state, offsets)
        return [
            index
            for index, start, num_rows in spans
            if self._accept(rows[index], verified[index], drawn, start, num_rows)
        ]

    def _accept(
        self, row: DraftedRow, verified: VerifiedRow, drawn: SampledRows, start: int, num_rows: int
    ) -> bool:
        """Take a row's tokens up to the first that is not its draft; whether a draft waits for its next token."""
        for index in range(start, start + num_rows):
            token_id = drawn.token_ids[index]
            if token_id is None:
                if not verified.token_ids:
                    failed = _failed(drawn, index)
                    verified.error, verified.failed_plugin = failed.error, failed.failed_plugin
                return False
            position = len(verified.token_ids)
            verified.token_ids.append(token_id)
            self._state.append(row.slot, token_id)
            if position == len(row.draft_ids) or token_id != row.draft_ids[position]:
                return False
        return True

    def _add_logprobs(
        self, logits: Tensor, rows: Sequence[DraftedRow], firsts: list[int], verified: list[VerifiedRow]
    ) -> None:
        asking = [index for index, row in enumerate(rows) if self._state.num_logprobs[row.slot] is not None]
        if not asking:
            return
        logits_rows: list[int] = []
        slots: list[int] = []
        token_ids: list[int] = []
        for index in asking:
            tokens = verified[index].token_ids
            logits_rows.extend(range(firsts[index], firsts[index] + len(tokens)))
            slots.extend([rows[index].slot] * len(tokens))
            token_ids.extend(tokens)
        selected = logits[torch.tensor(logits_rows, dtype=torch.int64, device=logits.device)]
        entries = iter(gather_logprobs(selected, slots, token_ids, self._state))
        for index in asking:
            found = [next(entries) for _ in verified[index].token_ids]
            if found:
                verified[index].logprobs = [entry for entry in found if entry is not None]


def _failed(drawn: SampledRows, index: int) -> VerifiedRow:
    return VerifiedRow(error=drawn.errors[index], failed_plugin=drawn.failed_plugins.get(index))
