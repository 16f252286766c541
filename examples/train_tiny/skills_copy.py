"""Requests for the fourth stage: copies and edits of short coined texts, and of known sentences out of order."""

from __future__ import annotations

import re
from random import Random

from example import Example, single
from lexicon import COMMON, WORDS, held_out, pick, pseudo_word, some_name
from phrasing import Phrasings, forms, phrase
from skills_late import ENDS, loose_word
from skills_text import RENAME, REPEAT, REPLACE, SENTENCES, UPPER, paragraph, swap

REPEAT_TASKS = forms(
    """
    repeat it | repeat this | repeat that | repeat the text | repeat the sentence | copy it | copy this | copy the
    text | say it again | say that again | write it again | write it down | print it | echo it | echo the text |
    type it again | repeat it word for word | return it unchanged | I want to see it again | give it back to me |
    repeat every word | show it again | repeat it exactly | copy it without changes | read it back to me
    """
)
REPLACE_TASKS = forms(
    """
    replace {o} by {n} | replace {o} with {n} | replace the word {o} by {n} | replace the word {o} with {n} | change
    {o} to {n} | change {o} into {n} | change the word {o} to {n} | write {n} instead of {o} | write {n} for {o} |
    use {n} instead of {o} | put {n} where it says {o} | substitute {n} for {o} | swap {o} for {n} | turn {o} into
    {n} | exchange {o} for {n} | let {o} be {n} | make {o} {n} | {o} must be {n} | {o} has to be {n} | I want {n}
    instead of {o} | I prefer {n} to {o} | every {o} must be {n} | where it says {o}, write {n} | the word {o} has
    to be {n} | the new word for {o} is {n} | {o} -> {n} | {o} => {n} | not {o} but {n} | read {n} for {o} | the
    word {o} is wrong, the right word is {n} | it says {o}, but {n} is right
    """
)
RENAME_TASKS = forms(
    """
    rename {o} to {n} | change the name {o} to {n} | replace the name {o} by {n} | replace the name {o} with {n} |
    call {o} {n} | the name {o} must be {n} | {o} has a new name: {n} | the new name of {o} is {n} | use the name {n}
    for {o} | let the name of {o} be {n} | give {o} the name {n} | {o} is {n} from today | the name is not {o} but {n} |
    I want {o} to be {n} | write the name {n} instead of {o} | replace {o} by {n} | change {o} to {n}
    """
)
UPPER_TASKS = forms(
    """
    write {o} in upper case | write {o} in capital letters | write {o} in capitals | put {o} in upper case | put {o}
    in capital letters | put {o} in capitals | make {o} upper case | make {o} uppercase | uppercase {o} | upper-case
    the word {o} | capitalise every letter of {o} | change {o} to upper case | turn {o} into capital letters | show
    the word {o} in capitals | {o} must be in upper case | {o} has to be in capital letters | I need {o} in capitals |
    every {o} in upper case | the word {o} needs capital letters | print {o} in upper case | say {o} in big letters
    """
)
PLACES = forms(
    """
    in this text | in the following text | in this | in the text | in this sentence | in the text below | everywhere
    in this text | in this paragraph | in what follows | in my text
    """
)
LEADS = forms(
    """
    this is my text | look at this | take this text | I have a text | read this | my text | the text | this is it |
    a sentence | I wrote this | text
    """
)
LAYOUTS = forms(
    """
    {t} {w}: {p} | {t} {w}: {p} | {t}: {p} | {t} {w}:¶{p} | {t}:¶¶{p} | {t}:¶{p} | {w}, {t}: {p} | {w} {t}:¶{p} |
    {p}¶¶{t} | {p}¶{t} | {p}¶¶{w}, {t} | {p}¶¶{t} {w} | {l}: {p}¶{t} | {l}:¶{p}¶¶{t} | {l}. {t}.¶{p} | {l}. {t}: {p}
    | {t}. {l}: {p} | {t}.¶¶{p} | text: {p}¶task: {t} | task: {t}¶text: {p} | "{p}" - {t} | {t}¶"{p}"
    """
)
KNOWN = tuple(
    sorted(
        {
            word
            for text in SENTENCES + REPEAT.orders + REPLACE.orders + RENAME.orders + UPPER.orders
            for word in re.findall(r"[A-Za-z]{2,}", re.sub(r"\{\w+\}", " ", text))
        }
    )
)


