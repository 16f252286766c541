"""`quire plugins list`: what is installed, what each plugin brings, and why one is off. Imports no torch."""

from __future__ import annotations

import argparse
import json

from quire.cli.plugin_flags import add_plugin_flags, plugin_settings
from quire.plugins import PluginHost, PluginRecord


class PluginsCommand:
    """Commands about plugins."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The subcommands."""
        actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
        listing = actions.add_parser(
            "list", help="name, distribution, version, what each registers, enabled or why not"
        )
        listing.add_argument("--json", action="store_true", help="print one JSON document")
        listing.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
        add_plugin_flags(listing)

    def run(self, args: argparse.Namespace) -> int:
        """Print the list; the status is 1 when a plugin failed."""
        host = PluginHost.discover(plugin_settings(args), strict=False)
        print(as_json(host) if args.json else as_text(host))
        return 1 if any(record.error is not None for record in host.records) else 0


def as_json(host: PluginHost) -> str:
    """The list for programs."""
    document = {
        "plugins": [_describe(record) for record in host.records],
        "problems": [
            {"distribution": problem.distribution, "location": problem.location, "reason": problem.reason}
            for problem in host.problems
        ],
    }
    return json.dumps(document, indent=2)


def as_text(host: PluginHost) -> str:
    """The list for people: a line per plugin, and below it what it registers."""
    rows = [("PLUGIN", "DISTRIBUTION", "VERSION", "STATUS")]
    rows += [
        (record.name, record.candidate.distribution, record.candidate.version, record.status.value)
        for record in host.records
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines: list[str] = []
    for index, row in enumerate(rows):
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if index:
            lines += [f"    {line}" for line in _details(host.records[index - 1])]
    lines += [
        f"passed over: {entry.distribution} in {entry.location}: {entry.reason}" for entry in host.problems
    ]
    return "\n".join(lines)


def _details(record: PluginRecord) -> list[str]:
    lines = [record.info.description] if record.info and record.info.description else []
    if record.reason:
        lines.append(f"why: {record.reason}")
    return lines + [f"{kind}: {', '.join(names)}" for kind, names in record.registered_names().items()]


def _describe(record: PluginRecord) -> dict[str, object]:
    return {
        "name": record.name,
        "distribution": record.candidate.distribution,
        "version": record.candidate.version,
        "status": record.status.value,
        "reason": record.reason,
        "description": record.info.description if record.info else "",
        "api": record.info.api if record.info else None,
        "registers": record.registered_names(),
    }
