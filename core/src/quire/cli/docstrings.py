"""Help texts out of Google-style docstrings, so that they are written once."""

from __future__ import annotations

import inspect
import re

_ENTRY = re.compile(r"^    (\w+(?:, \w+)*): (.*)$")


def argument_help(docstring: str) -> dict[str, str]:
    """The entries of the Args section by name; one that names several fields counts for each."""
    entries: dict[str, str] = {}
    names: list[str] = []
    is_inside = False
    for line in inspect.cleandoc(docstring).splitlines():
        if line and not line.startswith(" "):
            is_inside = line.strip() in ("Args:", "Attributes:")
            names = []
            continue
        if not is_inside:
            continue
        match = _ENTRY.match(line)
        if match:
            names = match[1].split(", ")
            entries.update(dict.fromkeys(names, match[2]))
        elif line.strip():
            entries.update({name: f"{entries[name]} {line.strip()}" for name in names})
    return {name: text.rstrip(".") for name, text in entries.items()}
