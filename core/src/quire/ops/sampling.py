"""References of sampling: penalties, the likeliest token, and draws with temperature, min_p, top_k and top_p."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

NO_TOKEN = -1
"""What a row gives that has no largest finite logit: it holds NaN or +inf, or nothing but -inf."""

FloatArray = npt.NDArray[np.floating]

_BLOCK = 256
_ROWS = 32
"""Rows at a time, so that copies in float32 stay small and their memory is used again."""


def apply_penalties(
    logits: Tensor,
    token_ids: Tensor,
    counts: Tensor,
    row_offsets: Tensor,
    repetition: Tensor,
    frequency: Tensor,
    presence: Tensor,
) -> Tensor:
    """Penalise the tokens that each row's prompt and output hold, in place.

    A logit is divided by the repetition penalty where it is positive, else multiplied by it; what was generated
    loses `frequency` for each time and `presence` once. All of this is computed in the logits' dtype; others may
    fuse a product with its subtraction.

    Args:
        logits: [R, V], last dimension contiguous; overwritten.
        token_ids: int64 [N], distinct within a row: row r's are those from row_offsets[r] to row_offsets[r + 1].
        counts: int64 [N], how often each was generated; 0 for tokens of the prompt alone.
        row_offsets: int64 [R + 1], from 0 to N, not decreasing.
        repetition: [R], the logits' dtype, above 0; 1 changes nothing.
        frequency: the same, any sign; 0 changes nothing.
        presence: the same.

    Returns:
        logits, the tensor that was given.

    Source: Keskar et al. 2019, section 4.1 (repetition); OpenAI's API reference (frequency, presence).
    """
    rows = torch.arange(len(logits), device=logits.device)
    rows = rows.repeat_interleave(row_offsets.diff(), output_size=len(token_ids))
    values, factor = logits[rows, token_ids], repetition[rows]
    values = torch.where(values > 0, values / factor, values * factor)
    values -= frequency[rows] * counts.to(logits.dtype)
    values -= presence[rows] * (counts > 0)
    logits[rows, token_ids] = values
    return logits


def greedy_tokens(logits: Tensor) -> Tensor:
    """The token of each row's largest logit, of equal ones the lowest.

    Args:
        logits: [R, V], any floating dtype.

    Returns:
        int64 [R]; NO_TOKEN for rows that hold NaN or +inf, or nothing but -inf.
    """
    token_ids = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    for start in range(0, len(logits), _ROWS):
        best, best_ids = _best_of(_loaded(logits[start : start + _ROWS]))
        token_ids[start : start + _ROWS] = best_ids.masked_fill(~best.isfinite(), NO_TOKEN)
    return token_ids


def sample_tokens(
    logits: Tensor, temperature: Tensor, min_p: Tensor, top_k: Tensor, top_p: Tensor, draws: Tensor
) -> Tensor:
    """One token of each row: temperature, then min_p, top_k and top_p, then the inverse of what is cumulated.

    Scaled logits are (logit - largest) / temperature in float32 (float64 stays). top_k and top_p keep the
    likeliest, of equal ones the lowest ids; top_p keeps the fewest that together reach its share of what top_k
    left. Weights are cumulated in float64, in the order of ids. A row's token depends on that row alone.

    Other implementations may round otherwise. They give the same token unless a draw lies within 1e-6 of the end
    of a token's share, or top_p within 1e-6 of the share of some number of the likeliest tokens.

    Args:
        logits: [R, V], any floating dtype; not changed.
        temperature: float64 [R]; 0 takes the largest logit, as `greedy_tokens` does.
        min_p: float64 [R], drops tokens less likely than this share of the likeliest; 0 keeps all.
        top_k: int64 [R]; 0, V and more keep all.
        top_p: float64 [R], above 0; 1 keeps all.
        draws: float64 [R] in [0, 1).

    Returns:
        int64 [R]; NO_TOKEN as `greedy_tokens`.

    Source: Holtzman et al. 2020, section 3.1 (top_p); Nguyen et al. 2024, section 3 (min_p).
    """
    token_ids = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    for start in range(0, len(logits), _ROWS):
        rows = slice(start, start + _ROWS)
        work = _loaded(logits[rows])
        best, best_ids = _best_of(work)
        is_finite = best.isfinite()
        chosen = best_ids.masked_fill(~is_finite, NO_TOKEN)
        drawn = (is_finite & (temperature[rows] > 0)).nonzero()[:, 0]
        if len(drawn):
            if len(drawn) < len(work):
                work, best = work[drawn], best[drawn]
            params = [values[rows][drawn] for values in (temperature, min_p, top_k, top_p, draws)]
            chosen[drawn] = _draw(work, best, logits.shape[1], *params)
        token_ids[rows] = chosen
    return token_ids


def _loaded(logits: Tensor) -> Tensor:
    """A copy in float32 (float64 stays), padded to whole blocks with -inf."""
    num_rows, vocab_size = logits.shape
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    width = math.ceil(vocab_size / _BLOCK) * _BLOCK
    work = torch.empty((num_rows, width), dtype=dtype, device=logits.device)
    work[:, :vocab_size].copy_(logits)
    work[:, vocab_size:] = -torch.inf
    return work


def _best_of(work: Tensor) -> tuple[Tensor, Tensor]:
    """The largest value of each row of whole blocks, and its lowest index: block by block, a third of the time."""
    blocks = work.view(len(work), -1, _BLOCK)
    best, block = blocks.amax(-1).max(-1)
    offset = blocks[torch.arange(len(work), device=work.device), block].argmax(-1)
    return best, block * _BLOCK + offset


def _draw(
    work: Tensor,
    best: Tensor,
    vocab_size: int,
    temperature: Tensor,
    min_p: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    draws: Tensor,
) -> Tensor:
    """Temperature, filters, and one draw per row; `work` is overwritten, `best` is its rows' maxima."""
    work.sub_(best[:, None]).div_(temperature.to(work.dtype)[:, None])
    if (min_p > 0.0).any():
        work.masked_fill_(work < min_p.log().to(work.dtype)[:, None], -torch.inf)
    counts = torch.where(top_k < vocab_size, top_k, 0)
    for position in ((counts > 0) | (top_p < 1.0)).nonzero()[:, 0].tolist():
        row = work[position]
        values = row.cpu().numpy()
        truncate(values, int(counts[position]), float(top_p[position]))
        if row.device.type != "cpu":
            row.copy_(torch.from_numpy(values))
    torch.exp(work, out=work)
    return invert_cdf(work, draws)


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
