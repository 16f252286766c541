"""Reads what a tokenizer's folder says beside tokenizer.json: special tokens, chat templates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from quire.api.errors import TokenizerError

CONFIG_NAME = "tokenizer_config.json"
SPECIAL_TOKENS_NAME = "special_tokens_map.json"
TEMPLATE_NAME = "chat_template.jinja"
TEMPLATES_FOLDER = "additional_chat_templates"

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_EXTRA = ("additional_special_tokens", "extra_special_tokens")
_ADDED_TOKEN_KEYS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(slots=True, frozen=True)
class TokenizerConfig:
    """What a tokenizer's folder says beside tokenizer.json.

    Attributes:
        special_tokens: "bos_token" and the like to their text.
        extra_special_tokens: special tokens without a name.
        added_tokens: tokens that tokenizer.json may lack, in the order of their ids.
        chat_template: a template, named templates, or None.
    """

    special_tokens: Mapping[str, str] = field(default_factory=dict)
    extra_special_tokens: tuple[str, ...] = ()
    added_tokens: tuple[AddedToken, ...] = ()
    chat_template: str | Mapping[str, str] | None = None


def read_tokenizer_config(folder: Path) -> TokenizerConfig:
    """What a folder says of its tokenizer beside tokenizer.json; every file may be missing.

    Raises:
        TokenizerError: a file is malformed.
    """
    stated = {**_read_json(folder / SPECIAL_TOKENS_NAME), **_read_json(folder / CONFIG_NAME)}
    special = {name: text for name in _NAMED if (text := _token_text(stated.get(name), name)) is not None}
    extras: list[str] = []
    for name in _EXTRA:
        value = stated.get(name)
        entries = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        extras += [text for entry in entries if (text := _token_text(entry, name)) is not None]
    return TokenizerConfig(
        special_tokens=special,
        extra_special_tokens=tuple(dict.fromkeys(extras)),
        added_tokens=_added_tokens(stated.get("added_tokens_decoder")),
        chat_template=_read_templates(folder, stated.get("chat_template")),
    )


def _read_json(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} cannot be read: {error}; fetch the file again") from error
    if not isinstance(parsed, dict):
        raise TokenizerError(f"{path} holds a {type(parsed).__name__}; it must be a JSON object")
    return parsed


def _token_text(value: object, name: str) -> str | None:
    if value is None:
        return None
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise TokenizerError(f"{name} is {value!r} in the tokenizer's files; it must be a token's text")
    return text or None


def _added_tokens(value: Any) -> tuple[AddedToken, ...]:
    if value is None:
        return ()
    try:
        entries = sorted((int(token_id), dict(entry)) for token_id, entry in dict(value).items())
        return tuple(
            AddedToken(**{key: entry[key] for key in _ADDED_TOKEN_KEYS if key in entry})
            for _, entry in entries
        )
    except (TypeError, ValueError) as error:
        raise TokenizerError(f"{CONFIG_NAME}: added_tokens_decoder is malformed: {error}") from error


def _read_templates(folder: Path, value: object) -> str | dict[str, str] | None:
    """chat_template.jinja and its named companions win over tokenizer_config.json."""
    templates: dict[str, str] = {}
    if isinstance(value, str):
        templates["default"] = value
    elif isinstance(value, list | dict):
        pairs = (
            value.items()
            if isinstance(value, dict)
            else [
                (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
                for entry in value
            ]
        )
        for name, text in pairs:
            if not isinstance(name, str) or not isinstance(text, str):
                raise TokenizerError(f"{CONFIG_NAME}: chat_template's entries need a name and a template")
            templates[name] = text
    elif value is not None:
        raise TokenizerError(
            f"{CONFIG_NAME}: chat_template is a {type(value).__name__}; it must be text or a list"
        )
    files = {"default": folder / TEMPLATE_NAME}
    if (folder / TEMPLATES_FOLDER).is_dir():
        files |= {path.stem: path for path in sorted((folder / TEMPLATES_FOLDER).glob("*.jinja"))}
    for name, path in files.items():
        if path.is_file():
            try:
                templates[name] = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise TokenizerError(f"{path} cannot be read: {error}; fetch the file again") from error
    return templates["default"] if set(templates) == {"default"} else templates or None
