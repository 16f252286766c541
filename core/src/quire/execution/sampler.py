"""From logits to tokens. A row's result depends on that row and its slot alone, never on its batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire.api.step import TokenLogprobs
from quire.execution.logprobs import NOT_FINITE, token_logprobs
from quire.execution.philox import Purpose, uniform
from quire.execution.processors import RowFault
from quire.execution.progress import PROGRESS
from quire.execution.sampling_state import IntArray, LogitEdits, SamplingState

NOTHING_LEFT = "no token can be sampled: bias, penalties and min_tokens left no finite logit"
FloatArray = npt.NDArray[np.floating]

_BLOCK = 256
_MIN_ROWS = 8


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


class Sampler:
    """Samples one token per row. Keeps a scratch buffer: one caller at a time."""

    def __init__(self) -> None:
        self._scratch: Tensor | None = None

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
        positions = state.num_output_tokens[np.asarray(slots)]
        if offsets is not None:
            positions = positions + np.asarray(offsets)
        rows = np.asarray(slots, dtype=np.int64)
        needs_edits = state.needs_edits(rows)
        is_random = state.temperature[rows] > 0.0
        work = self._load(logits)
        best, best_ids = _best_of(work)
        is_finite = best.isfinite().cpu().numpy()
        errors: list[str | None] = [None if finite else NOT_FINITE for finite in is_finite]
        failed_plugins: dict[int, str] = {}
        token_ids: list[int | None] = best_ids.tolist()
        pending = np.flatnonzero((needs_edits | is_random) & is_finite)
        if len(pending):
            chosen, failed = self._choose(work, pending, rows[pending], positions[pending], state)
            for index, token_id, fault in zip(pending.tolist(), chosen, failed, strict=True):
                token_ids[index] = token_id
                if isinstance(fault, RowFault):
                    errors[index], failed_plugins[index] = fault.text, fault.plugin
                else:
                    errors[index] = fault
        sampled = [None if error else token_id for token_id, error in zip(token_ids, errors, strict=True)]
        return SampledRows(sampled, [None] * len(sampled), errors, failed_plugins)

    def _load(self, logits: Tensor) -> Tensor:
        """The logits as float32 (float64 stays) in the scratch buffer, padded to whole blocks with -inf."""
        num_rows, vocab_size = logits.shape
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        width = math.ceil(vocab_size / _BLOCK) * _BLOCK
        buffer = self._scratch
        fits = buffer is not None and buffer.shape[0] >= num_rows and buffer.shape[1] == width
        if buffer is None or not fits or buffer.dtype != dtype or buffer.device != logits.device:
            capacity = max(_MIN_ROWS, 1 << (num_rows - 1).bit_length())
            buffer = torch.empty((capacity, width), dtype=dtype, device=logits.device)
            self._scratch = buffer
        work = buffer[:num_rows]
        work[:, :vocab_size].copy_(logits)
        work[:, vocab_size:] = -torch.inf
        return work

    def _choose(
        self, work: Tensor, indices: IntArray, slots: IntArray, outputs: IntArray, state: SamplingState
    ) -> tuple[list[int], list[RowFault | str | None]]:
        """Tokens of the rows that are not plainly greedy, and why some have none."""
        if len(indices) < len(work):
            work = work[torch.from_numpy(indices).to(work.device)]
        below_min_tokens = state.is_below_min_tokens(slots)
        faults: dict[int, RowFault] = {}
        for position in np.flatnonzero(state.needs_edits(slots)).tolist():
            edits = state.edits[slots[position]]
            if edits is not None:
                row = work[position, : state.vocab_size]
                fault = _edit_row(row, edits, bool(below_min_tokens[position]))
                if fault is not None:
                    faults[position] = fault
                PROGRESS.count += 1
        best, best_ids = _best_of(work)
        failed: list[RowFault | str | None] = [
            faults.get(position, None if is_finite else NOTHING_LEFT)
            for position, is_finite in enumerate(best.isfinite().tolist())
        ]
        chosen: list[int] = best_ids.tolist()
        positions = [i for i in np.flatnonzero(state.temperature[slots] > 0.0).tolist() if failed[i] is None]
        if positions:
            if len(positions) < len(work):
                selected = torch.tensor(positions, device=work.device)
                work, best = work[selected], best[selected]
            tokens = _draw_tokens(work, best, slots[positions], outputs[positions], state)
            for position, token_id in zip(positions, tokens, strict=True):
                chosen[position] = token_id
        return chosen, failed


def _best_of(work: Tensor) -> tuple[Tensor, Tensor]:
    """The largest value of each row of whole blocks, and its lowest index: block by block, a third of the time."""
    blocks = work.view(len(work), -1, _BLOCK)
    best, block = blocks.amax(-1).max(-1)
    offset = blocks[torch.arange(len(work), device=work.device), block].argmax(-1)
    return best, block * _BLOCK + offset


def _edit_row(row: Tensor, edits: LogitEdits, is_below_min_tokens: bool) -> RowFault | None:
    """Apply bias, the min_tokens mask, processors and penalties to one row [V], in place."""
    if len(edits.bias_ids):
        row[_to(edits.bias_ids, row)] += torch.from_numpy(edits.bias_values).to(row.device, row.dtype)
    if is_below_min_tokens:
        row[_to(edits.stop_ids, row)] = -torch.inf
    if edits.processors is not None:
        fault = edits.processors.apply(row)
        if fault is not None:
            return fault
    if edits.counts is None:
        return None
    ids = _to(edits.counts.token_ids, row)
    counts = torch.from_numpy(edits.counts.output_counts).to(row.device, row.dtype)
    values = row[ids]
    if edits.repetition_penalty != 1.0:
        factor = edits.repetition_penalty
        values = torch.where(values > 0, values / factor, values * factor)
    values -= edits.frequency_penalty * counts
    values -= edits.presence_penalty * (counts > 0)
    row[ids] = values
    return None


def _to(ids: IntArray, row: Tensor) -> Tensor:
    return torch.from_numpy(ids).to(row.device)


def _draw_tokens(
    work: Tensor, best: Tensor, slots: IntArray, outputs: IntArray, state: SamplingState
) -> list[int]:
    """Temperature, filters, and one draw per row, for these output positions.

    `work` is overwritten; `best` is its rows' maxima.
    """
    temperature = torch.from_numpy(state.temperature[slots]).to(work.device, work.dtype)
    work.sub_(best[:, None]).div_(temperature[:, None])
    min_p, top_k, top_p = state.min_p[slots], state.top_k[slots], state.top_p[slots]
    if (min_p > 0.0).any():
        with np.errstate(divide="ignore"):
            bounds = torch.from_numpy(np.log(min_p)).to(work.device, work.dtype)
        work.masked_fill_(work < bounds[:, None], -torch.inf)
    for position in np.flatnonzero((top_k > 0) | (top_p < 1.0)).tolist():
        row = work[position]
        values = row.cpu().numpy()
        truncate(values, int(top_k[position]), float(top_p[position]))
        if row.device.type != "cpu":
            row.copy_(torch.from_numpy(values))
        PROGRESS.count += 1
    draws = uniform(state.seeds[slots], outputs, Purpose.TOKEN)
    torch.exp(work, out=work)
    return invert_cdf(work, torch.from_numpy(draws).to(work.device)).tolist()


def truncate(row: FloatArray, top_k: int, top_p: float) -> None:
    """Set what top_k and then top_p drop to -inf, in place; of equal values the lowest ids stay.

    Only candidates are sorted: those of top_k or, without it, those above a bound below which all
    tokens together weigh less than what top_p drops.

    Args:
        row: [V], log-probabilities up to a constant, the largest 0.
        top_k: 0 keeps all, else less than V.
        top_p: 1 keeps all.
    """
    if top_k > 0:
        values = np.partition(row, len(row) - top_k)[len(row) - top_k :]
        _keep(row, float(values[0]), top_k)
        if top_p >= 1.0:
            return
        total = np.exp(values).sum(dtype=np.float64)
    else:
        # A token below the bound weighs less than (1 - top_p) / V of the likeliest one alone.
        values = row[row >= math.log1p(-top_p) - math.log(len(row)) - 1.0]
        total = np.exp(row).sum(dtype=np.float64)
    values = np.sort(values)[::-1]
    reached = np.exp(values).cumsum(dtype=np.float64)
    count = min(int(np.searchsorted(reached, top_p * total)) + 1, len(values))
    _keep(row, float(values[count - 1]), count)


def _keep(row: FloatArray, threshold: float, count: int) -> None:
    """Keep the `count` likeliest, whose least is `threshold`; of those equal to it the lowest ids."""
    is_tied = row == threshold
    num_above = int(np.count_nonzero(row > threshold))
    np.copyto(row, -np.inf, where=row < threshold)
    row[np.flatnonzero(is_tied)[max(0, count - num_above) :]] = -np.inf


def invert_cdf(weights: Tensor, draws: Tensor) -> Tensor:
    """The token at which the cumulated weights, in id order, pass `draw` of their total.

    Two levels: whole blocks, then the tokens of one block, both cumulated in float64. Tokens of
    weight 0 are never chosen.

    Args:
        weights: [R, a multiple of the block], not negative, each row's total positive.
        draws: float64 [R] in [0, 1).

    Returns:
        int64 [R].
    """
    blocks = weights.view(len(weights), -1, _BLOCK)
    block_ends = blocks.sum(-1).double().cumsum(-1)  # [R, blocks]
    block_ids, inside = _locate(block_ends, draws * block_ends[:, -1])
    chosen = blocks[torch.arange(len(weights), device=weights.device), block_ids]  # [R, _BLOCK]
    token_ids, _ = _locate(chosen.double().cumsum(-1), inside)
    return block_ids * _BLOCK + token_ids


def _locate(ends: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the first end past each target, kept below the last end, and the target's offset in it."""
    limits = torch.nextafter(ends[:, -1], torch.zeros_like(targets))
    bounded = torch.minimum(targets, limits)
    index = torch.searchsorted(ends, bounded[:, None], right=True)
    starts = torch.where(index > 0, ends.gather(1, (index - 1).clamp_min(0)), 0.0)
    return index[:, 0], (bounded - starts[:, 0]).clamp_min(0.0)


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
