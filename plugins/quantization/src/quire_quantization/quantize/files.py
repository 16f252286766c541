"""Small files: written whole or not at all, and those that go with a model from folder to folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from quire_quantization.quantize.shard_file import full_disk_explained
from quire_quantization.quantize.source import SourceModel

_PATTERNS = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*", "NOTICE*")
_OWN = ("config.json", "model.safetensors.index.json", "pytorch_model.bin.index.json")


def write_json(path: Path, value: object) -> None:
    """Write a JSON file so that after a crash there is the old one or the new one.

    Raises:
        CapacityError, CheckpointError: it cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    with full_disk_explained(path):
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=2, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def copy_companions(source: SourceModel, folder: Path) -> None:
    """Copy what is neither config nor weights: tokenizer, chat template, generation settings, licence.

    Raises:
        CapacityError, CheckpointError: they cannot be written.
    """
    for pattern in _PATTERNS:
        for path in source.folder.glob(pattern):
            if path.is_file() and path.name not in _OWN:
                with full_disk_explained(folder / path.name):
                    shutil.copyfile(path, folder / path.name)
