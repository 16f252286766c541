"""What ended requests wrote: automata of bounded size, apart for each salt."""

from __future__ import annotations

import itertools
from collections import OrderedDict, deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from quire_speculative.suffix.automaton import SuffixAutomaton
from quire_speculative.suffix.settings import SuffixSettings


class Generation:
    """An automaton, how many outputs it was fed, and a number that no other generation of the pool has."""

    __slots__ = ("automaton", "num_outputs", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.automaton = SuffixAutomaton()
        self.num_outputs = 0


class OutputPool:
    """Earlier outputs, in up to two generations for each salt.

    An automaton cannot forget, so that when the younger generation holds half of what is allowed, the older
    one is dropped and an empty one begun.
    """

    def __init__(self, settings: SuffixSettings) -> None:
        self._max_outputs = settings.suffix_decoding_max_cached_requests // 2
        self._max_tokens = settings.suffix_decoding_max_cached_tokens // 2
        self._max_salts = settings.suffix_decoding_max_cached_salts
        self._generations: OrderedDict[str, tuple[Generation, ...]] = OrderedDict()
        self._waiting: deque[tuple[str, npt.NDArray[np.int32]]] = deque()
        self._num_waiting_tokens = 0
        self._numbers = itertools.count()

    @property
    def num_tokens(self) -> int:
        """Tokens kept, those that wait included."""
        kept = sum(each.automaton.num_tokens for pair in self._generations.values() for each in pair)
        return kept + self._num_waiting_tokens

    def generations(self, salt: str) -> Sequence[Generation]:
        """Those that a request of this salt may look into, the younger one first. To be used, not kept."""
        generations = self._generations.get(salt, ())
        if generations:
            self._generations.move_to_end(salt)
        return generations

    def add(self, salt: str, output: npt.NDArray[np.int32]) -> None:
        """Take an output; `index_waiting` feeds it. Of a long one only the end is kept.

        Args:
            salt: of the request that wrote it.
            output: int32 [n], copied.
        """
        if self._max_outputs == 0 or self._max_tokens < 2 or len(output) < 2:
            return
        self._waiting.append((salt, output[-self._max_tokens :].copy()))
        self._num_waiting_tokens += len(self._waiting[-1][1])
        while self._num_waiting_tokens > self._max_tokens:
            self._num_waiting_tokens -= len(self._waiting.popleft()[1])

    def index_waiting(self, max_tokens: int) -> None:
        """Feed outputs that wait, until this many tokens were fed or more; zero or less: none."""
        while self._waiting and max_tokens > 0:
            salt, output = self._waiting.popleft()
            self._num_waiting_tokens -= len(output)
            max_tokens -= len(output)
            generation = self._room_for(salt, len(output))
            generation.num_outputs += 1
            generation.automaton.start_text()
            generation.automaton.extend(output.tolist())

    def _room_for(self, salt: str, num_tokens: int) -> Generation:
        """The salt's younger generation, begun anew if the output does not fit."""
        generations = self._generations.get(salt, ())
        if not generations or not self._fits(generations[0], num_tokens):
            generations = (Generation(next(self._numbers)), *generations[:1])
        self._generations[salt] = generations
        self._generations.move_to_end(salt)
        while len(self._generations) > self._max_salts:
            self._generations.popitem(last=False)
        return generations[0]

    def _fits(self, generation: Generation, num_tokens: int) -> bool:
        return (
            generation.num_outputs < self._max_outputs
            and generation.automaton.num_tokens + num_tokens <= self._max_tokens
        )

    def clear(self) -> None:
        """Forget everything."""
        self._generations.clear()
        self._waiting.clear()
        self._num_waiting_tokens = 0
