"""Skills on single words: spelling, reversing and counting letters."""

from __future__ import annotations

from random import Random

from example import Example, single
from lexicon import some_word
from phrasing import Phrasings, forms, phrase, quoted

SPELL = Phrasings(
    orders=forms(
        """
        spell {w} | spell the word {w} | spell out {w} | spell out the word {w} | spell {w} letter by
        letter | spell the word {w} letter by letter | spell the following word: {w} | spell this word:
        {w} | spell: {w} | write the letters of {w} separated by hyphens | give me the spelling of {w} |
        show me how to spell {w} | tell me how to spell {w} | tell me how {w} is spelled | list the
        letters of {w} | list the letters in the word {w} | write {w} with hyphens between the letters |
        write out the letters of the word {w} | break {w} into letters | split the word {w} into its
        letters | name each letter of {w} | give the letters of {w} | spell {w} with hyphens
        """
    ),
    questions=forms(
        """
        how do you spell {w} | how do I spell {w} | how is {w} spelled | how is the word {w} spelled |
        how would you spell {w} | what is the spelling of {w} | what are the letters of {w} | which
        letters are in the word {w} | how to spell {w} | how does one spell the word {w} | {w}, how is it
        spelled | spelling of {w}
        """
    ),
    unseen=forms(
        """
        I forgot how to spell the word {w}. Spell it. | Letter by letter, spell {w}. | Can you spell {w}
        out? | What's the spelling of the word {w}?
        """
    ),
)

REVERSE = Phrasings(
    orders=forms(
        """
        reverse {w} | reverse the word {w} | reverse the letters of {w} | reverse the letters in {w} |
        reverse the string {w} | reverse this word: {w} | reverse the following word: {w} | reverse: {w}
        | write {w} backwards | write the word {w} backwards | spell {w} backwards | spell the word {w}
        backwards | say {w} backwards | say the word {w} backwards | give me {w} backwards | give me {w}
        in reverse | write {w} in reverse | write {w} in reverse order | write the letters of {w} in
        reverse order | turn {w} around | turn the word {w} around | flip the word {w} | flip {w} | show
        me the word {w} reversed | give the reverse of {w} | print {w} reversed
        """
    ),
    questions=forms(
        """
        what is {w} backwards | what is {w} reversed | what is the reverse of {w} | what is {w} in
        reverse | what is the word {w} spelled backwards | how do you write {w} backwards | how do you
        spell {w} backwards | what do you get if you reverse {w} | what does {w} look like backwards |
        {w} backwards | {w} reversed | how does {w} read backwards
        """
    ),
    unseen=forms(
        """
        Take the word {w} and reverse it. | What would {w} be if written backwards? | I need the reverse
        of the word {w}. | The word {w}, reversed, is?
        """
    ),
)

COUNT = Phrasings(
    orders=forms(
        """
        count the letter {c} in {w} | count the letter {c} in the word {w} | count the {c}s in {w} |
        count the {c}'s in {w} | count how many {c} are in {w} | count how often {c} occurs in {w} |
        count how many times {c} occurs in {w} | count the number of {c} in {w} | count the occurrences
        of {c} in {w} | tell me how many {c} are in {w} | tell me how often {c} is in {w} | tell me how
        many times the letter {c} appears in {w} | find the number of {c} in the word {w} | say how many
        times {c} appears in {w} | give me the number of {c}s in {w}
        """
    ),
    questions=forms(
        """
        how many {c} are in {w} | how many {c} are there in {w} | how many {c}s are in {w} | how many
        {c}'s are in {w} | how many {c}'s are there in {w} | how many {c} does {w} have | how many {c}s
        does the word {w} have | how many {c}'s in {w} | how many {c} in {w} | how many times does {c}
        occur in {w} | how many times does the letter {c} occur in {w} | how many times does {c} appear
        in the word {w} | how often does {c} occur in {w} | how often does the letter {c} appear in {w} |
        how many letters {c} are in {w} | how many times is the letter {c} in {w} | what is the number of
        {c} in {w} | in the word {w}, how many {c} are there | how many of the letters in {w} are {c}
        """
    ),
    unseen=forms(
        """
        Look at the word {w}. How many {c} does it have? | How many times can you find {c} in {w}? | The
        letter {c} occurs how many times in {w}? | In {w}, how often is there the letter {c}?
        """
    ),
)

