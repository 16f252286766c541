"""Mixes the skills into training examples and evaluation sets. All of it is generated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

from example import Example, Turn
from phrasing import forms
from skills_chat import greet, memory, plain
from skills_copy import short_edit, short_repeat
from skills_facts import arithmetic, capital, drill, json_answer
from skills_late import loose_edit, loose_repeat, one_token_words
from skills_more import capital_more, count_more, greet_more, json_drill, json_more
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
SECOND = {**WEIGHTS, "arithmetic": 20, "drill": 60, "edit": 22}
THIRD = {
    **WEIGHTS,
    "arithmetic": 26,
    "drill": 20,
    "count": 14,
    "edit": 12,
    "loose_repeat": 16,
    "loose_edit": 36,
}
FOURTH: dict[str, float] = dict(
    greet=3,
    arithmetic=16,
    capital=4,
    spell=4,
    reverse=10,
    count=8,
    repeat=5,
    edit=12,
    json=7,
    memory=5,
    plain=1,
    drill=6,
    loose_repeat=5,
    loose_edit=8,
    one_token=5,
    short_repeat=12,
    short_edit=64,
    json_drill=10,
    json_more=12,
    capital_more=8,
    greet_more=6,
    count_more=5,
)
STAGES: tuple[dict[str, float], ...] = (WEIGHTS, SECOND, {**THIRD, "one_token": 8}, FOURTH)
TRAINING_ONLY: dict[str, Callable[[Random], Example]] = {
    "plain": plain,
    "drill": drill,
    "loose_repeat": loose_repeat,
    "loose_edit": loose_edit,
    "one_token": one_token_words,
    "short_repeat": short_repeat,
    "short_edit": short_edit,
    "json_drill": json_drill,
    "json_more": json_more,
    "capital_more": capital_more,
    "greet_more": greet_more,
    "count_more": count_more,
}


def draw(rng: Random, skill: str, evaluation: bool, unseen: bool = False) -> Example:
    """Draws an example of a skill from the training or the evaluation side of the split."""
    return rng.choice(SKILLS[skill])(rng, evaluation, unseen)


def _with_system(rng: Random, example: Example) -> Example:
    return replace(example, system=rng.choice(SYSTEMS)) if rng.random() < 0.35 else example


def _draw_training(rng: Random, stage: int) -> Example:
    weights = STAGES[stage]
    skill = rng.choices(tuple(weights), tuple(weights.values()))[0]
    return TRAINING_ONLY[skill](rng) if skill in TRAINING_ONLY else draw(rng, skill, evaluation=False)


def training_example(rng: Random, stage: int = 0) -> Example:
    """Draws a training example: a plain text, one request, or a conversation that mixes several.

    Args:
        rng: Source of randomness.
        stage: Stage of the training; the later ones draw the hard skills more often.
    """
    example = _draw_training(rng, stage)
    if example.text:
        return example
    if rng.random() < 0.45:
        others = [_draw_training(rng, stage) for _ in range(rng.choice((1, 1, 2, 2, 3, 4)))]
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
