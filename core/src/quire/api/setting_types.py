"""What values of the settings are read from: sizes with suffixes, paths, dtypes by any of their names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator

from quire.api.batch import DTypeName

_SUFFIXES = {
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "K": 2**10,
    "M": 2**20,
    "G": 2**30,
}


def _parse_size(value: object) -> object:
    """Read "16k" (16000), "16K" or "16Ki" (16384), "4GiB" and the like; leave anything else alone."""
    if not isinstance(value, str):
        return value
    text = value.strip().removesuffix("B").removesuffix("b")
    for suffix in sorted(_SUFFIXES, key=len, reverse=True):
        key = suffix if len(suffix) == 1 else suffix.capitalize()
        if text.endswith(key) or text.endswith(suffix):
            number = text[: -len(suffix)].strip()
            try:
                return int(float(number) * _SUFFIXES[suffix])
            except ValueError:
                return value
    return text


def _parse_dtype(value: object) -> object:
    """Take torch dtypes and the aliases "half" and "float" by name."""
    name = str(value).removeprefix("torch.")
    return {"half": "float16", "float": "float32", "double": "float64"}.get(name, name)


def _parse_kv_cache_dtype(value: object) -> object:
    """Say what to do instead of naming a dtype that a model may have."""
    name = str(value).removeprefix("torch.")
    if name in get_args(DTypeName):
        raise ValueError(
            "the KV cache has the model's dtype by default: set dtype, and leave kv_cache_dtype out"
        )
    return name


def _parse_path(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


Size = Annotated[int, BeforeValidator(_parse_size)]
PathOrName = Annotated[str, BeforeValidator(_parse_path)]
DTypeSetting = Annotated[
    Literal["auto", "bfloat16", "float16", "float32", "float64"], BeforeValidator(_parse_dtype)
]

KVCacheDTypeSetting = Annotated[
    Literal["auto", "fp8", "fp8_e4m3", "int8"], BeforeValidator(_parse_kv_cache_dtype)
]
