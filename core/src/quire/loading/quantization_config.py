"""What a model folder says of its quantization, wherever its tool wrote it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from quire.api.errors import QuantizationError
from quire.api.hf_config import HFConfig

CONFIG_KEYS = ("quantization_config", "compression_config")
"""Keys of config.json, the older spelling of compressed-tensors last."""

LEGACY_FILES: Mapping[str, str] = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files beside config.json that older tools wrote, with the label where their keys do not tell."""

_TELLING_KEYS: Mapping[str, str] = {
    "config_groups": "compressed-tensors",
    "desc_act": "gptq",
    "zero_point": "awq",
    "w_bit": "awq",
    "wbits": "squeezellm",
}
"""Keys that only one method's tools write."""


def read_quantization_config(folder: Path, hf_config: HFConfig) -> Mapping[str, object] | None:
    """The quantization_config of a model folder with its label `quant_method`; None for 16-bit checkpoints.

    Raises:
        QuantizationError: it is malformed, or has no label and none can be told.
    """
    for key in CONFIG_KEYS:
        value = hf_config.get(key)
        if value is not None:
            return _labelled(value, f"{folder}: config.json: {key}", None)
    for name, label in LEGACY_FILES.items():
        path = folder / name
        if path.is_file():
            try:
                value = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError) as error:
                raise QuantizationError(f"{path} is not valid JSON: {error}; fetch the file again") from error
            return _labelled(value, str(path), label)
    return None


def _labelled(value: object, place: str, label: str | None) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise QuantizationError(f"{place} is a {type(value).__name__}; it must be a JSON object")
    config = {str(key): entry for key, entry in value.items()}
    found = config.get("quant_method") or _guess(config) or label
    if not isinstance(found, str):
        raise QuantizationError(
            f"{place} has quant_method={config.get('quant_method')!r}; name the method, e.g. gptq or awq"
        )
    return {**config, "quant_method": found}


def _guess(config: Mapping[str, object]) -> str | None:
    """The label of a config that has none, by the keys that only one tool writes."""
    return next((label for key, label in _TELLING_KEYS.items() if key in config), None)
