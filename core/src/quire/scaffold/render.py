"""Filling in templates and writing them out.

Templates are real files that work as they are, for a plugin called "my-" and the kind; rendering renames
it. Only pyproject.toml, which all kinds share, holds words in capitals to be filled in.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Iterator, Mapping
from importlib.resources.abc import Traversable
from pathlib import Path

from quire.api.errors import ConfigError
from quire.scaffold.kinds import KINDS
from quire.scaffold.names import ScaffoldNames, derive_names

COMMON = "common"
_RENAMED_FILES = {"gitignore": ".gitignore"}
"""Files that tools would obey where the templates lie, and their names in a distribution."""


def render_distribution(kind: str, names: ScaffoldNames, core_version: str) -> dict[str, str]:
    """The files of a new distribution: relative path, with "/", to text.

    Args:
        kind: a key of KINDS.
        names: what it is called.
        core_version: the oldest quire-core that it works with.
    """
    root = importlib.resources.files("quire.scaffold") / "templates"
    texts = {**_read(root / COMMON), **_read(root / kind)}
    replacements = {**_renamings("plugin", names), **_renamings(kind, names), **_facts(kind, core_version)}
    # One pass, the longest word first: what was filled in is never looked at again.
    words = sorted(replacements, key=len, reverse=True)
    pattern = re.compile("|".join(re.escape(word) for word in words))

    def fill(text: str) -> str:
        return pattern.sub(lambda match: replacements[match[0]], text)

    return {fill(path): fill(text) for path, text in sorted(texts.items())}


def write_distribution(files: Mapping[str, str], folder: Path) -> None:
    """Write the files into a folder, which may exist if it is empty.

    Raises:
        ConfigError: there is something in it already, or it cannot be written.
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(
                f"{folder} exists already and nothing is overwritten: move it away, or give another NAME or --output"
            )
        for path, text in files.items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {folder}: {error.strerror or error}") from None


def _renamings(kind: str, names: ScaffoldNames) -> dict[str, str]:
    template = derive_names(f"quire-my-{kind}")
    return {
        template.distribution: names.distribution,
        template.module: names.module,
        template.plugin: names.plugin,
        template.identifier: names.identifier,
        template.prefix: names.prefix,
    }


def _facts(kind: str, core_version: str) -> dict[str, str]:
    return {
        "CORE_VERSION": core_version.partition("+")[0],
        "DESCRIPTION": KINDS[kind].description,
        "TEST_REQUIREMENTS": '", "'.join(KINDS[kind].test_requirements),  # inside quotes
    }


def _read(folder: Traversable, prefix: str = "") -> dict[str, str]:
    return dict(_walk(folder, prefix))


def _walk(folder: Traversable, prefix: str) -> Iterator[tuple[str, str]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            if entry.name != "__pycache__":
                yield from _walk(entry, f"{prefix}{entry.name}/")
        elif not entry.name.endswith(".pyc"):
            yield prefix + _RENAMED_FILES.get(entry.name, entry.name), entry.read_text(encoding="utf-8")
