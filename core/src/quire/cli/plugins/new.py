"""`quire plugins new KIND NAME`: a complete distribution that works at once. Imports no torch."""

from __future__ import annotations

import argparse
from pathlib import Path

from quire.api.errors import ConfigError
from quire.plugins import discover_candidates
from quire.plugins.builtin import core_version
from quire.plugins.registry import nearest
from quire.scaffold import KINDS, derive_names, render_distribution, write_distribution
from quire.scaffold.names import check_names


class NewAction:
    """A scaffolded distribution."""

    name = "new"
    help = "write a complete distribution of a kind of plugin, which installs and passes its tests as it is"
    has_plugin_flags = False

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The kind, the name, and where to."""
        parser.add_argument("kind", metavar="KIND", help=f"one of {', '.join(KINDS)}")
        parser.add_argument(
            "name",
            metavar="NAME",
            help="the distribution's name, e.g. quire-stablelm: the plugin is then called stablelm, its module "
            "quire_stablelm",
        )
        parser.add_argument(
            "--output",
            type=Path,
            metavar="DIR",
            help="the folder to write, new or empty (default: ./NAME)",
        )

    def run(self, args: argparse.Namespace) -> int:
        """Write it and say what comes next.

        Raises:
            ConfigError: the kind is unknown, the name is malformed or taken, or the folder is in use.
        """
        check_kind(args.kind)
        names = derive_names(args.name)
        check_names(names, discover_candidates().candidates)
        folder: Path = args.output if args.output is not None else Path(names.distribution)
        files = render_distribution(args.kind, names, core_version())
        write_distribution(files, folder)
        print(f"{folder}: {len(files)} files, the plugin {names.plugin!r} ({args.kind})\n")
        print(f"cd {folder}")
        print("pip install -e '.[test]' && pytest")
        print(f"quire plugins {'check' if KINDS[args.kind].has_suite else 'info'} {names.plugin}")
        print("\nREADME.md says what to change.")
        return 0


def check_kind(kind: str) -> None:
    """Refuse a kind that there is not; ConfigError names the nearest."""
    if kind not in KINDS:
        raise ConfigError(f"KIND={kind!r} is unknown: {nearest(kind, KINDS)}")