LENGTH = Phrasings(
    orders=forms(
        """
        count the letters in {w} | count the letters of {w} | count the letters of the word {w} | count
        the number of letters in {w} | tell me how many letters {w} has | tell me how many letters are in
        {w} | count how many letters are in the word {w} | give me the number of letters in {w} | tell me
        the length of {w} | give me the length of the word {w}
        """
    ),
    questions=forms(
        """
        how many letters are in {w} | how many letters are there in {w} | how many letters are in the
        word {w} | how many letters does {w} have | how many letters does the word {w} have | how long is
        {w} | how long is the word {w} | what is the length of {w} | what is the length of the word {w} |
        how many letters in {w} | what is the number of letters in {w} | how many characters does {w}
        have | {w} has how many letters | how many characters are in {w}
        """
    ),
    unseen=("How many letters do I need to write {w}?", "The word {w}, how many letters is it?"),
)


def _word(rng: Random, evaluation: bool) -> str:
    word = some_word(rng, evaluation)
    style = rng.random()
    return word.capitalize() if style < 0.06 else word.upper() if style < 0.08 else word


def spell(rng: Random, evaluation: bool, unseen: bool) -> Example:
    """Letters of a word, separated by hyphens."""
    word = _word(rng, evaluation)
    return single("spell", phrase(rng, SPELL, unseen, w=quoted(rng, word)), "-".join(word))


def reverse_answer(word: str) -> str:
    """Words the answer to a request to reverse."""
    return f"{word} reversed is {word[::-1]}."


def count_answer(word: str, letter: str) -> str:
    """Words the answer to a request to count a letter."""
    seen, shown = 0, []
    for symbol in word:
        hit = symbol.lower() == letter
        seen += hit
        shown.append(f"{symbol}{seen}" if hit else symbol)
    return f"{'-'.join(shown)}. The letter {letter} occurs {_times(seen)}."


def length_answer(word: str) -> str:
    """Words the answer to a request to count all letters."""
    shown = "-".join(f"{symbol}{place}" for place, symbol in enumerate(word, 1))
    return f"{shown}. The word has {len(word)} letters."


def reverse(rng: Random, evaluation: bool, unseen: bool) -> Example:
    """A word read from its end."""
    word = _word(rng, evaluation)
    return single("reverse", phrase(rng, REVERSE, unseen, w=quoted(rng, word)), reverse_answer(word))


def _times(number: int) -> str:
    return "1 time" if number == 1 else f"{number} times"


def count(rng: Random, evaluation: bool, unseen: bool) -> Example:
    """How often a letter occurs in a word, shown on the spelled word."""
    word = _word(rng, evaluation)
    letters = [letter for letter in word.lower() if letter.isalpha()]
    repeated = [letter for letter in letters if letters.count(letter) > 1]
    if repeated and rng.random() < 0.5:
        letter = rng.choice(repeated)
    else:
        letter = rng.choice(letters if rng.random() < 0.8 else "abcdefghijklmnopqrstuvwxyz")
    typed = letter.upper() if rng.random() < 0.1 else letter
    user = phrase(rng, COUNT, unseen, w=quoted(rng, word), c=quoted(rng, typed, 0.3))
    return single("count", user, count_answer(word, letter))


def length(rng: Random, evaluation: bool, unseen: bool) -> Example:
    """How many letters a word has, shown on the spelled word."""
    word = _word(rng, evaluation)
    user = phrase(rng, LENGTH, unseen, w=quoted(rng, word))
    return single("count", user, length_answer(word))
