"""Skills on paragraphs: repeating them and making small edits. The answers are long copies of the prompt."""

from __future__ import annotations

from random import Random

from example import Example, single
from lexicon import CAPITALS, COLOURS, FOODS, WORDS, held_out, pick, pseudo_word, some_name
from phrasing import Phrasings, forms, phrase

SENTENCES = forms(
    """
    {N} went to the {w} in the {d}. | The {w} was {c} and the {v} was {c2}. | {N} bought a {w} and two
    {v}s. | In {T}, {N} met {M} near the {w}. | {M} gave {N} a {c} {w}. | The {w} stood next to the {v}.
    | {N} likes {f}, but {M} likes {g}. | It rained, so {N} stayed at home. | They talked about the {w}
    for {k} hours. | There were {k} {w}s in the {v}. | {N} said that the {w} was too expensive. | After
    that, {N} went home. | The old {w} had a {c} {v}. | {N} and {M} looked for the {w} all day. | Nobody
    had seen the {w} before. | {M} wanted to see the {w}, the {v} and the {x}. | The train to {T} leaves
    at {k} o'clock. | {N} wrote a letter to {M} about the {w}. | Every {d}, {N} walks to the {w} with
    {M}. | The {w} of {N} is {k} years old. | "Where is the {w}?" asked {N}. | {N} put the {w} on the
    {v}. | On the table there was a {w}. | We saw a {c} {w} in {T}. | {N} lost the {w}; {M} found it. |
    The {w} is small, but the {v} is big. | My friend {N} lives in {T} and has a {w}. | It cost {k} euros
    and {j} cents. | {M} never liked the {w}. | I think that the {w} is under the {v}. | The {w} works
    well (most of the time). | {N} came first, and {M} came second. | At {k}:{j} the {w} began to {x}. |
    The children played with the {w} in the {v}. | He took the {w} and ran to the {v}. | She opened the
    {w} and found a {c} {v}. | Please bring the {w} to {N} before the {d}. | What a {c} {w} that was! |
    Do you know where {N} is? | {N} works as a {w} in {T}.
    """
)
UNSEEN_SENTENCES = forms(
    """
    When {N} arrived in {T}, the {w} was gone. | Then {M} sold the {c} {w} for {k} euros. | A {w} without
    a {v} is like a {x}. | "I need the {w}," said {N}, "and a {v}." | Some people say {N} still has the
    {w}. | Behind the {v} there is a {w}, and {M} knows it.
    """
)
DAYS = ["morning", "evening", "afternoon", "summer", "winter", "night", "spring", "weekend"]
EXTRAS = [
    "é",
    "ü",
    "ñ",
    "ß",
    "ø",
    "ç",
    "à",
    "ö",
    "中",
    "文",
    "日",
    "я",
    "ж",
    "λ",
    "π",
    "😀",
    "🚀",
    "→",
    "€",
    "£",
    "°",
    "½",
    "☃",
    "✓",
]

