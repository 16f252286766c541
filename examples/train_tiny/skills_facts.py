"""Skills with short, exact answers: sums, capitals and JSON."""

from __future__ import annotations

import json
from random import Random

from example import Example, single
from lexicon import CAPITALS, UNKNOWN_PLACES, pair_held_out, pseudo_word, some_name
from phrasing import Phrasings, forms, phrase

ADD = Phrasings(
    orders=forms(
        """
        add {a} and {b} | add {a} to {b} | add {a} plus {b} | compute {a} + {b} | calculate {a} + {b} |
        calculate {a} plus {b} | compute the sum of {a} and {b} | work out {a} + {b} | solve {a} + {b} |
        tell me what {a} + {b} is | tell me the sum of {a} and {b} | give me the sum of {a} and {b} | sum
        {a} and {b} | tell me {a} plus {b} | add the numbers {a} and {b} | evaluate {a} + {b}
        """
    ),
    questions=forms(
        """
        what is {a} + {b} | what is {a} plus {b} | what's {a} + {b} | what's {a} plus {b} | {a} + {b} |
        {a} plus {b} | {a} + {b} = | {a}+{b} | {a}+{b}= | how much is {a} + {b} | how much is {a} plus
        {b} | what is the sum of {a} and {b} | {a} plus {b} is | {a} + {b} is | what do you get if you
        add {a} and {b} | what is {a} and {b} together | what does {a} plus {b} make | what is {a}+{b} |
        {a} and {b} is | what is the total of {a} and {b}
        """
    ),
    unseen=forms(
        """
        If I add {a} and {b}, what do I get? | The sum of {a} and {b} is? | How much do {a} and {b} make?
        | Work out the sum: {a} + {b} | {a} plus {b} equals what?
        """
    ),
)

SUBTRACT = Phrasings(
    orders=forms(
        """
        subtract {b} from {a} | take {b} from {a} | take {b} away from {a} | compute {a} - {b} |
        calculate {a} - {b} | calculate {a} minus {b} | work out {a} - {b} | solve {a} - {b} | tell me
        what {a} - {b} is | tell me {a} minus {b} | compute the difference {a} - {b} | evaluate {a} - {b}
        | compute {a} minus {b} | give me {a} minus {b} | deduct {b} from {a}
        """
    ),
    questions=forms(
        """
        what is {a} - {b} | what is {a} minus {b} | what's {a} - {b} | what's {a} minus {b} | {a} - {b} |
        {a} minus {b} | {a} - {b} = | {a}-{b} | {a}-{b}= | how much is {a} - {b} | how much is {a} minus
        {b} | {a} minus {b} is | {a} - {b} is | what do you get if you subtract {b} from {a} | what is
        left if you take {b} from {a} | what is {a} less {b} | what is {a}-{b} | what does {a} minus {b}
        make | what remains of {a} if you take away {b}
        """
    ),
    unseen=forms(
        """
        If I subtract {b} from {a}, what do I get? | How much is left if I take {b} from {a}? | Work out
        the difference: {a} - {b} | {a} minus {b} equals what?
        """
    ),
)

CAPITAL = Phrasings(
    orders=forms(
        """
        tell me the capital of {c} | name the capital of {c} | name the capital city of {c} | give me the
        capital of {c} | say the capital of {c} | tell me what the capital of {c} is | tell me the name
        of the capital of {c} | give the capital city of {c} | answer: capital of {c} | tell me which
        city is the capital of {c}
        """
    ),
    questions=forms(
        """
        what is the capital of {c} | what's the capital of {c} | what is the capital city of {c} | which
        city is the capital of {c} | what city is the capital of {c} | capital of {c} | {c}'s capital |
        what is {c}'s capital | what is the name of the capital of {c} | the capital of {c} is | what is
        the capital of the country {c} | where is the capital of {c} | {c} has which capital | what
        capital does {c} have | do you know the capital of {c} | the capital city of {c} | which city is
        {c}'s capital | whats the capital of {c} | what's the capital city of {c} | capital city of {c}
        """
    ),
    unseen=forms(
        """
        I am looking for the capital of {c}. | {c}: what is its capital? | In {c}, which city is the
        capital? | Do you happen to know the capital of {c}?
        """
    ),
)

