"""Requests for the fourth stage: sums as JSON, capitals, greetings and counts asked for in further ways."""

from __future__ import annotations

import json
from random import Random

from example import Example, single
from greetings import ABILITIES, HELP
from lexicon import CAPITALS, some_word
from phrasing import Phrasings, forms, phrase, quoted
from skills_facts import CAPITAL, COUNTRY, JSON_PERSON, JSON_SUM, operands, person
from skills_words import COUNT, LENGTH, count_answer, length_answer

CAPITAL_MORE = Phrasings(
    orders=CAPITAL.orders + forms("look up the capital of {c} | the country is {c}, name the capital"),
    questions=CAPITAL.questions
    + forms(
        """
        what do they call the capital of {c} | {c}, capital | {c} - capital | country: {c}. Capital | I need the
        capital of {c} | the country is {c}. What is the capital | for {c}, what is the capital city | what about the
        capital of {c} | how is the capital of {c} called | I forgot the capital of {c} | which town is the capital of
        {c} | and in {c}, what is the capital
        """
    ),
)
COUNTRY_MORE = Phrasings(
    orders=COUNTRY.orders
    + forms("look up the country with the capital {t} | the capital is {t}, name the country"),
    questions=COUNTRY.questions
    + forms(
        """
        {t} is whose capital | I need the country with the capital {t} | capital: {t}. Country | the capital is {t}.
        What is the country | which country is governed from {t} | {t} is a capital. Of which country | for which
        country is {t} the capital | what land has {t} as its capital | I know that {t} is a capital, of which country
        """
    ),
)
JSON_SUM_MORE = Phrasings(
    orders=JSON_SUM.orders
    + forms("JSON: {a} + {b} | use JSON and add {a} and {b} | in JSON, add {a} to {b}"),
    questions=JSON_SUM.questions
    + forms("in JSON, how much is {a} + {b} | {a} + {b}, JSON | sum of {a} and {b}, JSON"),
)
JSON_PERSON_MORE = Phrasings(
    orders=JSON_PERSON.orders
    + forms(
        "{s} Answer in JSON | {s}¶write it as JSON | {s} Put it into JSON | {s} -> JSON | {s}¶¶as JSON, please"
    )
)
COUNT_MORE = Phrasings(
    orders=COUNT.orders
    + forms(
        """
        take {w} and count the {c} | the word is {w}, count the letter {c} | word: {w}, letter: {c}, count | go through
        {w} and count {c} | spell {w} and count the {c}
        """
    ),
    questions=COUNT.questions
    + forms(
        """
        {w}: how many {c} | {w} has how many {c} | {c} is in {w} how many times | the word is {w}. How many {c} are in
        it | how many {c} do you see in {w} | of {c}, how many are in {w} | in {w}, what is the number of {c} | {w} has
        {c} how often | how many {c} do I need for {w}
        """
    ),
)
LENGTH_MORE = Phrasings(
    orders=LENGTH.orders + forms("spell {w} and count the letters | the word is {w}, count its letters"),
    questions=LENGTH.questions
    + forms(
        "{w}: how many letters | the word is {w}. How many letters does it have | in {w}, how many letters are there"
    ),
)

