"""What is asked of a server or an engine in a benchmark, and when."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quire.api.errors import ConfigError

MIN_LENGTH = 4
MAX_LENGTH = 1024
FIRST_TOKEN_ID = 10
"""Below it vocabularies keep their special tokens."""


@dataclass(slots=True, frozen=True)
class Ask:
    """One request of a workload.

    Attributes:
        prompt: text, or token ids.
        timestamp_s: when a trace wants it sent; None leaves that to the rate.
    """

    prompt: str | list[int]
    num_output_tokens: int
    timestamp_s: float | None = None


@dataclass(slots=True, frozen=True)
class Lengths:
    """Of prompts and outputs, in tokens.

    Attributes:
        range_ratio: each length is drawn from [x * (1 - ratio), x * (1 + ratio)].
        prefix: tokens that all prompts begin with.
    """

    num_input: int
    num_output: int
    range_ratio: float = 0.0
    prefix: int = 0


def random_workload(rng: random.Random, count: int, lengths: Lengths, vocab_size: int) -> list[Ask]:
    """Prompts of random token ids."""
    prefix = random_ids(rng, lengths.prefix, vocab_size)
    asks = []
    for _ in range(count):
        num_input = _drawn(rng, lengths.num_input, lengths.range_ratio)
        num_output = _drawn(rng, lengths.num_output, lengths.range_ratio)
        asks.append(Ask(prefix + random_ids(rng, num_input, vocab_size), num_output))
    return asks


def random_ids(rng: random.Random, count: int, vocab_size: int) -> list[int]:
    """Token ids of no meaning; special ones are left out where the vocabulary is large enough."""
    first = FIRST_TOKEN_ID if vocab_size > 2 * FIRST_TOKEN_ID else 0
    return [rng.randrange(first, vocab_size) for _ in range(count)]


def sharegpt_workload(rng: random.Random, count: int, path: Path, num_output: int | None) -> list[Ask]:
    """First turns of conversations: a list of {"conversations": [{"value"}, {"value"}]}.

    The output's length is `num_output`, else that of the second turn, by 4 characters a token.
    """
    try:
        entries = json.loads(_read(path))
        turns = [[turn["value"] for turn in entry["conversations"][:2]] for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not in ShareGPT's form ({type(error).__name__}: {error})") from None
    asks = [
        Ask(pair[0], num_output or max(MIN_LENGTH, min(MAX_LENGTH, len(pair[1]) // 4)))
        for pair in turns
        if len(pair) == 2 and pair[0].strip() and len(pair[0]) // 4 <= MAX_LENGTH
    ]
    if not asks:
        raise ConfigError(f"{path} holds no conversation of two turns")
    rng.shuffle(asks)
    return [asks[index % len(asks)] for index in range(count)]


def fixed_workload(count: int, path: Path, num_output: int) -> list[Ask]:
    """The lines of a file, over and over."""
    lines = [line for line in _read(path).splitlines() if line.strip()]
    if not lines:
        raise ConfigError(f"{path} holds no line")
    return [Ask(lines[index % len(lines)], num_output) for index in range(count)]


def trace_workload(rng: random.Random, count: int | None, path: Path, vocab_size: int) -> list[Ask]:
    """Requests of a trace: JSON lines with timestamp (seconds), input_length and output_length."""
    asks = []
    for number, line in enumerate(_read(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            timestamp, num_input = float(entry["timestamp"]), int(entry["input_length"])
            num_output = int(entry["output_length"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}:{number}: {type(error).__name__}: {error}") from None
        if num_input < 1 or num_output < 1 or not math.isfinite(timestamp):
            raise ConfigError(f"{path}:{number}: lengths must be above 0, the timestamp finite")
        asks.append(Ask(random_ids(rng, num_input, vocab_size), num_output, timestamp))
    if not asks:
        raise ConfigError(f"{path} holds no request")
    asks.sort(key=lambda ask: ask.timestamp_s or 0.0)
    return asks[:count]


def send_times(rng: random.Random, asks: Sequence[Ask], rate: float, burstiness: float) -> list[float]:
    """When to send each request, in seconds from the start.

    A trace's timestamps count. Otherwise gaps are drawn from a gamma distribution of mean 1/rate and
    shape `burstiness`: 1 is a Poisson process, less comes in bursts, more is evener. At a rate of
    infinity all are sent at once.
    """
    first = asks[0].timestamp_s if asks else None
    if first is not None:
        return [(ask.timestamp_s or 0.0) - first for ask in asks]
    times = []
    now = 0.0
    for _ in asks:
        times.append(now)
        if math.isfinite(rate):
            now += rng.gammavariate(burstiness, 1 / (rate * burstiness))
    return times


def _drawn(rng: random.Random, length: int, ratio: float) -> int:
    return max(1, rng.randint(math.floor(length * (1 - ratio)), math.ceil(length * (1 + ratio))))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
