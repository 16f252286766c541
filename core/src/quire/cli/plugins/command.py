"""`quire plugins ACTION`: the actions, and handing over to one."""

from __future__ import annotations

import argparse
from typing import Protocol

from quire.cli.plugin_flags import add_plugin_flags
from quire.cli.plugins.check import CheckAction
from quire.cli.plugins.doctor import DoctorAction
from quire.cli.plugins.info import InfoAction
from quire.cli.plugins.listing import ListAction
from quire.cli.plugins.new import NewAction
from quire.cli.plugins.ops import OpsAction


class Action(Protocol):
    """One action of `quire plugins`.

    Attributes:
        name: what is typed. help: one line.
        has_plugin_flags: whether the flags that choose plugins concern it.
    """

    name: str
    help: str
    has_plugin_flags: bool

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare flags; must not import torch."""
        ...

    def run(self, args: argparse.Namespace) -> int:
        """Do the work; the result is the exit status."""
        ...


ACTIONS: tuple[type[Action], ...] = (
    ListAction,
    InfoAction,
    DoctorAction,
    CheckAction,
    OpsAction,
    NewAction,
)


class PluginsCommand:
    """Commands about plugins."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The actions."""
        actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
        for kind in ACTIONS:
            action = kind()
            text = f"{action.help[:1].upper()}{action.help[1:]}."
            subparser = actions.add_parser(
                action.name, help=action.help, description=text, allow_abbrev=False
            )
            action.add_arguments(subparser)
            if action.has_plugin_flags:
                add_plugin_flags(subparser)

    def run(self, args: argparse.Namespace) -> int:
        """Run the chosen action."""
        return next(kind for kind in ACTIONS if kind.name == args.action)().run(args)