COUNTRY = Phrasings(
    orders=forms(
        """
        name the country whose capital is {t} | tell me the country whose capital is {t} | tell me which
        country has the capital {t} | name the country with the capital {t} | tell me which country {t}
        is the capital of | give me the country that has {t} as its capital
        """
    ),
    questions=forms(
        """
        {t} is the capital of which country | {t} is the capital of what country | {t} is the capital of
        | which country has the capital {t} | which country has {t} as its capital | what country has the
        capital {t} | of which country is {t} the capital | what country is {t} the capital of | which
        country is {t} the capital of | whose capital is {t} | which country's capital is {t} | what is
        {t} the capital of | {t} is the capital city of which country | {t} is the capital of where
        """
    ),
    unseen=("Which country's capital is called {t}?", "{t} is the capital, but of which country?"),
)

JSON_CAPITAL = Phrasings(
    orders=forms(
        """
        give the capital of {c} as JSON | give me the capital of {c} as JSON | tell me the capital of {c}
        as JSON | return the capital of {c} as JSON | answer in JSON: capital of {c} | write the capital
        of {c} as JSON | show the capital of {c} in JSON | give me {c} and its capital as JSON | return
        JSON with the capital of {c} | give the capital of {c} in JSON format | answer as JSON: what is
        the capital of {c} | name the capital of {c} and answer in JSON | produce a JSON object with {c}
        and its capital | give me a JSON object with the capital of {c} | output the capital of {c} as a
        JSON object
        """
    ),
    questions=forms(
        """
        what is the capital of {c}? Answer as JSON | what is the capital of {c}? Reply in JSON | what is
        the capital of {c} as JSON | what is the capital of {c} in JSON | capital of {c} as JSON |
        capital of {c}, JSON | what is the capital of {c}? Use JSON | capital of {c} in JSON format
        """
    ),
    unseen=("As JSON, give me the capital of {c}.", "I want the capital of {c} as a JSON object."),
)

JSON_SUM = Phrasings(
    orders=forms(
        """
        give the sum of {a} and {b} as JSON | add {a} and {b} and answer as JSON | add {a} and {b} as
        JSON | return {a} + {b} as JSON | compute {a} + {b} and reply in JSON | answer in JSON: {a} + {b}
        | give me {a} plus {b} as JSON | write the sum of {a} and {b} as JSON | return JSON with the sum
        of {a} and {b} | give {a} + {b} in JSON format | answer as JSON: what is {a} + {b} | compute {a}
        plus {b} as a JSON object | give me the sum of {a} and {b} in JSON | calculate {a} + {b}, answer
        as JSON
        """
    ),
    questions=forms(
        """
        what is {a} + {b}? Answer as JSON | what is {a} plus {b}? Reply in JSON | what is {a} + {b} as
        JSON | {a} + {b} as JSON | what is the sum of {a} and {b}? Use JSON | what is {a} plus {b} in
        JSON | how much is {a} + {b}? Answer in JSON
        """
    ),
    unseen=("As JSON, what is {a} + {b}?", "I want the sum of {a} and {b} as a JSON object."),
)

JSON_PERSON = Phrasings(
    orders=forms(
        """
        write this as JSON: {s} | turn this sentence into JSON: {s} | convert to JSON: {s} | convert this
        to JSON: {s} | give the facts as JSON: {s} | extract the facts as JSON: {s} | extract JSON from
        this sentence: {s} | make JSON of this: {s} | answer as JSON. {s} | put this into JSON: {s} |
        represent this sentence as JSON: {s} | extract the name and the age as JSON: {s} | read the
        sentence and reply in JSON: {s} | give me this in JSON format: {s} | return a JSON object for:
        {s} | extract the person as JSON: {s} | give name and age as JSON: {s} | parse this into JSON:
        {s} | JSON please: {s} | summarise as JSON: {s}
        """
    ),
    unseen=("Make a JSON object from this sentence: {s}", "{s} Give me that as JSON."),
)


