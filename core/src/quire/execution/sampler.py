"""From logits to tokens. A row's result depends on that row and its slot alone, never on its batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from quire.api.step import TokenLogprobs
from quire.execution.logprobs import NOT_FINITE, token_logprobs
from quire.execution.philox import Purpose, uniform
from quire.execution.processors import RowFault
from quire.execution.progress import PROGRESS
from quire.execution.sampling_state import FloatArray, IntArray, LogitEdits, SamplingState
from quire.ops import sampling
from quire.ops.sampling import NO_TOKEN
from quire.ops.table import OpTable

NOTHING_LEFT = "no token can be sampled: bias, penalties and min_tokens left no finite logit"


@dataclass(slots=True, frozen=True)
class SamplingOps:
    """The ops that sampling calls; see `quire.ops.sampling`, whose references are the default."""

    apply_penalties: Callable[..., Tensor] = sampling.apply_penalties
    greedy_tokens: Callable[..., Tensor] = sampling.greedy_tokens
    sample_tokens: Callable[..., Tensor] = sampling.sample_tokens

    @staticmethod
    def of(table: OpTable) -> SamplingOps:
        """The table's, which must have all of them."""
        return SamplingOps(table.apply_penalties, table.greedy_tokens, table.sample_tokens)


@dataclass(slots=True, frozen=True)
class SampledRows:
    """One entry per row, in the rows' order.

    Attributes:
        token_ids: the sampled token; None where the row failed.
        logprobs: None where not asked for, or where the row failed.
        errors: why a row failed, else None.
        failed_plugins: by row, the plugin whose processor is why.
    """

    token_ids: list[int | None]
    logprobs: list[TokenLogprobs | None]
    errors: list[str | None]
    failed_plugins: dict[int, str] = field(default_factory=dict)


@dataclass(slots=True, frozen=True)
class Draws:
    """What rows are sampled with, each [L]: float64, but `top_k` int64; see `sampling.sample_tokens`."""

    temperature: Tensor
    min_p: Tensor
    top_p: Tensor
    draws: Tensor
    top_k: Tensor


class Sampler:
    """Samples one token per row: on the logits' device, of which only the tokens come to the host.

    Args:
        ops: those of the engine's op table; None: the references.
    """

    def __init__(self, ops: SamplingOps | None = None) -> None:
        self._ops = ops or SamplingOps()

    def sample(self, logits: Tensor, slots: Sequence[int], state: SamplingState) -> SampledRows:
        """Sample the next token of each row's slot, and take its log-probabilities; see `draw`."""
        drawn = self.draw(logits, slots, state)
        logprobs = gather_logprobs(logits, slots, drawn.token_ids, state)
        return SampledRows(drawn.token_ids, logprobs, drawn.errors, drawn.failed_plugins)

    def draw(
        self, logits: Tensor, slots: Sequence[int], state: SamplingState, offsets: Sequence[int] | None = None
    ) -> SampledRows:
        """Sample the next token of each row's slot, without log-probabilities; the state is read, not changed.

        In order: logit_bias, min_tokens, plugins' logits processors, penalties, temperature, min_p,
        top_k, top_p, as in vLLM. A processor's failure fails its row alone.
        Greedy ties go to the lowest id. Draws are for output position `state.num_output_tokens` + offset.

        Args:
            logits: [L, V], any floating dtype and device; not changed.
            slots: L slots.
            state: what is known of those slots.
            offsets: per row, how many tokens lie between the slot's known output and the row's token; not
                0 only for rows that nothing but temperature and filters change (see `state.needs_edits`).
        """
        if not slots:
            return SampledRows([], [], [])
        rows = np.asarray(slots, dtype=np.int64)
        positions = state.num_output_tokens[rows]
        if offsets is not None:
            positions = positions + np.asarray(offsets)
        needs_edits = state.needs_edits(rows)
        # Of rows with edits this says whether they are finite; their tokens come from the edited ones.
        plain = self._choose(
            logits, rows, positions, state, np.where(needs_edits, 0.0, state.temperature[rows])
        )
        pending = np.flatnonzero(needs_edits)
        if not len(pending):
            return _result(plain.tolist(), {}, {})
        edited, faults = self._edit(logits, plain, pending, rows[pending], state)
        chosen = self._choose(
            edited, rows[pending], positions[pending], state, state.temperature[rows[pending]]
        )
        token_ids: list[int] = torch.cat((plain, chosen)).tolist()
        edited_ids = dict(zip(pending.tolist(), token_ids[len(rows) :], strict=True))
        return _result(token_ids[: len(rows)], edited_ids, faults)

    def choose(self, logits: Tensor, draws: Draws | None) -> Tensor:
        """Sample one token per row, [L], on the logits' device; NO_TOKEN where the logits allow none.

        Args:
            logits: [L, V], as edited.
            draws: where the logits are; None: all rows are greedy.
        """
        if draws is None:
            return self._ops.greedy_tokens(logits)
        return self._ops.sample_tokens(
            logits, draws.temperature, draws.min_p, draws.top_k, draws.top_p, draws.draws
        )

    def _choose(
        self,
        logits: Tensor,
        slots: IntArray,
        positions: IntArray,
        state: SamplingState,
        temperature: FloatArray,
    ) -> Tensor:
        """See `choose`; the tokens are of these output positions."""
        is_random = temperature > 0.0
        if not is_random.any():
            return self.choose(logits, None)
        draws = uniform(state.seeds[slots], positions, Purpose.TOKEN)
        numbers = _to(np.stack((temperature, state.min_p[slots], state.top_p[slots], draws)), logits)
        top_k = _to(state.top_k[slots], logits)
        token_ids = self.choose(logits, Draws(numbers[0], numbers[1], numbers[2], numbers[3], top_k))
        is_filtered = (state.top_k[slots] > 0) | (state.top_p[slots] < 1.0)
        PROGRESS.count += int(np.count_nonzero(is_random & is_filtered))
        return token_ids

    def _edit(
        self, logits: Tensor, plain: Tensor, indices: IntArray, slots: IntArray, state: SamplingState
    ) -> tuple[Tensor, dict[int, RowFault]]:
        """Copies of some rows, in float32 (float64 stays), with their edits; and what processors did wrong."""
        work = logits[_to(indices, logits)]
        if work.dtype != torch.float64:
            work = work.float()
        is_below_min_tokens = state.is_below_min_tokens(slots).tolist()
        found = [state.edits[slot] for slot in slots.tolist()]
        if any(edits is not None and edits.processors is not None for edits in found):
            is_finite = (plain != NO_TOKEN).tolist()  # processors never see rows that are not
        else:
            is_finite = [True] * len(plain)
        faults: dict[int, RowFault] = {}
        for position, index in enumerate(indices.tolist()):
            edits = found[position]
            if edits is not None and is_finite[index]:
                row = work[position, : state.vocab_size]
                fault = _edit_row(row, edits, is_below_min_tokens[position])
                if fault is not None:
                    faults[index] = fault
                PROGRESS.count += 1
        self._penalise(work, found)
        return work, faults

    def _penalise(self, work: Tensor, found: Sequence[LogitEdits | None]) -> None:
        """Penalties of all rows at once, in place."""
        counts = [None if edits is None else edits.counts for edits in found]
        given = [count for count in counts if count is not None]
        if not given:
            return
        offsets = list(accumulate((0 if each is None else len(each.token_ids) for each in counts), initial=0))
        penalties = [
            (1.0, 0.0, 0.0)
            if edits is None
            else (edits.repetition_penalty, edits.frequency_penalty, edits.presence_penalty)
            for edits in found
        ]
        numbers = _to(np.array(penalties).T.copy(), work).to(work.dtype)
        self._ops.apply_penalties(
            work,
            _to(np.concatenate([count.token_ids for count in given]), work),
            _to(np.concatenate([count.output_counts for count in given]), work),
            _to(np.array(offsets, dtype=np.int64), work),
            numbers[0],
            numbers[1],
            numbers[2],
        )


