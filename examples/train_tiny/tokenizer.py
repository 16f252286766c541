"""Builds the tokenizer: 256 bytes, and the words of the request phrasings as single tokens.

A word that is not in the vocabulary is spelled byte by byte, which makes spelling, reversing, counting and
copying unseen words easy for a small network. Digits stand alone. There are no merges: a piece of text is
either one token as a whole (``ignore_merges``) or a row of bytes, so every text survives a round trip.
"""

from __future__ import annotations

from collections import Counter
from random import Random

from data import training_example
from example import Example
from lexicon import CAPITALS, NAMES, UNKNOWN_PLACES, WORDS
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
PIECES = r" ?\p{L}+|\p{N}|[^\s\p{L}\p{N}]|\s"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def _byte_alphabet() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _splitter() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _common_pieces(number: int, seed: int, samples: int) -> list[str]:
    """Finds the most common words of the corpus, without the words that are to be spelled."""
    rng, splitter, counts = Random(seed), _splitter(), Counter[str]()
    spelled = {word.lower() for word in (*WORDS, *NAMES, *UNKNOWN_PLACES)}
    for _ in range(samples):
        text = render(training_example(rng)).replace(START, "").replace(STOP, "")
        for piece, _ in splitter.pre_tokenize_str(text):
            if len(piece) > 1 and piece.lstrip("Ġ").lower() not in spelled:
                counts[piece] += 1
    places = [f"Ġ{part}" for pair in CAPITALS.items() for place in pair for part in place.split()]
    fixed = list(dict.fromkeys(["user", "assistant", "system", *places]))
    rest = [piece for piece, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    return (fixed + [piece for piece in rest if piece not in set(fixed)])[:number]


def render(example: Example) -> str:
    """Writes an example as the text that the network sees."""
    if example.text:
        return example.text
    text = f"{START}system\n{example.system}{STOP}\n" if example.system else ""
    for turn in example.turns:
        text += f"{START}user\n{turn.user}{STOP}\n{START}assistant\n{turn.answer}{STOP}\n"
    return text


def build_tokenizer(vocab_size: int = 1024, seed: int = 0, samples: int = 30000) -> Tokenizer:
    """Builds the tokenizer from the generated corpus."""
    special = [END, START, STOP]
    letters = _byte_alphabet()
    words = _common_pieces(vocab_size - len(special) - len(letters), seed, samples)
    vocabulary = {piece: index for index, piece in enumerate([*special, *letters, *words])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = _splitter()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return tokenizer


def _encode_drill(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[bool]]:
    """Encodes lines such as "12 + 34 = 46" and ``{"sum": 46}``, of which only the results are learned."""
    ids: list[int] = []
    learned: list[bool] = []
    for line in text.splitlines(keepends=True):
        question, sign, result = line.partition("=" if "=" in line else '"sum":')
        for part, wanted in ((question + sign, False), (result, True)):
            tokens = tokenizer.encode(part).ids
            ids += tokens
            learned += [wanted] * len(tokens)
    return ids, learned


def encode_example(tokenizer: Tokenizer, example: Example) -> tuple[list[int], list[bool]]:
    """Encodes an example and says which tokens are to be learned: the answers, or a whole plain text."""
    if example.skill == "drill":
        return _encode_drill(tokenizer, example.text)
    if example.text:
        ids = tokenizer.encode(example.text + END).ids
        return ids, [True] * len(ids)
    head = f"{START}system\n{example.system}{STOP}\n" if example.system else ""
    ids = tokenizer.encode(head).ids
    learned = [False] * len(ids)
    for turn in example.turns:
        asked = tokenizer.encode(f"{START}user\n{turn.user}{STOP}\n{START}assistant\n").ids
        answered = tokenizer.encode(f"{turn.answer}{STOP}").ids
        newline = tokenizer.encode("\n").ids
        ids += asked + answered + newline
        learned += [False] * len(asked) + [True] * len(answered) + [False] * len(newline)
    return ids, learned
