"""From a model's name to a local folder: a path, a plugin's answer, or the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from quire.api.errors import ModelNotFoundError
from quire.loading.hf_config import CONFIG_NAME

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.txt")


def resolve_model_folder(name: str, revision: str | None, ask_plugins: Callable[[str], Path | None]) -> Path:
    """The folder that holds a model's files.

    Args:
        name: a folder with a config.json, a name that a plugin resolves, or a hub id ("org/name").
        revision: of a hub id.
        ask_plugins: gives a folder, or None when no plugin knows the name.

    Raises:
        ModelNotFoundError: nothing answers to the name.
    """
    folder = Path(name).expanduser()
    if (folder / CONFIG_NAME).is_file():
        return folder
    if folder.is_file():
        raise ModelNotFoundError(
            f"model {name!r} is a file: give the folder that holds config.json and the weights"
        )
    resolved = ask_plugins(name)
    if resolved is not None:
        return resolved
    if folder.is_dir():
        raise ModelNotFoundError(f"{folder} is not a model folder: it has no {CONFIG_NAME}")
    if not _HUB_ID.fullmatch(name):
        raise ModelNotFoundError(f"model {name!r} is no folder, and no plugin resolves it: check the path")
    return _download(name, revision)


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_HUB_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelNotFoundError(
            f"model {name!r} is no folder, no plugin resolves it, and the hub did not give it "
            f"({type(error).__name__}: {cause}): check the name, or download it and give the folder"
        ) from error
