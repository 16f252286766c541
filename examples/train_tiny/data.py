"""Mixes the skills into training examples and evaluation sets. All of it is generated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

from example import Example, Turn
from phrasing import forms
from skills_chat import greet, memory, plain
from skills_facts import arithmetic, capital, drill, json_answer
from skills_text import edit, repeat
from skills_words import count, length, reverse, spell

Generator = Callable[[Random, bool, bool], Example]

SYSTEMS = forms(
    """
    You are a helpful assistant. | You are a helpful assistant. | You are a helpful assistant. | You are
    Tiny, a small language model. | Be brief. | Answer the question. | You are a friendly chatbot. | You
    are a helpful, honest and harmless assistant. | Answer shortly and correctly. | Follow the
    instructions. | You are an AI assistant. Help the user. | You are a large language model. | Be
    helpful.
    """
)


def recall(rng: Random, evaluation: bool, unseen: bool) -> Example:
    """The memory skill, with turns of the other skills in between."""

    def small_talk() -> Turn:
        generator = rng.choice((greet, greet, arithmetic, capital, spell))
        return generator(rng, False, False).turns[0]

    return memory(rng, evaluation, unseen, small_talk)


SKILLS: dict[str, tuple[Generator, ...]] = {
    "greet": (greet,),
    "arithmetic": (arithmetic,),
    "capital": (capital,),
    "spell": (spell,),
    "reverse": (reverse,),
    "count": (count, length),
    "repeat": (repeat,),
    "edit": (edit,),
    "json": (json_answer,),
    "memory": (recall,),
}

WEIGHTS: dict[str, float] = dict(
    greet=4,
    arithmetic=24,
    capital=8,
    spell=6,
    reverse=16,
    count=12,
    repeat=6,
    edit=12,
    json=9,
    memory=7,
    plain=3,
)
LATE_WEIGHTS: dict[str, float] = {**WEIGHTS, "arithmetic": 20, "drill": 60, "edit": 22}
PLAIN: dict[str, Callable[[Random], Example]] = {"plain": plain, "drill": drill}


def draw(rng: Random, skill: str, evaluation: bool, unseen: bool = False) -> Example:
    """Draws an example of a skill from the training or the evaluation side of the split."""
    return rng.choice(SKILLS[skill])(rng, evaluation, unseen)


def _with_system(rng: Random, example: Example) -> Example:
    return replace(example, system=rng.choice(SYSTEMS)) if rng.random() < 0.35 else example


def _draw_training(rng: Random, late: bool) -> Example:
    weights = LATE_WEIGHTS if late else WEIGHTS
    skill = rng.choices(tuple(weights), tuple(weights.values()))[0]
    return PLAIN[skill](rng) if skill in PLAIN else draw(rng, skill, evaluation=False)


def training_example(rng: Random, late: bool = False) -> Example:
    """Draws a training example: a plain text, one request, or a conversation that mixes several.

    Args:
        rng: Source of randomness.
        late: Whether to draw the hard skills more often, as the later part of the training does.
    """
    example = _draw_training(rng, late)
    if example.text:
        return example
    if rng.random() < 0.45:
        others = [_draw_training(rng, late) for _ in range(rng.choice((1, 1, 2, 2, 3, 4)))]
        turns = tuple(turn for other in others for turn in other.turns)
        example = replace(example, turns=turns + example.turns)
    return _with_system(rng, example)


def evaluation_set(skill: str, number: int, unseen: bool, seed: int) -> list[Example]:
    """Draws held-out examples of a skill.

    Args:
        skill: Name of the skill.
        number: How many examples.
        unseen: Whether to use the held-out phrasings too.
        seed: Seed of the draw.
    """
    rng = Random(f"{seed}-{skill}-{unseen}")
    return [_with_system(rng, draw(rng, skill, True, unseen)) for _ in range(number)]
