"""Philox against the published vectors, and the draws made of it."""

import numpy as np
import pytest

from quire.execution.philox import Purpose, derive_seed, philox4x32, uniform

# Random123 tests/kat_vectors, lines "philox4x32 10": counter, key, expected.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def test_philox_gives_the_published_vectors_in_one_batch():
    counters = np.array([words(counter) for counter, _, _ in KNOWN_ANSWERS], dtype=np.uint64)
    keys = np.array([words(key) for _, key, _ in KNOWN_ANSWERS], dtype=np.uint64)
    assert philox4x32(counters, keys).tolist() == [words(expected) for _, _, expected in KNOWN_ANSWERS]


def test_a_draw_depends_on_its_own_row_only():
    seeds, positions = [5, -7, 2**63 - 1, -(2**63)], [0, 3, 10**6, 1]
    batch = uniform(seeds, positions, Purpose.TOKEN)
    alone = [uniform([s], [p], Purpose.TOKEN)[0] for s, p in zip(seeds, positions, strict=True)]
    assert batch.tolist() == alone


def test_a_draw_is_53_bits_of_the_first_two_words():
    first, second = words(KNOWN_ANSWERS[0][2])[:2]
    assert uniform([0], [0], Purpose.TOKEN)[0] == ((first >> 5) * 2**26 + (second >> 6)) / 2**53


def test_draws_are_uniform_and_differ_by_seed_position_and_purpose():
    draws = uniform(np.arange(20000), np.zeros(20000, dtype=np.int64), Purpose.TOKEN)
    assert ((draws >= 0) & (draws < 1)).all()
    histogram = np.histogram(draws, bins=20, range=(0, 1))[0]
    assert ((histogram - 1000) ** 2 / 1000).sum() < 50  # chi squared, 19 degrees of freedom: p = 1e-4
    along = uniform(np.full(20000, 3), np.arange(20000), Purpose.TOKEN)
    assert abs(np.corrcoef(along[:-1], along[1:])[0, 1]) < 0.03
    assert len(set(along.tolist())) == 20000
    assert uniform([3], [0], Purpose.TOKEN)[0] != uniform([3], [0], Purpose.CHOICE_SEED)[0]


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63)])
def test_choice_seeds_are_int64_and_choice_zero_keeps_the_seed(seed):
    seeds = [derive_seed(seed, index) for index in range(50)]
    assert seeds[0] == seed
    assert len(set(seeds)) == 50
    assert all(-(2**63) <= value < 2**63 for value in seeds)


def test_choices_of_adjacent_seeds_do_not_coincide():
    seeds = [derive_seed(seed, index) for seed in range(100) for index in range(16)]
    assert len(set(seeds)) == len(seeds)