def _result(plain: list[int], edited: dict[int, int], faults: dict[int, RowFault]) -> SampledRows:
    """Tokens and errors of rows from what ops gave, without edits and with them."""
    token_ids: list[int | None] = []
    errors: list[str | None] = []
    failed_plugins: dict[int, str] = {}
    for index, token_id in enumerate(plain):
        error = None
        if token_id == NO_TOKEN:
            error = NOT_FINITE
        elif index in faults:
            error, failed_plugins[index] = faults[index].text, faults[index].plugin
        elif index in edited:
            token_id = edited[index]
            error = NOTHING_LEFT if token_id == NO_TOKEN else None
        token_ids.append(token_id if error is None else None)
        errors.append(error)
    return SampledRows(token_ids, [None] * len(plain), errors, failed_plugins)


def _edit_row(row: Tensor, edits: LogitEdits, is_below_min_tokens: bool) -> RowFault | None:
    """Apply bias, the min_tokens mask and processors to one row [V], in place."""
    if len(edits.bias_ids):
        row[_to(edits.bias_ids, row)] += _to(edits.bias_values, row).to(row.dtype)
    if is_below_min_tokens:
        row[_to(edits.stop_ids, row)] = -torch.inf
    return None if edits.processors is None else edits.processors.apply(row)


def _to(values: IntArray | FloatArray, like: Tensor) -> Tensor:
    """The same values where another tensor lies."""
    return torch.from_numpy(values).to(like.device)


def gather_logprobs(
    logits: Tensor, slots: Sequence[int], token_ids: Sequence[int | None], state: SamplingState
) -> list[TokenLogprobs | None]:
    """Log-probabilities of the rows that have a token and ask for them, from the unchanged logits."""
    results: list[TokenLogprobs | None] = [None] * len(token_ids)
    asking: list[int] = []
    ids: list[int] = []
    counts: list[int] = []
    for index, (slot, token_id) in enumerate(zip(slots, token_ids, strict=True)):
        count = state.num_logprobs[slot]
        if token_id is not None and count is not None:
            asking.append(index)
            ids.append(token_id)
            counts.append(count)
    if asking:
        rows = logits if len(asking) == len(token_ids) else logits[torch.tensor(asking, device=logits.device)]
        for index, entry in zip(asking, token_logprobs(rows, ids, counts), strict=True):
            results[index] = entry
    return results
