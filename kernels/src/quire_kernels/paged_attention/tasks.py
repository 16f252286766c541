"""How the work of attention is cut into tasks that threads share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_PIECE = 256
"""Tokens of the smallest piece that a context is cut into; shorter ones cost more than they balance."""
PIECES_PER_THREAD = 8
"""About so many tasks for each thread, so that they end at about the same time."""
ALIGNMENT = 16
"""Tokens that the first one of a piece is a multiple of."""
MIN_QUERIES, MAX_QUERIES = 32, 256
"""Tokens of a task of longer rows: more would leave the caches, fewer copy keys and values too often."""
TASKS_PER_THREAD = 4
MIN_USERS, MIN_SHARED, MAX_USERS = 4, 128, 128
"""A beginning of so many tokens is attended once for so many rows and more, up to MAX_USERS in a task."""
SHARED_PIECE = 256
TILE = 32
"""Tokens of a piece of what is shared, and what they are a multiple of."""

Int32Array = NDArray[np.int32]


@dataclass(slots=True, frozen=True)
class SharedPieces:
    """What decode rows have in common.

    Attributes:
        starts: int64 [R]: for each row the tokens that are in pieces, which its own tasks begin after.
        counts: int64 [R]: in how many pieces.
        tasks: [N, 4]: first user, users, first token, last token exclusive.
        users: [M, 2]: a row, and which of its pieces it is.
    """

    starts: NDArray[np.int64]
    counts: NDArray[np.int64]
    tasks: Int32Array
    users: Int32Array


def find_shared(tables: Int32Array, context_lens: Sequence[int], block_size: int) -> SharedPieces | None:
    """What decode rows have in common at the beginning of their contexts: blocks that several tables name.

    Rows that end in the same block, or in one that another row has as its last but one, are drafts of one request; they
    are left alone, since attending what is shared rounds weights to bfloat16.

    Args:
        tables: [R, W], the blocks of R rows of one token.
        context_lens: with that token.
        block_size: tokens of a block.

    Returns:
        Pieces of beginnings that at least MIN_USERS rows share; None where there are none.
    """
    lengths = np.array(context_lens, dtype=np.int64)
    if len(lengths) < MIN_USERS:
        return None
    depth = -(-max(MIN_SHARED, block_size) // block_size) - 1  # a block there names all that comes before it
    long = np.flatnonzero((lengths - 1) // block_size > depth)
    if len(long) < MIN_USERS:
        return None
    order = long[np.argsort(tables[long, depth], kind="stable")]
    bounds = np.flatnonzero(np.diff(tables[order, depth], prepend=-1, append=-1))
    starts, counts = np.zeros_like(lengths), np.zeros_like(lengths)
    tasks: list[tuple[int, int, int, int]] = []
    users: list[Int32Array] = []
    num_users = 0
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        rows = order[first:last]
        if len(rows) >= MIN_USERS:
            rows = _not_drafts(rows, tables, lengths, block_size)
        if len(rows) < MIN_USERS:
            continue
        most = (int(lengths[rows].min()) - 1) // block_size
        is_same = (tables[rows, :most] == tables[rows[0], :most]).all(axis=0)
        size = int(is_same.argmin() if not is_same.all() else most) * block_size // TILE * TILE
        if size < MIN_SHARED:
            continue
        starts[rows], counts[rows] = size, -(-size // SHARED_PIECE)
        for piece in range(int(counts[rows[0]])):
            begin = piece * SHARED_PIECE
            for at in range(0, len(rows), MAX_USERS):
                some = rows[at : at + MAX_USERS]
                tasks.append((num_users, len(some), begin, min(begin + SHARED_PIECE, size)))
                users.append(np.stack([some, np.full_like(some, piece)], axis=1).astype(np.int32))
                num_users += len(some)
    if not tasks:
        return None
    return SharedPieces(starts, counts, np.array(tasks, dtype=np.int32), np.concatenate(users))


def _not_drafts(
    rows: NDArray[np.int64], tables: Int32Array, lengths: NDArray[np.int64], block_size: int
) -> NDArray[np.int64]:
    """Those of the rows that end in a block of their own, and whose last block but one ends no other row."""
    last = (lengths[rows] - 1) // block_size
    ends, before = tables[rows, last], tables[rows, np.maximum(last - 1, 0)]
    _, inverse, counts = np.unique(ends, return_inverse=True, return_counts=True)
    is_next_to = np.isin(ends, before) | np.isin(before, ends)
    kept: NDArray[np.int64] = rows[(counts[inverse] == 1) & ~is_next_to]
    return kept


def cut_contexts(
    context_lens: list[int], threads: int, shared: SharedPieces | None = None
) -> tuple[Int32Array, Int32Array, int]:
    """Cut contexts into pieces of at most about an equal share of the work.

    Args:
        context_lens: of the decode rows.
        threads: that will share them.
        shared: what is attended elsewhere; its users' pieces become the numbers of their partial results.

    Returns:
        tasks int32 [N, 4] (row, first token, last token exclusive, index of the partial result or -1
        where the row is whole; first tokens are multiples of ALIGNMENT), in an order that deals equal
        shares in turn; merges int32 [M, 3] (row, first partial, how many); the number of partial results.
    """
    lengths = np.array(context_lens, dtype=np.int64)
    begins = np.zeros_like(lengths) if shared is None else shared.starts
    lengths = lengths - begins
    piece = int(lengths.sum()) // (threads * PIECES_PER_THREAD) + 1
    piece = max(MIN_PIECE, -(-piece // 64) * 64) if threads > 1 else max(1, int(lengths.max(initial=1)))
    counts = -(-lengths // piece)
    size = np.maximum(-(-lengths // np.maximum(counts, 1)), 1)  # pieces of a row are about equally long
    size = -(-size // ALIGNMENT) * ALIGNMENT
    counts = -(-lengths // size)
    rows = np.repeat(np.arange(len(lengths)), counts)
    starts = np.cumsum(counts) - counts
    index = np.arange(len(rows)) - starts[rows]
    all_counts = counts if shared is None else counts + shared.counts
    partial_counts = np.where(all_counts > 1, all_counts, 0)
    first_partial = np.cumsum(partial_counts) - partial_counts
    first = index * size[rows]
    last = np.minimum(first + size[rows], lengths[rows])
    partial = np.where(partial_counts[rows] > 0, first_partial[rows] + index, -1)
    tasks = np.stack([rows, first + begins[rows], last + begins[rows], partial], axis=1).astype(np.int32)
    order = np.argsort(first - last, kind="stable")
    for start in range(threads, len(order), 2 * threads):  # dealt in turn: every other round backwards
        order[start : start + threads] = order[start : start + threads][::-1]
    tasks = np.ascontiguousarray(tasks[order])
    cut = np.nonzero(partial_counts)[0]
    merges = np.stack([cut, first_partial[cut], partial_counts[cut]], axis=1).astype(np.int32)
    if shared is not None:
        users = shared.users[:, 0]
        shared.users[:, 1] += (first_partial + counts)[users].astype(np.int32)
    return tasks, np.ascontiguousarray(merges), int(partial_counts.sum())


def cut_queries(
    query_lens: Sequence[int], context_lens: Sequence[int], num_decode: int, threads: int
) -> Int32Array:
    """Cut the queries of rows of several tokens into tasks.

    Args:
        query_lens: of all rows.
        context_lens: the same.
        num_decode: rows of one token, which come first and are left out.
        threads: that will share the tasks.

    Returns:
        int32 [N, 4]: row, first token of the step, tokens, position of the first one; the longest work first.
    """
    total = sum(query_lens[num_decode:])
    size = -(-total // (threads * TASKS_PER_THREAD) // MIN_QUERIES) * MIN_QUERIES
    size = min(max(size, MIN_QUERIES), MAX_QUERIES)
    tasks: list[tuple[int, int, int, int]] = []
    token = num_decode
    for row in range(num_decode, len(query_lens)):
        length, position = query_lens[row], context_lens[row] - query_lens[row]
        count = -(-length // size)
        for index in range(count):  # pieces of a row are about equally long
            first, last = length * index // count, length * (index + 1) // count
            tasks.append((row, token + first, last - first, position + first))
        token += length
    tasks.sort(key=lambda task: -task[2] * (task[3] + task[2]))
    return np.array(tasks, dtype=np.int32).reshape(-1, 4)