def _quote(rng: Random, words: list[str]) -> None:
    start = rng.randrange(len(words))
    end = rng.randint(start, len(words) - 1)
    left, right = ('"', rng.choice(('"', ',"', '."', '!"'))) if rng.random() < 0.7 else ("(", ")")
    words[start], words[end] = left + words[start], words[end] + right


def _coined(rng: Random, names: tuple[str, str], longest: int) -> str:
    """Coins a short sentence of arbitrary words, some of them twice, with marks in any place."""
    words = [
        rng.choice(KNOWN) if rng.random() < 0.45 else loose_word(rng, names)
        for _ in range(rng.randint(2, longest))
    ]
    if rng.random() < 0.3:
        words[rng.randrange(len(words))] = rng.choice(words)
    words = [word + rng.choice(",,,,;:") if rng.random() < 0.06 else word for word in words]
    if rng.random() < 0.2:
        _quote(rng, words)
    text = " ".join(words)
    text = text[:1].upper() + text[1:] if rng.random() < 0.85 else text
    return text + rng.choice(ENDS) if text[-1].isalnum() else text


def _mangled(rng: Random, names: tuple[str, str]) -> str:
    """Takes a known sentence and drops, swaps or puts in words, so that knowing it by heart does not help."""
    words = rng.choice(re.split(r"(?<=[.!?]) ", paragraph(rng, False)[0])).split()
    for _ in range(rng.randint(0, 3)):
        place, kind = rng.randrange(len(words)), rng.random()
        if kind < 0.3 and len(words) > 2:
            del words[place]
        elif kind < 0.5:
            other = rng.randrange(len(words))
            words[place], words[other] = words[other], words[place]
        else:
            new = rng.choice(KNOWN) if rng.random() < 0.6 else loose_word(rng, names)
            words[place : place + (kind < 0.75)] = [new]
    return " ".join(words)


def short_text(rng: Random, names: tuple[str, str]) -> str:
    """Draws a short text, mostly of one sentence, from the training side of the split."""
    while True:
        longest = rng.choice((4, 6, 6, 9, 13))
        number = rng.choice((1, 1, 1, 1, 1, 2, 2, 3))
        text = " ".join(
            _coined(rng, names, longest) if rng.random() < 0.55 else _mangled(rng, names)
            for _ in range(number)
        )
        if not held_out("paragraph", text):
            return text


def laid_out(rng: Random, tasks: tuple[str, ...], text: str, **slots: object) -> str:
    """Writes a request in one of many orders of task and text."""
    layout, task = rng.choice(LAYOUTS), rng.choice(tasks)
    if "\n{t}" in layout or ". {t}" in layout:
        task = task[:1].upper() + task[1:] if rng.random() < 0.6 else task
    if layout.endswith("{t}") and rng.random() < 0.5:
        task += "."
    template = (
        layout.replace("{t}", task).replace("{w}", rng.choice(PLACES)).replace("{l}", rng.choice(LEADS))
    )
    return phrase(rng, Phrasings(orders=(template,)), False, p=text, **slots)


def short_repeat(rng: Random) -> Example:
    """A short coined text, verbatim."""
    names = (some_name(rng, False), some_name(rng, False))
    text = short_text(rng, names)
    if rng.random() < 0.4:
        return single("repeat", phrase(rng, REPEAT, False, p=text), text)
    return single("repeat", laid_out(rng, REPEAT_TASKS, text), text)


def short_edit(rng: Random) -> Example:
    """A short coined text with an edit."""
    while True:
        names = (some_name(rng, False), some_name(rng, False))
        text = short_text(rng, names)
        words = [word for word in re.findall(r"[^\W\d_]+", text) if len(word) > 2]
        if words:
            break
    kind, old = rng.random(), rng.choice(words)
    if kind < 0.5 and names[0] in words:
        old, new, known, tasks = names[0], some_name(rng, False), RENAME, RENAME_TASKS
    elif kind < 0.65:
        new = pick(rng, "word", (*WORDS, *COMMON), False) if rng.random() < 0.7 else pseudo_word(rng, False)
        new, known, tasks = new.capitalize() if old[0].isupper() else new, REPLACE, REPLACE_TASKS
    else:
        new, known, tasks = old.upper(), UPPER, UPPER_TASKS
    quote = rng.choice(('"', '"', "'")) if rng.random() < 0.35 else ""
    shown = {"o": quote + old + quote, "n": quote + new + quote}
    if rng.random() < 0.5:
        return single("edit", phrase(rng, known, False, p=text, **shown), swap(text, old, new))
    return single("edit", laid_out(rng, tasks, text, **shown), swap(text, old, new))