REPEAT = Phrasings(
    orders=forms(
        """
        repeat: {p} | repeat this: {p} | repeat this text: {p} | repeat the following text: {p} | repeat
        after me: {p} | repeat the text:¶{p} | repeat this paragraph:¶{p} | repeat the following:¶¶{p} |
        repeat this word for word: {p} | copy this text: {p} | copy: {p} | copy the following
        paragraph:¶{p} | write this again: {p} | say this again: {p} | say: {p} | echo: {p} | echo this
        text: {p} | repeat the following paragraph exactly:¶¶{p} | repeat exactly what I say: {p} | copy
        the following text without changes: {p} | give me this text again: {p} | print this text: {p} |
        return the following text unchanged:¶{p} | output this text: {p} | repeat the paragraph
        below.¶¶{p} | repeat this text verbatim: {p} | repeat "{p}" | write down this text: {p} | repeat
        the sentence: {p}
        """
    ),
    unseen=(
        "Write the same text once more: {p}",
        "{p}\n\nRepeat the text above.",
        "Here is a text. Repeat it.\n{p}",
    ),
)
REPLACE = Phrasings(
    orders=forms(
        """
        replace {o} by {n} in this text: {p} | replace {o} with {n} in this text: {p} | replace the word
        {o} by {n}: {p} | replace the word {o} with {n}: {p} | replace {o} with {n}: {p} | replace {o} by
        {n}: {p} | replace the word {o} by the word {n} in the following text:¶{p} | replace {o} with {n}
        in the following text:¶{p} | replace {o} with {n} in the paragraph:¶¶{p} | replace every {o} by
        {n}: {p} | replace every {o} with {n} in this paragraph:¶{p} | change {o} to {n} in this text:
        {p} | change the word {o} to {n}: {p} | change {o} to {n}: {p} | change the word {o} into {n} in
        the following paragraph:¶{p} | change every {o} to {n}:¶{p} | in this text, replace {o} by {n}:
        {p} | in the following text, replace {o} with {n}:¶{p} | in the following text, change {o} to
        {n}: {p} | write {n} instead of {o}: {p} | use {n} instead of {o} in this text: {p} | rewrite
        this text with {n} instead of {o}: {p} | repeat this text but replace {o} by {n}: {p} | repeat
        this text, but change {o} to {n}:¶{p} | substitute {n} for {o} in this text: {p} | put {n} where
        the text says {o}: {p} | rewrite the paragraph and replace {o} with {n}.¶¶{p} | edit this text:
        change {o} to {n}.¶{p}
        """
    ),
    unseen=(
        "Give me this text with {n} in place of {o}: {p}",
        "{p}\n\nReplace {o} by {n} in the text above.",
        "The word {o} should become {n} here: {p}",
    ),
)
RENAME = Phrasings(
    orders=forms(
        """
        change the name {o} to {n}: {p} | change the name {o} to {n} in this text: {p} | change the name
        {o} to {n} throughout:¶{p} | change the name {o} to {n} everywhere: {p} | replace the name {o} by
        {n}: {p} | replace the name {o} with {n} in this text: {p} | replace the name {o} with {n} in the
        following text:¶{p} | rename {o} to {n}: {p} | rename {o} to {n} in this text: {p} | rename {o}
        to {n} in the following paragraph:¶{p} | call {o} {n} in this text: {p} | use the name {n}
        instead of {o}: {p} | rewrite this text with the name {n} instead of {o}: {p} | in this story,
        change {o} to {n}: {p} | in the following text, change the name {o} to {n}:¶{p} | let {o} be
        called {n} in this text: {p} | change {o} to {n} everywhere in this text: {p} | change every {o}
        to {n}: {p} | repeat this story, but call {o} {n}:¶{p} | replace {o} by {n} throughout the
        text:¶{p}
        """
    ),
    unseen=("{o} is now called {n}. Rewrite the text: {p}", "The name {o} should become {n} here: {p}"),
)
UPPER = Phrasings(
    orders=forms(
        """
        write the word {o} in upper case: {p} | write the word {o} in capital letters: {p} | write {o} in
        capitals in this text: {p} | write {o} in upper case in the following text:¶{p} | put the word
        {o} in upper case: {p} | put {o} in capital letters: {p} | make the word {o} upper case: {p} |
        make the word {o} uppercase: {p} | make {o} uppercase in this text: {p} | uppercase the word {o}:
        {p} | upper-case the word {o}: {p} | upper-case {o} in this text: {p} | capitalise the word {o}:
        {p} | capitalise every letter of {o} in this text: {p} | change the word {o} to upper case: {p} |
        change {o} to upper case in this text:¶{p} | repeat this text with {o} in upper case: {p} |
        repeat this text, but write {o} in capital letters:¶{p} | turn {o} into upper case: {p} | in this
        text, write {o} in upper case: {p} | rewrite this text with the word {o} in capitals: {p}
        """
    ),
    unseen=("Give me this text with {o} in upper case: {p}", "I want {o} to be in capital letters here: {p}"),
)


def _slots(rng: Random, evaluation: bool) -> dict[str, object]:
    word = (
        (lambda: pick(rng, "word", WORDS, evaluation))
        if rng.random() < 0.8
        else (lambda: pseudo_word(rng, evaluation))
    )
    return {
        "N": some_name(rng, evaluation),
        "M": some_name(rng, evaluation),
        "w": word(),
        "v": word(),
        "x": word(),
        "c": rng.choice(COLOURS),
        "c2": rng.choice(COLOURS),
        "T": rng.choice(tuple(CAPITALS.values())),
        "f": rng.choice(FOODS),
        "g": rng.choice(FOODS),
        "d": rng.choice(DAYS),
        "k": rng.randint(2, 60),
        "j": rng.randint(10, 99),
    }


