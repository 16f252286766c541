"""Log-probabilities of the model's own logits: before bias, penalties and temperature."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire.api.errors import NumericalError
from quire.api.step import TokenLogprobs
from quire.execution.progress import PROGRESS

NOT_FINITE = "logits are not finite"
FloatArray = npt.NDArray[np.floating]

_CHUNK_ROWS = 16


def token_logprobs(logits: Tensor, token_ids: Sequence[int], num_top: Sequence[int]) -> list[TokenLogprobs]:
    """Log-probability and rank of one token per row, and the row's likeliest tokens.

    Ties are ordered by token id, lowest first, so a token's rank is its place among all tokens. The
    work is on the host, `_CHUNK_ROWS` rows at a time: [L, V] is never materialised in float32.

    Args:
        logits: [L, V], any floating dtype and device; not changed.
        token_ids: L tokens.
        num_top: per row, how many of the likeliest; -1 is the whole vocabulary.

    Raises:
        NumericalError: a row holds NaN or +inf, or nothing but -inf.
    """
    results: list[TokenLogprobs] = []
    for start in range(0, len(token_ids), _CHUNK_ROWS):
        stop = min(start + _CHUNK_ROWS, len(token_ids))
        rows = logits[start:stop]
        rows = rows if rows.dtype == torch.float64 else rows.float()
        normalizers = rows.logsumexp(-1).tolist()
        values = rows.cpu().numpy()
        for offset, normalizer in enumerate(normalizers):
            if not np.isfinite(normalizer):
                raise NumericalError(NOT_FINITE)
            index = start + offset
            results.append(_row_logprobs(values[offset], normalizer, token_ids[index], num_top[index]))
            PROGRESS.count += 1
    return results


def prompt_logprobs(
    compute_logits: Callable[[int, int], Tensor],
    token_ids: Sequence[int],
    num_top: int,
    chunk_rows: int = _CHUNK_ROWS,
) -> Iterator[TokenLogprobs]:
    """Log-probabilities of a prompt chunk's next tokens, a few rows at a time.

    Args:
        compute_logits: called with (start, stop), gives the logits [stop - start, V] of those rows.
        token_ids: for each row the prompt token that follows it.
        num_top: how many of the likeliest; -1 is the whole vocabulary.
        chunk_rows: rows per call.

    Raises:
        NumericalError: as `token_logprobs`.
    """
    for start in range(0, len(token_ids), chunk_rows):
        ids = token_ids[start : start + chunk_rows]
        yield from token_logprobs(compute_logits(start, start + len(ids)), ids, [num_top] * len(ids))


def _row_logprobs(row: FloatArray, normalizer: float, token_id: int, num_top: int) -> TokenLogprobs:
    value = row[token_id]
    rank = 1 + int(np.count_nonzero(row > value)) + int(np.count_nonzero(row[:token_id] == value))
    top_ids = likeliest(row, num_top)
    return TokenLogprobs(
        token_id=token_id,
        logprob=float(value) - normalizer,
        rank=rank,
        top_ids=top_ids.tolist(),
        top_logprobs=(row[top_ids].astype(np.float64) - normalizer).tolist(),
    )


def likeliest(row: FloatArray, count: int) -> npt.NDArray[np.int64]:
    """Ids of the `count` largest values (-1: all), largest first, equal ones by id."""
    size = len(row)
    if count < 0 or count >= size:
        return np.argsort(-row, kind="stable").astype(np.int64)
    if count == 0:
        return np.empty(0, dtype=np.int64)
    threshold = np.partition(row, size - count)[size - count]
    candidates = np.flatnonzero(row >= threshold)
    order = np.argsort(-row[candidates], kind="stable")[:count]
    return candidates[order].astype(np.int64)
