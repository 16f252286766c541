"""The incremental detokenizer against decoding everything at once."""

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from quire.engine.detokenizer import IncrementalDetokenizer
from quire.loading.tokenizer import Tokenizer

TEXTS = [
    "hello world, hello there",
    "naïve café",
    "你好 世界",
    "🙂👩‍👩‍👧 family",
    "  two  spaces ",
    "\n\ttab",
]


@functools.cache
def byte_level():
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS * 3, trainer)
    return Tokenizer(backend)


@functools.cache
def byte_fallback():
    letters = "▁abcdefghijklmnopqrstuvwxyz,好"
    pieces = ["<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *letters, "he", "▁he", "▁▁"]
    backend = Backend(
        models.BPE(
            {piece: i for i, piece in enumerate(pieces)},
            [("h", "e"), ("▁", "he"), ("▁", "▁")],
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    return Tokenizer(backend)


@functools.cache
def metaspace():
    backend = Backend(
        models.Unigram([("<unk>", 0.0), ("▁", -2.0), ("▁hello", -1.0), ("wor", -1.5), ("ld", -1.6)], 0)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return Tokenizer(backend)


MAKERS = [byte_level, byte_fallback]


def stream(tokenizer, ids, **kwargs):
    """Pieces, the flush last; what was given out is checked to be a beginning of the whole."""
    detokenizer = IncrementalDetokenizer(tokenizer, **kwargs)
    pieces = [detokenizer.push(token_id) for token_id in ids]
    return [*pieces, detokenizer.flush()]


@pytest.mark.parametrize("make", MAKERS)
@settings(deadline=None, max_examples=250)
@given(text=st.text(max_size=30))
def test_any_text_comes_out_as_decoded_at_once(make, text):
    tokenizer = make()
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("make", MAKERS)
@settings(deadline=None, max_examples=250)
@given(
    parts=st.lists(
        st.one_of(st.text(" abche好🙂\ufffd", max_size=6), st.sampled_from(["<s>", "</s>"])), max_size=8
    )
)
@pytest.mark.parametrize("skip", [True, False])
def test_special_tokens_among_text_come_out_as_decoded_at_once(make, skip, parts):
    tokenizer = make()
    ids = [i for part in parts for i in tokenizer.encode(part, add_special_tokens=False)]
    assert "".join(stream(tokenizer, ids, skip_special_tokens=skip)) == tokenizer.decode(
        ids, skip_special_tokens=skip
    )


@settings(deadline=None, max_examples=250)
@given(ids=st.lists(st.integers(0, 339), max_size=40))
def test_any_ids_of_a_byte_level_tokenizer_come_out_as_decoded_at_once(ids):
    tokenizer = byte_level()
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("make", MAKERS)
def test_a_character_over_several_tokens_comes_with_its_last(make):
    tokenizer = make()
    ids = tokenizer.encode("a🙂", add_special_tokens=False)
    pieces = stream(tokenizer, ids)
    assert [piece for piece in pieces if piece][-1] == "🙂"
    assert "\ufffd" not in "".join(pieces)
    assert len(ids) > 3


@pytest.mark.parametrize("make", MAKERS)
def test_ordinary_text_is_not_held_back(make):
    tokenizer = make()
    ids = tokenizer.encode("hello there", add_special_tokens=False)
    pieces = stream(tokenizer, ids)
    assert pieces[-1] == ""
    assert all(pieces[1:-1])


@pytest.mark.parametrize("make", MAKERS)
def test_an_unfinished_character_is_flushed_at_the_end(make):
    tokenizer = make()
    ids = tokenizer.encode("a🙂", add_special_tokens=False)[:-1]
    pieces = stream(tokenizer, ids)
    assert "\ufffd" in pieces[-1]
    assert "".join(pieces) == tokenizer.decode(ids)


def test_the_first_space_is_decided_by_the_context():
    tokenizer = byte_fallback()
    prompt = tokenizer.encode("hello", add_special_tokens=False)
    ids = tokenizer.encode("he said", add_special_tokens=False)
    assert "".join(stream(tokenizer, ids)) == "he said"
    assert "".join(stream(tokenizer, ids, context=prompt)) == " he said"
    assert tokenizer.decode(prompt + ids) == "hello he said"


def test_a_context_that_would_be_cut_inside_a_character_is_taken_longer():
    tokenizer = byte_fallback()
    prompt = tokenizer.encode("a🙂é", add_special_tokens=False)  # the last four tokens begin inside 🙂
    ids = tokenizer.encode("é", add_special_tokens=False)[1:]
    assert "".join(stream(tokenizer, ids, context=prompt)) == "é"


def _byte_id(tokenizer, byte):
    return [next(i for i in range(2, 258) if tokenizer.id_to_piece(i) == _byte_char(byte))]


def _byte_char(byte):
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return (
        chr(byte) if byte in visible else chr(256 + [b for b in range(256) if b not in visible].index(byte))
    )


def test_metaspace_without_byte_fallback():
    tokenizer = metaspace()
    ids = tokenizer.encode("hello world hello")
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids) == "hello world hello"


@pytest.mark.parametrize("make", MAKERS)
def test_ids_without_text_give_none_and_do_not_disturb(make):
    tokenizer = make()
    ids = tokenizer.encode("hello he", add_special_tokens=False)
    padded = [10**6, ids[0], 0, *([1] * 100), *ids[1:], 10**6]
    assert "".join(stream(tokenizer, padded)) == tokenizer.decode(ids) == "hello he"


def test_a_run_of_broken_bytes_is_given_out_in_the_end_and_costs_no_more():
    tokenizer = byte_level()
    calls = []

    class Counting:
        def decode(self, token_ids, *, skip_special_tokens=True):
            calls.append(len(token_ids))
            return tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    broken = _byte_id(tokenizer, 0xE4)
    pieces = stream(Counting(), broken * 1000)
    assert "".join(pieces) == tokenizer.decode(broken * 1000) == "\ufffd" * 1000
    assert max(calls) <= 100
    assert sum(map(bool, pieces)) > 20


def test_special_tokens_without_spaces_between_them():
    backend = Backend(models.WordLevel({"a": 0, "b": 1, "<x>": 2, "<y>": 3}, unk_token="a"))
    backend.add_special_tokens(["<x>", "<y>"])
    tokenizer = Tokenizer(backend)  # without a decoder, tokens are joined by spaces
    ids = [0, 2, 3, 1, 3, 2]
    kept = {"skip_special_tokens": False}
    assert "".join(stream(tokenizer, ids, **kept)) == "a <x> <y> b <y> <x>"
    close = stream(tokenizer, ids, special_tokens=tokenizer.added_tokens, **kept)
    assert "".join(close) == "a <x><y> b <y><x>"


def test_the_window_does_not_grow():
    tokenizer = byte_level()
    detokenizer = IncrementalDetokenizer(tokenizer)
    for token_id in tokenizer.encode("hello there 🙂 " * 200, add_special_tokens=False):
        detokenizer.push(token_id)
        assert len(detokenizer._window) < 20
