"""`quire plugins ops`: the op table and the attention backends of a device and dtype."""

from __future__ import annotations

import argparse
import json

from quire.cli.plugin_flags import plugin_settings
from quire.cli.plugins.choices import add_device_flags, choices_json, choose, describe_choices
from quire.plugins import PluginHost


class OpsAction:
    """The op table."""

    name = "ops"
    help = "which implementation serves which op and attention here, and why the others do not"
    has_plugin_flags = True

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """What is asked about, and the output's form."""
        add_device_flags(parser)
        parser.add_argument("--json", action="store_true", help="print one JSON document")

    def run(self, args: argparse.Namespace) -> int:
        """Print the tables; the status is 1 when an implementation is broken."""
        choices = choose(PluginHost.discover(plugin_settings(args), strict=False), args)
        if args.json:
            print(json.dumps({**choices_json(choices), "problems": list(choices.problems)}, indent=2))
        else:
            print(f"{choices.dtype} on {choices.device.type} ({choices.device.name})\n")
            print("\n".join(describe_choices(choices)))
            for problem in choices.problems:
                print(f"problem: {problem}")
        return 1 if choices.problems else 0
