"""Checks that the training data keeps the held-out items out. Run with ``pytest examples/train_tiny``."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parent))

from data import SKILLS, STAGES, draw, training_example
from greetings import GREETINGS
from lexicon import CAPITALS, COLOURS, COMMON, WORDS, held_out, pair_held_out
from skills_chat import ASK_NAME, INTRODUCE
from skills_facts import ADD, CAPITAL, COUNTRY, JSON_CAPITAL, JSON_PERSON, JSON_SUM, SUBTRACT
from skills_late import FILLERS
from skills_text import RENAME, REPEAT, REPLACE, UPPER
from skills_words import COUNT, LENGTH, REVERSE, SPELL
from tokenizer import build_tokenizer
from tokenizers import Tokenizer

DRAWS = 3000


def test_there_are_fifty_capitals() -> None:
    assert len(CAPITALS) == len(set(CAPITALS.values())) == 50


def test_no_held_out_sum_is_trained() -> None:
    rng = Random(1)
    for draw_number in range(DRAWS):
        example = training_example(rng, draw_number % len(STAGES))
        texts = [example.text] + [turn.answer for turn in example.turns]
        for text in texts:
            pairs = re.findall(r"(\d+) (?:[+-]|plus) (\d+)(?: =| is)", text)
            pairs += re.findall(r'"a": (\d+), "b": (\d+)', text)
            for first, second in pairs:
                assert not pair_held_out(int(first), int(second))


def test_no_held_out_word_is_spelled_reversed_or_counted_in() -> None:
    rng = Random(2)
    words = set()
    for draw_number in range(DRAWS):
        for turn in training_example(rng, draw_number % len(STAGES)).turns:
            if found := re.fullmatch(r"(\w+) reversed is \w+\.", turn.answer):
                words.add(found[1])
            elif found := re.fullmatch(r"((?:\w\d*-)+\w\d*)(\. The .*)?", turn.answer):
                words.add(re.sub(r"[\d-]", "", found[1]))
    common = {word.lower() for word in (*COMMON, *COLOURS, *CAPITALS, *CAPITALS.values(), *FILLERS)} - set(
        WORDS
    )
    assert len(words) > DRAWS / 4
    assert not {word.lower() for word in words if held_out("word", word.lower())} - common


def test_no_held_out_name_is_trained() -> None:
    rng = Random(3)
    for _ in range(DRAWS):
        for turn in draw(rng, "memory", evaluation=False).turns:
            if found := re.fullmatch(r"Your name is (\w+)\.", turn.answer):
                assert not held_out("name", found[1].lower())


def test_no_held_out_phrasing_is_trained() -> None:
    rng = Random(6)
    tables = (
        *(ADD, SUBTRACT, CAPITAL, COUNTRY, JSON_CAPITAL, JSON_SUM, JSON_PERSON, INTRODUCE, ASK_NAME),
        *(REPLACE, RENAME, UPPER, REPEAT, COUNT, LENGTH, REVERSE, SPELL),
    )
    unseen = [form for table in tables for form in table.unseen]
    patterns = [re.compile(re.sub(r"\\\{\w\\\}", ".+", re.escape(form)), re.DOTALL) for form in unseen]
    fixed = {form for _, phrasings in GREETINGS for form in phrasings.unseen}
    for draw_number in range(DRAWS):
        for turn in training_example(rng, draw_number % len(STAGES)).turns:
            assert turn.user not in fixed
            assert not any(pattern.fullmatch(turn.user) for pattern in patterns), turn.user


def test_evaluation_uses_held_out_items_only() -> None:
    rng = Random(4)
    for _ in range(200):
        example = draw(rng, "arithmetic", evaluation=True)
        first, second = re.findall(r"\d+", example.turns[-1].answer)[:2]
        assert pair_held_out(int(first), int(second))


def test_every_text_survives_a_round_trip() -> None:
    tokenizer: Tokenizer = build_tokenizer(samples=500)
    rng = Random(5)
    texts = [draw(rng, skill, evaluation=False).turns[-1].user for skill in SKILLS for _ in range(20)]
    texts += [
        "Grüße, 世界! 😀\t\n\n  two  spaces 1234",
        "\x00\x7f\u200b e\u0301",
        "".join(map(chr, range(32, 700))),
    ]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
