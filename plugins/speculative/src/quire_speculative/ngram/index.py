"""Where each n-gram of a growing sequence occurred: one dictionary entry per token, no rescans."""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt

MAX_CANDIDATES = 16
"""Occurrences that are compared, the latest first; more find nothing better in measurements."""


class NgramIndex:
    """One request's tokens, chained by their n-grams of the shortest length.

    An n-gram is named by the position after it. `_latest` has each one's latest occurrence by its bytes, so that
    equal keys are equal tokens, and `_previous` the occurrence before that, 0 where there is none.
    """

    __slots__ = ("_latest", "_longest", "_previous", "_shortest", "num_tokens")

    def __init__(self, shortest: int, longest: int) -> None:
        """Nothing indexed yet; lengths of n-grams as in `NgramSettings`."""
        self.num_tokens = 0
        self._shortest = shortest
        self._longest = longest
        self._latest: dict[bytes, int] = {}
        self._previous = array("i", bytes(4 * shortest))

    def extend(self, token_ids: npt.NDArray[np.int32]) -> None:
        """Index what was added to the sequence since the last call. `token_ids`: [n], all of it."""
        shortest, latest, previous = self._shortest, self._latest, self._previous
        first = max(0, self.num_tokens - shortest + 1)
        self.num_tokens = len(token_ids)
        data = token_ids[first:].tobytes()
        width = 4 * shortest
        for end in range(first + shortest, self.num_tokens + 1):
            stop = 4 * (end - first)
            key = data[stop - width : stop]
            previous.append(latest.get(key, 0))
            latest[key] = end

    def find(self, token_ids: npt.NDArray[np.int32]) -> int | None:
        """The position after an earlier occurrence of the tokens at the sequence's end.

        Of the `MAX_CANDIDATES` latest occurrences of the shortest n-gram it is the one that has the most tokens
        before it in common with the end, up to the longest n-gram; of equal ones it is the latest.

        Args:
            token_ids: [n], what is indexed.
        """
        if self.num_tokens <= self._shortest:
            return None
        tokens = token_ids.data
        end = self._previous[-1]
        found, common = None, 0
        for _ in range(MAX_CANDIDATES):
            if not end:
                break
            length, limit = self._shortest, min(self._longest, end)
            while length < limit and tokens[end - 1 - length] == tokens[-1 - length]:
                length += 1
            if length > common:
                found, common = end, length
                if length == self._longest:
                    break
            end = self._previous[end]
        return found
