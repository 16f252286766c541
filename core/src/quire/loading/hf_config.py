"""Reads a model folder's config.json, and the keys in it that core itself needs."""

from __future__ import annotations

import json
from pathlib import Path

from quire.api.batch import DTypeName
from quire.api.errors import CheckpointError, ModelNotFoundError
from quire.api.hf_config import HFConfig, optional_str, optional_strings

CONFIG_NAME = "config.json"


def read_hf_config(folder: Path) -> dict[str, object]:
    """The parsed config.json of a model folder.

    Raises:
        ModelNotFoundError: the folder or its config.json does not exist.
        CheckpointError: config.json is not a JSON object.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        reason = f"it has no {CONFIG_NAME}" if folder.is_dir() else "there is no such folder"
        raise ModelNotFoundError(f"{folder} is not a model folder: {reason}")
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}; fetch the file again") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path} holds a {type(parsed).__name__}; it must be a JSON object")
    return parsed


def architectures_of(config: HFConfig) -> tuple[str, ...]:
    """The architectures that a config.json names, at least one; raises CheckpointError when it names none."""
    names = optional_strings(config, "architectures")
    if not names:
        raise CheckpointError(
            'config.json: architectures is missing or empty; add the class name, e.g. ["LlamaForCausalLM"]'
        )
    return names


def checkpoint_dtype(config: HFConfig) -> DTypeName | None:
    """The dtype that a config.json declares (`dtype`, or the older `torch_dtype`), or None.

    Raises:
        CheckpointError: it declares something else than a model dtype.
    """
    name = optional_str(config, "dtype", default=optional_str(config, "torch_dtype", default=""))
    known: dict[str, DTypeName] = {
        "bfloat16": "bfloat16",
        "float16": "float16",
        "float32": "float32",
        "float64": "float64",
        "half": "float16",
        "float": "float32",
        "double": "float64",
    }
    if name == "":
        return None
    plain = name.removeprefix("torch.")
    if plain not in known:
        raise CheckpointError(f"config.json: dtype {name!r} is none of bfloat16, float16, float32, float64")
    return known[plain]
