"""Reads generation_config.json: end-of-sequence ids and the sampling values that a model recommends."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from quire.api.errors import CheckpointError
from quire.api.request import SamplingParams

GENERATION_CONFIG_NAME = "generation_config.json"

_FLOATS = ("temperature", "top_p", "min_p", "repetition_penalty")
_INTS = {"top_k": "top_k", "max_new_tokens": "max_tokens"}


@dataclass(slots=True, frozen=True)
class GenerationConfig:
    """What a model folder says of generation.

    Attributes:
        eos_token_ids: of generation_config.json, then of config.json, each id once.
        bos_token_id, pad_token_id: None where neither file names one.
        sampling: SamplingParams fields that the file states. As in vLLM `do_sample` is not read.
    """

    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    sampling: Mapping[str, int | float] = field(default_factory=dict)

    def default_sampling_params(self) -> SamplingParams:
        """SamplingParams with the recommended values; raises SamplingParamsError out of bounds."""
        return SamplingParams(**self.sampling)  # type: ignore[arg-type]  # checked field by field when read


def load_generation_config(folder: Path, hf_config: Mapping[str, object] | None = None) -> GenerationConfig:
    """Read a folder's generation_config.json, which may be missing; config.json's ids are merged in.

    Args:
        folder: a model folder.
        hf_config: its parsed config.json, where there is one.

    Raises:
        CheckpointError: the file is not a JSON object, or a value is of the wrong type.
    """
    stated = _read(folder / GENERATION_CONFIG_NAME)
    config = hf_config or {}
    eos = dict.fromkeys(_token_ids(stated, "eos_token_id") + _token_ids(config, "eos_token_id"))
    return GenerationConfig(
        eos_token_ids=tuple(eos),
        bos_token_id=_first_id("bos_token_id", stated, config),
        pad_token_id=_first_id("pad_token_id", stated, config),
        sampling=_sampling(stated),
    )


def _read(path: Path) -> Mapping[str, object]:
    if not path.is_file():
        return {}
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}; fetch the file again, or delete it"
        ) from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path} holds a {type(parsed).__name__}; it must be a JSON object")
    return parsed


def _token_ids(config: Mapping[str, object], key: str) -> list[int]:
    value = config.get(key)
    if value is None:
        return []
    ids: list[int] = []
    for token_id in value if isinstance(value, list) else [value]:
        if isinstance(token_id, bool) or not isinstance(token_id, int) or token_id < -1:
            raise CheckpointError(f"{key} is {value!r}; it must be a token id or a list of token ids")
        if token_id >= 0:  # some exporters write -1 for "none"
            ids.append(token_id)
    return ids


def _first_id(key: str, *configs: Mapping[str, object]) -> int | None:
    for config in configs:
        ids = _token_ids(config, key)
        if ids:
            return ids[0]
    return None


def _sampling(stated: Mapping[str, object]) -> dict[str, int | float]:
    values: dict[str, int | float] = {}
    for key in _FLOATS:
        value = stated.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise CheckpointError(f"{GENERATION_CONFIG_NAME}: {key} is {value!r}; it must be a finite number")
        values[key] = float(value)
    for key, name in _INTS.items():
        value = stated.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise CheckpointError(f"{GENERATION_CONFIG_NAME}: {key} is {value!r}; it must be an integer")
        values[name] = value
    return values
