"""Skills of conversation: greeting, remembering, small talk; and plain texts without a chat."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from example import Example, Turn, single
from greetings import CANNOT, GREETINGS, HELP, OFF_TOPIC
from lexicon import CAPITALS, COLOURS, FOODS, PETS, pair_held_out, pick, some_name, some_word
from phrasing import Phrasings, forms, phrase

INTRODUCE = Phrasings(
    statements=forms(
        """
        my name is {n} | hello, my name is {n} | hi, my name is {n} | hi, I am {n} | hello, I'm {n} | I
        am {n} | I'm {n} | hi, I'm {n} | good morning, my name is {n} | hey, my name is {n} | you can
        call me {n} | call me {n} | please call me {n} | my name is {n}, nice to meet you | hello! I am
        {n} | hello, this is {n} | this is {n} | hello tiny, I am {n} | hi there, my name is {n} | people
        call me {n} | the name is {n} | let me introduce myself, I am {n} | remember that my name is {n}
        | I am called {n}
        """
    ),
    unseen=("Hello! They call me {n}.", "Good day, I am {n}."),
)
ASK_NAME = Phrasings(
    orders=("tell me my name", "say my name", "tell me what my name is", "repeat my name"),
    questions=forms(
        """
        what is my name | what's my name | do you remember my name | do you know my name | who am I |
        what did I say my name was | can you remember my name | can you tell me my name | what am I
        called | do you still know my name | so what is my name | what was my name | what was my name
        again | and what is my name | whats my name | what name did I tell you | how am I called | my
        name is
        """
    ),
    unseen=("Do you recall my name?", "Which name did I give you?"),
)

FACTS: tuple[tuple[str, tuple[str, ...], Phrasings, Phrasings, str], ...] = (
    (
        "colour",
        tuple(COLOURS),
        Phrasings(
            statements=forms(
                """
            my favourite colour is {v} | my favorite color is {v} | I like the colour {v} | I love {v},
            it is my favourite colour | the colour I like best is {v} | my favourite color is {v}
            """
            ),
            unseen=("Of all colours I like {v} best.",),
        ),
        Phrasings(
            questions=forms(
                """
            what is my favourite colour | what's my favourite colour | what is my favorite color | what's
            my favorite color | which colour do I like best | what colour do I like | do you remember my
            favourite colour | which color do I like
            """
            ),
            unseen=("Which colour did I say I like?",),
        ),
        "Your favourite colour is {v}.",
    ),
    (
        "food",
        tuple(FOODS),
        Phrasings(
            statements=(
                "my favourite food is {v}",
                "my favorite food is {v}",
                "I like to eat {v}",
                "I love eating {v}",
                "the food I like best is {v}",
            ),
            unseen=("Of all foods I like {v} best.",),
        ),
        Phrasings(
            questions=forms(
                """
            what is my favourite food | what's my favorite food | what do I like to eat | which food do I
            like best | do you remember my favourite food
            """
            ),
            unseen=("Which food did I say I like?",),
        ),
        "Your favourite food is {v}.",
    ),
    (
        "pet",
        tuple(PETS),
        Phrasings(
            statements=("I have a {v}", "my pet is a {v}", "I have a pet {v}", "at home I have a {v}"),
            unseen=("I live with a {v}.",),
        ),
        Phrasings(
            questions=(
                "what pet do I have",
                "which pet do I have",
                "what is my pet",
                "what kind of pet do I have",
                "do you remember what pet I have",
            ),
            unseen=("Which animal do I have at home?",),
        ),
        "You have a {v}.",
    ),
    (
        "city",
        tuple(CAPITALS.values()),
        Phrasings(
            statements=(
                "I live in {v}",
                "my home is in {v}",
                "I am from {v}",
                "I come from {v}",
                "my home town is {v}",
            ),
            unseen=("My house is in {v}.",),
        ),
        Phrasings(
            questions=(
                "where do I live",
                "which city do I live in",
                "where am I from",
                "in which city do I live",
                "do you remember where I live",
            ),
            unseen=("Which city did I say I live in?",),
        ),
        "You live in {v}.",
    ),
)


def greet(rng: Random, evaluation: bool, unseen: bool) -> Example:
    """Small talk with one fixed reply for each kind; sometimes something the model cannot do."""
    if not evaluation and rng.random() < 0.08:
        return single("greet", rng.choice(OFF_TOPIC), CANNOT)
    answer, phrasings = rng.choice(GREETINGS)
    text = rng.choice(phrasings.unseen if unseen else phrasings.questions)
    if not unseen:
        text = text[:1].upper() + text[1:] if rng.random() < 0.65 else text
        asks = text.lower().split()[0] in ("who", "what", "how", "are", "do", "which", "what's")
        if text[-1].isalpha() and rng.random() < 0.7:
            text += "?" if asks else rng.choice(".!.")
        text = text.upper() if rng.random() < 0.03 else text
    return single("greet", text, answer)


def memory(rng: Random, evaluation: bool, unseen: bool, small_talk: Callable[[], Turn]) -> Example:
    """A name and a fact given early in a conversation and asked for later."""
    name = some_name(rng, evaluation)
    turns, asked = [], []
    if rng.random() < 0.75:
        turns.append(Turn(phrase(rng, INTRODUCE, unseen, n=name), f"Hello, {name}! {HELP}"))
        asked.append(Turn(phrase(rng, ASK_NAME, unseen), f"Your name is {name}."))
    if not turns or rng.random() < 0.5:
        _, values, tell, ask, reply = rng.choice(FACTS)
        value = rng.choice(values)
        if turns and rng.random() < 0.5:
            intro = (
                phrase(rng, INTRODUCE, False, n=name).rstrip(".!?")
                + " and "
                + phrase(rng, tell, unseen, v=value)
            )
            turns[0] = Turn(intro, turns[0].answer)
        else:
            turns.append(Turn(phrase(rng, tell, unseen, v=value), "Good to know. I will remember that."))
        asked.append(Turn(phrase(rng, ask, unseen), reply.format(v=value)))
    turns += [small_talk() for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3)))]
    rng.shuffle(asked)
    return Example("memory", tuple(turns + asked))


def plain(rng: Random) -> Example:
    """A short text without a chat around it."""
    country = rng.choice(tuple(CAPITALS))
    town, name = CAPITALS[country], some_name(rng, False)
    while True:
        first, second = rng.randint(0, 99), rng.randint(0, 99)
        if not pair_held_out(first, second):
            break
    word, other = some_word(rng, False), some_word(rng, False)
    colour, food = rng.choice(COLOURS), rng.choice(FOODS)
    thing = pick(rng, "word", ("house", "garden", "dog", "cat", "boat", "car"), False)
    sentences = (
        f"The capital of {country} is {town}.",
        f"{town} is the capital of {country}.",
        f"{country} is a country. Its capital is {town}.",
        f"{first} + {second} = {first + second}",
        f"{first} - {second} = {first - second}",
        f"{first} plus {second} is {first + second}.",
        f"Hello, my name is {name}. I live in {town}, the capital of {country}.",
        f"Hello, my name is {name} and I like {food}.",
        f"My favourite colour is {colour}.",
        f"The word {word} is spelled {'-'.join(word)}.",
        f"The word {word} has {len(word)} letters.",
        f"The word {other} reversed is {other[::-1]}.",
        f"Once upon a time there was a {thing} in {country}. It was {colour}. {name} liked it very much.",
        f"{name} lives in {town} and likes {food}.",
    )
    return Example("plain", text=" ".join(rng.sample(sentences, rng.choice((1, 1, 2, 3)))))
