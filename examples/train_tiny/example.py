"""The unit of training and evaluation data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Turn:
    """One question and its only right answer."""

    user: str
    answer: str


@dataclass(frozen=True)
class Example:
    """A conversation, or a plain text.

    Attributes:
        skill: Name of the skill that the last turn exercises.
        turns: The conversation; empty for a plain text.
        system: The system prompt, if there is one.
        text: The plain text, if there are no turns.
    """

    skill: str
    turns: tuple[Turn, ...] = ()
    system: str | None = None
    text: str = ""


def single(skill: str, user: str, answer: str) -> Example:
    """Builds a conversation of one turn."""
    return Example(skill, (Turn(user, answer),))
