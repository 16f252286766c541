"""From the name that a user gives to the names of a distribution, its module, its plugin and its classes."""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from quire.api.errors import ConfigError
from quire.plugins import Candidate

PREFIX = "quire-"
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(slots=True, frozen=True)
class ScaffoldNames:
    """What things are called.

    Attributes:
        distribution: "quire-my-model". module: "quire_my_model".
        plugin: the entry point, "my-model". identifier: "my_model". prefix: of classes, "MyModel".
    """

    distribution: str
    module: str
    plugin: str
    identifier: str
    prefix: str


def derive_names(name: str) -> ScaffoldNames:
    """The names that follow from a distribution's; "quire-" in front belongs to neither plugin nor classes.

    Raises:
        ConfigError: the name is malformed.
    """
    plugin = name.removeprefix(PREFIX)
    if not _NAME.fullmatch(name) or not _NAME.fullmatch(plugin):
        proposal = re.sub(r"[^a-z0-9]+", "-", re.sub(r"^[^a-z]+", "", name.lower())).strip("-")
        hint = f", e.g. {proposal!r}" if _NAME.fullmatch(proposal.removeprefix(PREFIX)) else ""
        raise ConfigError(
            f"NAME={name!r} is no distribution name: give lower-case words of letters and digits, joined by "
            f"single hyphens, the first one starting with a letter{hint}"
        )
    identifier = plugin.replace("-", "_")
    return ScaffoldNames(
        distribution=name,
        module=name.replace("-", "_"),
        plugin=plugin,
        identifier=identifier,
        prefix="".join(word.capitalize() for word in plugin.split("-")),
    )


def check_names(names: ScaffoldNames, installed: Iterable[Candidate]) -> None:
    """Refuse names that are taken here.

    Raises:
        ConfigError: the module would hide another one, is no identifier, or the plugin's name is taken.
    """
    hint = f"give another NAME, e.g. {_alternative(names)!r}"
    if keyword.iskeyword(names.module) or keyword.iskeyword(names.identifier):
        raise ConfigError(f"NAME={names.distribution!r}: {names.module!r} is a word of Python: {hint}")
    if names.module in sys.stdlib_module_names or importlib.util.find_spec(names.module) is not None:
        raise ConfigError(
            f"NAME={names.distribution!r}: a module {names.module!r} exists already in this environment: {hint}"
        )
    for candidate in installed:
        if candidate.name == names.plugin:
            raise ConfigError(
                f"NAME={names.distribution!r}: the plugin name {names.plugin!r} is taken by "
                f"{candidate.origin}: give another NAME, e.g. '{PREFIX}my-{names.plugin}'"
            )


def _alternative(names: ScaffoldNames) -> str:
    is_prefixed = names.distribution.startswith(PREFIX)
    return f"{PREFIX}my-{names.plugin}" if is_prefixed else f"{PREFIX}{names.plugin}"
