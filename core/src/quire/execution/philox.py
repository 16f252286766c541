"""Counter-based random numbers: each draw is a pure function of (seed, position, purpose)."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import numpy.typing as npt

UInt64Array = npt.NDArray[np.uint64]

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW_32 = np.uint64(0xFFFFFFFF)
_SHIFT_32 = np.uint64(32)


class Purpose(IntEnum):
    """What a draw is for; draws for different purposes are independent. Values are never reused."""

    TOKEN = 0
    CHOICE_SEED = 1


def philox4x32(counters: UInt64Array, keys: UInt64Array) -> UInt64Array:
    """Philox4x32-10 of each row.

    Args:
        counters: uint64 [R, 4], each entry below 2**32.
        keys: uint64 [R, 2], likewise.

    Returns:
        uint64 [R, 4], each entry below 2**32.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3.
    """
    c0, c1, c2, c3 = (counters[:, i] for i in range(4))
    k0, k1 = keys[:, 0], keys[:, 1]
    for _ in range(_ROUNDS):
        product_0 = c0 * _MULTIPLIERS[0]
        product_1 = c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product_1 >> _SHIFT_32) ^ c1 ^ k0,
            product_1 & _LOW_32,
            (product_0 >> _SHIFT_32) ^ c3 ^ k1,
            product_0 & _LOW_32,
        )
        k0 = (k0 + _WEYL[0]) & _LOW_32
        k1 = (k1 + _WEYL[1]) & _LOW_32
    return np.stack((c0, c1, c2, c3), axis=1)


def uniform(
    seeds: npt.NDArray[np.int64] | Sequence[int],
    positions: npt.NDArray[np.int64] | Sequence[int],
    purpose: Purpose,
) -> npt.NDArray[np.float64]:
    """One draw per row, uniform in [0, 1) with 53 random bits.

    Args:
        seeds: int64 [R].
        positions: int64 [R], the output position that each draw is for.
        purpose: what the draws are for.
    """
    words = _draw(np.asarray(seeds, dtype=np.int64), np.asarray(positions, dtype=np.int64), purpose)
    high = (words[:, 0] >> np.uint64(5)).astype(np.float64)
    low = (words[:, 1] >> np.uint64(6)).astype(np.float64)
    draws: npt.NDArray[np.float64] = (high * 2.0**26 + low) * 2.0**-53
    return draws


def derive_seed(seed: int, index: int) -> int:
    """The int64 seed of choice `index` of a request: the seed itself for 0, else a hash of both.

    So choice 0 of n equals a request with n=1, and the choices of neighbouring seeds do not coincide.
    """
    if index == 0:
        return seed
    words = _draw(np.array([seed], dtype=np.int64), np.array([index], dtype=np.int64), Purpose.CHOICE_SEED)
    value = int(words[0, 0]) | int(words[0, 1]) << 32
    return value - 2**64 if value >= 2**63 else value


def _draw(seeds: npt.NDArray[np.int64], positions: npt.NDArray[np.int64], purpose: Purpose) -> UInt64Array:
    key, counter = seeds.view(np.uint64), positions.view(np.uint64)
    zeros = np.zeros_like(counter)
    counters = np.stack((counter & _LOW_32, counter >> _SHIFT_32, zeros + np.uint64(purpose), zeros), axis=1)
    return philox4x32(counters, np.stack((key & _LOW_32, key >> _SHIFT_32), axis=1))
