"""Packages that the pages of the documentation describe: their titled blocks, written out as files."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r'^```(?:python|toml) title="([^"]+)"\n(.*?)^```', re.MULTILINE | re.DOTALL)
_CONTINUED = " (continued)"


def titled_blocks(page: Path) -> dict[str, str]:
    """File name to text, the blocks of one file put together."""
    files: dict[str, str] = {}
    for title, code in _FENCE.findall(page.read_text(encoding="utf-8")):
        name = title.removesuffix(_CONTINUED)
        files[name] = f"{files[name]}\n\n{code}" if title.endswith(_CONTINUED) else code
    return files


def write_files(files: dict[str, str], folder: Path) -> None:
    """Write them below a folder, over what is there."""
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def write_metadata(folder: Path, source: Path) -> None:
    """Leave in `source` the metadata that pip would make of the folder's pyproject.toml."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name, version = project["name"], project["version"]
    info = source / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    points = "\n".join(f"{key} = {target}" for key, target in project["entry-points"]["quire"].items())
    (info / "entry_points.txt").write_text(f"[quire]\n{points}\n")
