"""The workloads: token ids and output lengths. Lengths are fixed; ids differ from repeat to repeat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LENGTH_SEED = 20260
FIRST_ID = 300


@dataclass(slots=True, frozen=True)
class Job:
    """One request: prompt ids, and how many tokens it generates (greedy, past any EOS)."""

    prompt: list[int]
    num_outputs: int


def clipped_lognormal(
    rng: np.random.Generator, count: int, mean: float, sigma: float, low: int = 16, high: int = 512
) -> list[int]:
    """Lengths in [low, high] whose mean after clipping is `mean`."""
    raw = rng.lognormal(0.0, sigma, size=count)
    below, above = 0.0, 1e6
    for _ in range(80):
        scale = (below + above) / 2
        if np.clip(raw * scale, low, high).mean() < mean:
            below = scale
        else:
            above = scale
    lengths = np.clip(np.rint(raw * above), low, high)
    return [int(length) for length in lengths]


def random_ids(rng: np.random.Generator, count: int, vocab: int) -> list[int]:
    """Token ids without the special ones at the start of the vocabulary."""
    return [int(token) for token in rng.integers(FIRST_ID, vocab, size=count)]


def sharegpt_like(vocab: int, repeat: int, count: int = 64) -> list[Job]:
    """W1: requests that arrive together, of lengths as in chat logs."""
    lengths = np.random.default_rng(LENGTH_SEED)
    prompts = clipped_lognormal(lengths, count, 220, 1.0)
    outputs = clipped_lognormal(lengths, count, 180, 0.9)
    ids = np.random.default_rng(1_000 + repeat)
    pairs = zip(prompts, outputs, strict=True)
    return [Job(random_ids(ids, prompt, vocab), output) for prompt, output in pairs]


def single(vocab: int, repeat: int, num_prompt: int, num_outputs: int) -> Job:
    """W2 and W4: one request."""
    return Job(random_ids(np.random.default_rng(2_000 + repeat), num_prompt, vocab), num_outputs)


def shared_prefix(
    vocab: int, repeat: int, count: int = 32, prefix: int = 512, own: int = 32, num_outputs: int = 32
) -> list[Job]:
    """W3: requests submitted together that begin with the same tokens."""
    rng = np.random.default_rng(3_000 + repeat)
    common = random_ids(rng, prefix, vocab)
    return [Job(common + random_ids(rng, own, vocab), num_outputs) for _ in range(count)]
