"""How many characters a token can stand for: never too few."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from quire.loading.text_bounds import max_chars_per_token
from quire.loading.tokenizer import Tokenizer
from quire_models import tiny

ALPHABET = [
    "a",
    "b",
    " ",
    "  ",
    "\n",
    "é",
    "e\u0301",
    "\u03b1\u0313\u0300\u0345",
    "🙂",
    "你",
    "\u0000",
    "<s>",
]


def byte_level() -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(["ab ab  abab aaaaaaaa"] * 5, trainer)
    backend.add_special_tokens(["<s>"])
    return backend


def byte_fallback() -> Backend:
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "ab", "▁ab"]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    backend = Backend(
        models.BPE(
            vocabulary, [("a", "b"), ("▁", "ab")], unk_token="<unk>", byte_fallback=True, fuse_unk=True
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return backend


def with_nfc() -> Backend:
    backend = byte_level()
    backend.normalizer = normalizers.NFC()
    return backend


@pytest.mark.parametrize(("make", "factor"), [(byte_level, 1), (byte_fallback, 1), (with_nfc, 4)])
def test_no_text_is_longer(make: Callable[[], Backend], factor: int) -> None:
    backend = make()
    bound = max_chars_per_token(backend)
    assert bound == factor * max(map(len, backend.get_vocab()))
    rng = random.Random(1)
    for _ in range(500):
        text = "".join(rng.choices(ALPHABET, k=rng.randrange(1, 40)))
        assert len(text) <= bound * len(backend.encode(text, add_special_tokens=False).ids)
    for character in ALPHABET:
        text = character * 1000
        assert len(text) <= bound * len(backend.encode(text, add_special_tokens=False).ids)


def changed(**parts: object) -> Backend:
    backend = byte_level()
    for name, part in parts.items():
        setattr(backend, name, part)
    return backend


def with_greedy_token() -> Backend:
    backend = byte_level()
    backend.add_tokens([AddedToken("<mask>", lstrip=True)])
    return backend


def with_few_letters() -> Backend:
    backend = Backend(models.BPE({"a": 0, "<unk>": 1}, [], unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    return backend


LOSSY: dict[str, Callable[[], Backend]] = {
    "words": lambda: Backend(models.WordLevel({"<unk>": 0}, unk_token="<unk>")),
    "letters": with_few_letters,
    "greedy token": with_greedy_token,
    "white space": lambda: changed(
        pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel()])
    ),
    "removed": lambda: changed(
        pre_tokenizer=pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(" +"), "removed"), pre_tokenizers.ByteLevel()]
        )
    ),
    "stripped": lambda: changed(normalizer=normalizers.Strip()),
    "collapsed": lambda: changed(normalizer=normalizers.Replace(Regex(" +"), " ")),
    "shortened": lambda: changed(normalizer=normalizers.Replace("  ", " ")),
}


@pytest.mark.parametrize("name", LOSSY)
def test_where_text_may_vanish_nothing_is_said(name: str) -> None:
    assert max_chars_per_token(LOSSY[name]()) is None


def test_the_small_model_has_a_bound() -> None:
    tokenizer = Tokenizer.from_folder(tiny.__path__[0])
    assert tokenizer.max_chars_per_token == max(map(len, tokenizer.vocabulary()))