def operands(rng: Random, evaluation: bool) -> tuple[int, int]:
    """Draws two numbers from the wanted side of the split."""
    while True:
        low = 0 if rng.random() < 0.5 else 10
        first, second = rng.randint(low, 99), rng.randint(low, 99)
        if pair_held_out(first, second) == evaluation:
            return first, second


def arithmetic(rng: Random, evaluation: bool, unseen: bool) -> Example:
    """A sum or a difference of two numbers below one hundred."""
    first, second = operands(rng, evaluation)
    if rng.random() < 0.45:
        user = phrase(rng, ADD, unseen, a=first, b=second)
        return single("arithmetic", user, f"{first} + {second} = {first + second}")
    user = phrase(rng, SUBTRACT, unseen, a=first, b=second)
    return single("arithmetic", user, f"{first} - {second} = {first - second}")


def drill(rng: Random) -> Example:
    """Seven sums and differences from the training side, one to a line, without a chat around them."""
    lines = (arithmetic(rng, False, False).turns[0].answer for _ in range(7))
    return Example("drill", text="\n".join(lines) + "\n")


def _typed(rng: Random, place: str) -> str:
    return place.lower() if rng.random() < 0.15 else place


def capital(rng: Random, evaluation: bool, unseen: bool) -> Example:
    """The capital of a country, or the country of a capital."""
    if rng.random() < 0.07 and not evaluation:
        place = rng.choice(UNKNOWN_PLACES) if rng.random() < 0.5 else pseudo_word(rng, False).capitalize()
        return single(
            "capital", phrase(rng, CAPITAL, unseen, c=place), f"I do not know the capital of {place}."
        )
    country = rng.choice(tuple(CAPITALS))
    if rng.random() < 0.35:
        user = phrase(rng, COUNTRY, unseen, t=_typed(rng, CAPITALS[country]))
        return single("capital", user, f"{CAPITALS[country]} is the capital of {country}.")
    user = phrase(rng, CAPITAL, unseen, c=_typed(rng, country))
    return single("capital", user, f"The capital of {country} is {CAPITALS[country]}.")


def person(rng: Random, evaluation: bool) -> tuple[str, dict[str, object]]:
    """Draws a sentence about a person, and its facts."""
    name, age, city = some_name(rng, evaluation), rng.randint(5, 99), rng.choice(tuple(CAPITALS.values()))
    facts: dict[str, object] = {"name": name, "age": age}
    if rng.random() < 0.5:
        form = rng.choice(
            forms(
                """
            {n} is {a} years old. | {n} is {a}. | My friend {n} is {a} years old. | {n} turned {a} today.
            | This is {n}, who is {a} years old. | Her name is {n} and she is {a} years old. | His name
            is {n} and he is {a}. | My name is {n} and I am {a} years old. | {n}, {a} years old. | I am
            {n} and I am {a}. | The name is {n}, the age is {a}.
            """
            )
        )
        return form.format(n=name, a=age), facts
    form = rng.choice(
        forms(
            """
        {n} is {a} years old and lives in {c}. | {n} is {a} and lives in {c}. | {n} lives in {c} and is
        {a} years old. | My name is {n}, I am {a} years old and I live in {c}. | {n}, {a}, lives in {c}.
        | {n} from {c} is {a} years old. | My friend {n} lives in {c} and is {a}.
        """
        )
    )
    return form.format(n=name, a=age, c=city), {**facts, "city": city}


def json_answer(rng: Random, evaluation: bool, unseen: bool) -> Example:
    """An answer as a JSON object."""
    kind = rng.random()
    if kind < 0.3:
        country = rng.choice(tuple(CAPITALS))
        facts: dict[str, object] = {"country": country, "capital": CAPITALS[country]}
        user = phrase(rng, JSON_CAPITAL, unseen, c=_typed(rng, country))
    elif kind < 0.55:
        first, second = operands(rng, evaluation)
        facts = {"a": first, "b": second, "sum": first + second}
        user = phrase(rng, JSON_SUM, unseen, a=first, b=second)
    else:
        sentence, facts = person(rng, evaluation)
        user = phrase(rng, JSON_PERSON, unseen, s=sentence)
    return single("json", user, json.dumps(facts))
