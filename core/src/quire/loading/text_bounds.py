"""How long a text can be for the tokens that it makes."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

NFC_FACTOR = 4
"""No character has a canonical decomposition into more."""
_LOSSLESS_PRE_TOKENIZERS = frozenset({"ByteLevel", "Metaspace", "Digits"})
_LOSSLESS_NORMALIZERS = frozenset({"ByteLevel", "Lowercase", "NFD", "Prepend"})
_BYTE_TOKENS = frozenset(f"<0x{byte:02X}>" for byte in range(256))


def max_chars_per_token(backend: Backend) -> int | None:
    """The most characters of a text that one of its tokens can stand for; O(number of tokens).

    None where a token can stand for any number of them, or where that is not known: white space is dropped,
    or a whole word may become one unknown token.
    """
    vocabulary = backend.get_vocab(with_added_tokens=True)
    added = backend.get_added_tokens_decoder().values()
    if any(token.lstrip or token.rstrip for token in added):
        return None  # such a token takes the white space around it
    splits = _parts(backend.pre_tokenizer, "pretokenizers")
    steps = _parts(backend.normalizer, "normalizers")
    if not _knows_every_character(backend, vocabulary, [*splits, *steps]):
        return None
    if not all(_keeps_text(split) for split in splits):
        return None
    factor = 1
    for step in steps:
        if step["type"] == "NFC":
            factor = NFC_FACTOR
        elif step["type"] not in _LOSSLESS_NORMALIZERS and not _is_growing_replace(step):
            return None
    return factor * max(map(len, vocabulary), default=1)


def _knows_every_character(
    backend: Backend, vocabulary: Container[str], parts: list[Mapping[str, Any]]
) -> bool:
    """Whether no character is dropped or becomes part of an unknown token."""
    if not isinstance(backend.model, BPE):
        return False
    if any(part["type"] == "ByteLevel" for part in parts):
        return all(character in vocabulary for character in ByteLevel.alphabet())
    return bool(backend.model.byte_fallback) and all(token in vocabulary for token in _BYTE_TOKENS)


def _parts(component: Any, name: str) -> list[Mapping[str, Any]]:
    """The steps of a normalizer or pre-tokenizer as tokenizer.json writes them."""
    return [] if component is None else _flat(json.loads(component.__getstate__()), name)


def _flat(part: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    return (
        [step for each in part[name] for step in _flat(each, name)] if part["type"] == "Sequence" else [part]
    )


def _keeps_text(split: Mapping[str, Any]) -> bool:
    if split["type"] in ("Split", "Punctuation"):
        return bool(split["behavior"] != "Removed")
    return split["type"] in _LOSSLESS_PRE_TOKENIZERS


def _is_growing_replace(step: Mapping[str, Any]) -> bool:
    """Whether a step replaces a string by one that is no shorter."""
    text = step["pattern"].get("String") if step["type"] == "Replace" else None
    return text is not None and len(step["content"]) >= len(text)