def _draw_paragraph(rng: Random, evaluation: bool) -> tuple[str, dict[str, object]]:
    slots = _slots(rng, evaluation)
    templates = SENTENCES + UNSEEN_SENTENCES if evaluation else SENTENCES
    sentences = []
    for template in rng.sample(templates, rng.choice((1, 2, 2, 3, 3, 4, 4))):
        if rng.random() < 0.5:
            slots = {**_slots(rng, evaluation), "N": slots["N"], "M": slots["M"], "w": slots["w"]}
        sentence = template.format(**slots)
        sentences.append(sentence[:1].upper() + sentence[1:])
    return " ".join(sentences), slots


def paragraph(rng: Random, evaluation: bool) -> tuple[str, dict[str, object]]:
    """Draws one to four sentences from the wanted side of the split, and the names and words in them."""
    while True:
        text, slots = _draw_paragraph(rng, evaluation)
        if held_out("paragraph", text) == evaluation:
            return text, slots


def _noise(rng: Random) -> str:
    """A text that only letter-by-letter copying can repeat."""
    pieces = []
    for _ in range(rng.randint(1, 14)):
        kind = rng.random()
        if kind < 0.5:
            pieces.append(pseudo_word(rng, False))
        elif kind < 0.7:
            pieces.append(str(rng.randint(0, 10 ** rng.randint(1, 6))))
        elif kind < 0.85:
            pieces.append("".join(rng.choice("abcXYZ0123456789-_.,:/#") for _ in range(rng.randint(2, 8))))
        else:
            pieces.append(rng.choice(EXTRAS) + rng.choice(("", pseudo_word(rng, False))))
    return " ".join(pieces)


def repeat(rng: Random, evaluation: bool, unseen: bool) -> Example:
    """A paragraph, verbatim."""
    noisy = not evaluation and rng.random() < 0.2
    text = _noise(rng) if noisy else paragraph(rng, evaluation)[0]
    return single("repeat", phrase(rng, REPEAT, unseen, p=text), text)


def _words_in(text: str) -> list[str]:
    cleaned = "".join(symbol if symbol.isalnum() else " " for symbol in text)
    return [word for word in cleaned.split() if len(word) > 2 and word.isalpha() and word.isascii()]


def swap(text: str, old: str, new: str) -> str:
    """Replaces whole words only."""
    out, start = [], 0
    while (at := text.find(old, start)) >= 0:
        end = at + len(old)
        whole = not (text[at - 1 : at].isalnum() or text[end : end + 1].isalnum())
        out.append(text[start:at] + (new if whole else old))
        start = end
    return "".join(out) + text[start:]


def _marked(rng: Random, first: str, second: str) -> tuple[str, str]:
    quote = rng.choice(('"', '"', "'")) if rng.random() < 0.35 else ""
    return quote + first + quote, quote + second + quote


def edit(rng: Random, evaluation: bool, unseen: bool) -> Example:
    """A paragraph with a word replaced, a name changed or a word in upper case."""
    while True:
        text, slots = paragraph(rng, evaluation)
        words = _words_in(text)
        if words:
            break
    kind = rng.random()
    if kind < 0.35 and str(slots["N"]) in words:
        old, new, phrasings = str(slots["N"]), some_name(rng, evaluation), RENAME
    else:
        old = str(slots["w"]) if str(slots["w"]) in words and rng.random() < 0.6 else rng.choice(words)
        new = pick(rng, "word", WORDS, evaluation) if rng.random() < 0.7 else pseudo_word(rng, evaluation)
        phrasings = REPLACE
        if kind > 0.75:
            new, phrasings = old.upper(), UPPER
        elif old[0].isupper():
            new = new.capitalize()
    shown_old, shown_new = _marked(rng, old, new)
    user = phrase(rng, phrasings, unseen, o=shown_old, n=shown_new, p=text)
    return single("edit", user, swap(text, old, new))
