"""Turns a few core phrasings of a request into many, the way different people would type it."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

OPENERS = (
    "please ",
    "can you ",
    "could you ",
    "could you please ",
    "can you please ",
    "would you ",
    "now ",
    "ok, ",
    "hey, ",
    "hi, ",
    "hello! ",
    "tiny, ",
    "i want you to ",
    "i would like you to ",
    "i need you to ",
    "your task: ",
    "task: ",
    "now please ",
    "so, ",
    "then ",
    "next, ",
    "good. ",
    "thanks. ",
)
CLOSERS = (" please", ", please", " for me", " thanks", ", thank you", " now", " for me, please")
QUESTION_OPENERS = (
    "tell me, ",
    "please tell me, ",
    "hey, ",
    "hi, ",
    "hello, ",
    "ok, ",
    "so ",
    "and ",
    "quick question: ",
    "question: ",
    "i wonder, ",
    "excuse me, ",
    "do you know, ",
    "now, ",
    "tiny, ",
    "thanks. ",
    "please answer: ",
)
QUOTES = (('"', '"'), ("'", "'"), ("“", "”"), ("`", "`"), ("‘", "’"), ("*", "*"))


def forms(table: str) -> tuple[str, ...]:
    """Reads a table of phrasings: a bar ends an entry, a pilcrow stands for a line break."""
    return tuple(" ".join(entry.split()).replace("¶", "\n") for entry in table.split("|"))


@dataclass(frozen=True)
class Phrasings:
    """Core phrasings of one kind of request.

    Attributes:
        orders: Imperatives without final punctuation, such as "spell {w}".
        questions: Questions or fragments without final punctuation.
        statements: Sentences that tell something, without final punctuation.
        unseen: Phrasings, complete, that appear in the evaluation only.
    """

    orders: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    statements: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()


def quoted(rng: Random, word: str, share: float = 0.45) -> str:
    """Puts quotes around a word, some of the time."""
    if rng.random() > share:
        return word
    left, right = QUOTES[0] if rng.random() < 0.6 else rng.choice(QUOTES)
    return left + word + right


def _sentence_case(text: str) -> str:
    return text[:1].upper() + text[1:]


def _order(rng: Random, text: str) -> tuple[str, str]:
    if rng.random() < 0.35 and not text.startswith("{"):
        text = rng.choice(OPENERS) + text
    if rng.random() < 0.12 and not text.endswith(("}", ":", '"')):
        text += rng.choice(CLOSERS)
    return text, "??." if text.startswith(("can ", "could ", "would ")) else "...!"


def _template(rng: Random, phrasings: Phrasings) -> str:
    kind = rng.choices("oqs", (len(phrasings.orders), len(phrasings.questions), len(phrasings.statements)))[0]
    if kind == "o":
        text, ends = _order(rng, rng.choice(phrasings.orders))
    elif kind == "q":
        text, ends = rng.choice(phrasings.questions), "????."
        if rng.random() < 0.25:
            text = rng.choice(QUESTION_OPENERS) + text
    else:
        text, ends = rng.choice(phrasings.statements), "...!"
    if rng.random() < 0.72:
        text = _sentence_case(text)
    if text.endswith((":", "{s}", "{p}", '"')) or "\n" in text:
        return text
    return text + (rng.choice(ends) if rng.random() < 0.75 else "")


def phrase(rng: Random, phrasings: Phrasings, unseen: bool, **slots: object) -> str:
    """Draws a phrasing and fills its slots."""
    template = rng.choice(phrasings.unseen) if unseen else _template(rng, phrasings)
    if not unseen and rng.random() < 0.04:
        template = template.upper().replace("?", rng.choice(("?", "??")))
        slots = {**slots, **{key.upper(): value for key, value in slots.items()}}
    return template.format(**slots)
