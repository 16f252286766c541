"""Requests for the third stage of the training: copies of arbitrary words, and the words that are one token."""

from __future__ import annotations

from random import Random

from example import Example, single
from lexicon import CAPITALS, COLOURS, COMMON, WORDS, held_out, pick, pseudo_word, some_name
from phrasing import Phrasings, forms, phrase, quoted
from skills_text import RENAME, REPEAT, REPLACE, SENTENCES, UPPER, paragraph, swap
from skills_words import COUNT, LENGTH, REVERSE, SPELL, count_answer, length_answer, reverse_answer

ENDS = (".", ".", ".", ".", "!", "?")
FILLERS = forms(
    """
    the | a | and | of | to | in | is | was | for | on | with | at | by | from | but | not | she | he | it | we |
    they | you | who | when | where | why | because | if | then | than | without | between | behind | under | has |
    had | have | will | would | can | could | should | may | must | very | more | most | some | any | all | no |
    never | always | often | still | again | here | there | said | went | came | saw | made | took | gave | found |
    knew | thought | looked | people | man | woman | day | year | time | thing | way | life | place | work | part
    """
)
REPEAT_MORE = Phrasings(
    orders=REPEAT.orders
    + forms(
        """
        read this and repeat it: {p} | "{p}" - repeat this | {p}¶¶repeat this text | {p}¶repeat that, please |
        {p}¶¶copy this | please echo:¶{p} | here is some text:¶{p}¶repeat it | text: {p}¶task: repeat the text |
        I will give you a text and you repeat it: {p} | just repeat: {p} | type this text: {p} | {p}¶¶say that again
        """
    )
)
REPLACE_MORE = Phrasings(
    orders=REPLACE.orders
    + forms(
        """
        {p}¶¶replace {o} with {n} | {p}¶change {o} to {n} | here is some text:¶{p}¶change the word {o} to {n} |
        {o} must be {n} in this text: {p} | swap {o} for {n}: {p} | let the word {o} be {n}: {p} |
        text: {p}¶task: replace {o} by {n} | I want {n} instead of {o} in this text: {p} | {o} -> {n}: {p} |
        this text says {o}, but it must say {n}: {p} | {p}¶¶in this text, write {n} instead of {o}
        """
    )
)
RENAME_MORE = Phrasings(
    orders=RENAME.orders
    + forms(
        """
        {p}¶¶change the name {o} to {n} | {o} has the new name {n}: {p} | the name {o} must be {n} in this text: {p} |
        text: {p}¶task: rename {o} to {n} | I want {o} to be called {n} in this text: {p} | swap {o} for {n}: {p}
        """
    )
)
UPPER_MORE = Phrasings(
    orders=UPPER.orders
    + forms(
        """
        {p}¶¶write {o} in capital letters | {p}¶put {o} in upper case | text: {p}¶task: write {o} in upper case |
        {o} must be in capital letters in this text: {p} | I need {o} in upper case: {p} | show {o} in capitals: {p}
        """
    )
)


def loose_word(rng: Random, names: tuple[str, str]) -> str:
    """Draws an arbitrary word, name or number."""
    kind = rng.random()
    if kind < 0.45:
        return rng.choice((FILLERS, COMMON)[rng.random() < 0.4])
    if kind < 0.6:
        return pick(rng, "word", WORDS, False) + ("s" if rng.random() < 0.2 else "")
    if kind < 0.7:
        return rng.choice(names)
    if kind < 0.8:
        return (
            "".join(symbol for symbol in rng.choice(rng.choice(SENTENCES).split()) if symbol.isalpha())
            or "it"
        )
    if kind < 0.88:
        return pseudo_word(rng, False)
    return rng.choice((str(rng.randint(0, 2000)), rng.choice(COLOURS), rng.choice(tuple(CAPITALS.values()))))


def _salad(rng: Random, names: tuple[str, str]) -> str:
    """Coins a sentence of arbitrary words, so that copying cannot lean on known sentences."""
    words = [loose_word(rng, names) for _ in range(rng.randint(3, 13))]
    words = [word + "," if rng.random() < 0.07 else word for word in words]
    text = " ".join(words).rstrip(",")
    if rng.random() < 0.08:
        text = f'"{text}"'
    return text[:1].upper() + text[1:] + rng.choice(ENDS)


def loose_paragraph(rng: Random) -> tuple[str, str]:
    """Draws a paragraph of coined sentences, some known ones among them, and a name that may be in it."""
    while True:
        names = (some_name(rng, False), some_name(rng, False))
        sentences = [
            _salad(rng, names)
            if rng.random() < 0.75
            else paragraph(rng, False)[0].split(". ")[0].rstrip(".") + "."
            for _ in range(rng.choice((1, 1, 2, 2, 3, 4)))
        ]
        text = " ".join(sentences)
        if not held_out("paragraph", text):
            return text, names[0]


def loose_repeat(rng: Random) -> Example:
    """A coined paragraph, verbatim."""
    text = loose_paragraph(rng)[0]
    return single("repeat", phrase(rng, REPEAT_MORE, False, p=text), text)


def loose_edit(rng: Random) -> Example:
    """A coined paragraph with an edit."""
    while True:
        text, name = loose_paragraph(rng)
        cleaned = "".join(symbol if symbol.isalnum() else " " for symbol in text).split()
        words = [word for word in cleaned if len(word) > 2 and word.isalpha()]
        if words:
            break
    kind, old = rng.random(), rng.choice(words)
    if kind < 0.3 and name in words:
        old, new, phrasings = name, some_name(rng, False), RENAME_MORE
    elif kind < 0.7:
        new = pick(rng, "word", (*WORDS, *COMMON), False) if rng.random() < 0.7 else pseudo_word(rng, False)
        new, phrasings = new.capitalize() if old[0].isupper() else new, REPLACE_MORE
    else:
        new, phrasings = old.upper(), UPPER_MORE
    quote = rng.choice(('"', '"', "'")) if rng.random() < 0.35 else ""
    shown = {"o": quote + old + quote, "n": quote + new + quote}
    return single("edit", phrase(rng, phrasings, False, p=text, **shown), swap(text, old, new))


def one_token_words(rng: Random) -> Example:
    """Spells, reverses or counts in a common word; these are single tokens, so no split can hold them out."""
    pool = (*COMMON, *COLOURS, *CAPITALS, *CAPITALS.values(), *FILLERS)
    word = rng.choice(
        [word for word in pool if " " not in word and not (word in WORDS and held_out("word", word))]
    )
    word = word.capitalize() if rng.random() < 0.1 else word
    kind = rng.random()
    if kind < 0.3:
        return single("spell", phrase(rng, SPELL, False, w=quoted(rng, word)), "-".join(word))
    if kind < 0.5:
        return single("reverse", phrase(rng, REVERSE, False, w=quoted(rng, word)), reverse_answer(word))
    if kind < 0.7:
        return single("count", phrase(rng, LENGTH, False, w=quoted(rng, word)), length_answer(word))
    letter = rng.choice(word.lower()) if rng.random() < 0.85 else rng.choice("abcdefghijklmnopqrstuvwxyz")
    user = phrase(rng, COUNT, False, w=quoted(rng, word), c=quoted(rng, letter, 0.3))
    return single("count", user, count_answer(word, letter))
