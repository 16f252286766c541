"""What a suffix automaton knows, by looking through all texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class NaiveTexts:
    """Texts in the order in which they were fed."""

    texts: list[list[int]]

    def continuations(self, context: Sequence[int]) -> dict[int, int]:
        """How often each token followed the context, in the order of their first occurrences."""
        counts: dict[int, int] = {}
        size = len(context)
        for text in self.texts:
            for start in range(len(text) - size):
                if text[start : start + size] == list(context):
                    token = text[start + size]
                    counts[token] = counts.get(token, 0) + 1
        return counts

    def occurs(self, tokens: Sequence[int]) -> int:
        size = len(tokens)
        return sum(
            text[start : start + size] == list(tokens)
            for text in self.texts
            for start in range(len(text) - size + 1)
        )

    def longest_known_suffix(self, tokens: Sequence[int], at_least: int = 1) -> int:
        """The length of the longest suffix of `tokens` that occurs so often."""
        return max(
            size for size in range(len(tokens) + 1) if self.occurs(tokens[len(tokens) - size :]) >= at_least
        )

    def guess(
        self, context: Sequence[int], max_tokens: int, min_probability: float
    ) -> tuple[list[int], float]:
        """The draft after a context, and how many of its tokens will be accepted by the frequencies."""
        context, draft = list(context), []
        probability, expected = 1.0, 0.0
        while context and len(draft) < max_tokens:
            counts = self.continuations(context)
            if not counts:
                context = context[1:]
                continue
            token = max(reversed(counts), key=lambda each: counts[each])
            probability *= counts[token] / sum(counts.values())
            if probability < min_probability:
                break
            draft.append(token)
            context.append(token)
            expected += probability
        return draft, expected