FRIENDS = ("", "", "", ", my friend", ", little one", ", computer", ", tiny", " again", ", dear tiny")
GREETING_PARTS: tuple[tuple[str, tuple[str, ...], tuple[str, ...], tuple[str, ...]], ...] = (
    (
        f"Hello! {HELP}",
        ("", "", "oh, ", "ah, ", "so, ", "ok, "),
        (
            "hello",
            "hi",
            "hey",
            "hello there",
            "hi there",
            "hey hey",
            "hello and welcome",
            "greetings",
            "a big hello",
        ),
        FRIENDS,
    ),
    (
        f"Good morning! {HELP}",
        ("", "", "oh, ", "hello and ", "a ", "what a "),
        ("good morning", "fine good morning", "nice good morning"),
        (*FRIENDS, " to you too"),
    ),
    (
        f"Good evening! {HELP}",
        ("", "", "oh, ", "hello and ", "a ", "what a "),
        ("good evening", "fine good evening", "nice good evening"),
        (*FRIENDS, " to you too"),
    ),
    (
        "I am Tiny, a small language model that comes with Quire.",
        ("", "", "so, ", "ok, ", "hello, ", "please, ", "and "),
        forms(
            """
            who are you | what are you | what is your name | who are you exactly | say who you are | say your name |
            what kind of program are you | can you tell me who you are | what are you called | do you have a name
            """
        ),
        ("", "", ", friend", ", computer", " really"),
    ),
    (
        ABILITIES,
        ("", "", "so, ", "ok, ", "hello, ", "please, ", "and "),
        forms(
            """
            what can you do | what can I ask you | which tasks can you do | what kind of work can you do | show me what
            you can do | what do you do | what can you do for me | which skills do you have | how can you help
            """
        ),
        ("", "", ", friend", ", computer", " exactly"),
    ),
    (
        f"I am fine, thank you. {HELP}",
        ("", "", "so, ", "and ", "hello! ", "hi, "),
        (
            "how are you",
            "how are you tonight",
            "how are you now",
            "how is life",
            "how do you feel",
            "how are things",
        ),
        FRIENDS[:-2],
    ),
    (
        "You are welcome!",
        (
            "",
            "great, ",
            "nice, ",
            "super, ",
            "wonderful, ",
            "alright, ",
            "excellent. ",
            "good answer, ",
            "right, ",
        ),
        ("thanks", "thank you", "many thanks", "thank you so much", "thanks a lot", "I thank you"),
        (*FRIENDS, " for this", " for the answer", " for the help", " for everything", " for your time"),
    ),
    (
        "Goodbye! Have a nice day.",
        (
            "",
            "ok, ",
            "I have to leave. ",
            "it is late. ",
            "I am going home. ",
            "time to go, ",
            "that was all. ",
        ),
        ("bye", "goodbye", "bye bye", "see you", "good night", "see you next time", "farewell"),
        (*FRIENDS, " then", " and thanks", " until tomorrow", ", take care"),
    ),
)


def json_drill(rng: Random) -> Example:
    """Seven sums as JSON from the training side, one to a line; as a drill, only the sums are learned."""
    pairs = [operands(rng, False) for _ in range(7)]
    lines = (json.dumps({"a": first, "b": second, "sum": first + second}) for first, second in pairs)
    return Example("drill", text="\n".join(lines) + "\n")


def json_more(rng: Random) -> Example:
    """A sum, or sometimes a person, as a JSON object."""
    if rng.random() < 0.3:
        sentence, facts = person(rng, False)
        return single("json", phrase(rng, JSON_PERSON_MORE, False, s=sentence), json.dumps(facts))
    first, second = operands(rng, False)
    answer = json.dumps({"a": first, "b": second, "sum": first + second})
    return single("json", phrase(rng, JSON_SUM_MORE, False, a=first, b=second), answer)


def capital_more(rng: Random) -> Example:
    """A capital or its country, often in small letters and sometimes in capital letters."""
    country, town = rng.choice(tuple(CAPITALS.items()))
    style = rng.random()
    cased = str.lower if style < 0.45 else str.upper if style < 0.55 else str
    if rng.random() < 0.5:
        user = phrase(rng, COUNTRY_MORE, False, t=cased(town))
        return single("capital", user, f"{town} is the capital of {country}.")
    return single(
        "capital", phrase(rng, CAPITAL_MORE, False, c=cased(country)), f"The capital of {country} is {town}."
    )


def greet_more(rng: Random) -> Example:
    """Small talk put together from parts."""
    answer, openers, cores, closers = rng.choice(GREETING_PARTS)
    text = rng.choice(openers) + rng.choice(cores) + rng.choice(closers)
    text = text[:1].upper() + text[1:] if rng.random() < 0.65 else text
    asks = answer.startswith("I ")
    return single(
        "greet", text + (("?" if asks else rng.choice(".!!")) if rng.random() < 0.8 else ""), answer
    )


def count_more(rng: Random) -> Example:
    """How often a letter occurs in a word, or how many letters it has."""
    word = some_word(rng, False)
    if rng.random() < 0.25:
        return single("count", phrase(rng, LENGTH_MORE, False, w=quoted(rng, word)), length_answer(word))
    letter = rng.choice(word) if rng.random() < 0.8 else rng.choice("abcdefghijklmnopqrstuvwxyz")
    typed = letter.upper() if rng.random() < 0.15 else letter
    user = phrase(rng, COUNT_MORE, False, w=quoted(rng, word), c=quoted(rng, typed, 0.3))
    return single("count", user, count_answer(word, letter.lower()))
