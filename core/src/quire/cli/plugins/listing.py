"""`quire plugins list`: what is installed, what each plugin brings, and why one is off. Imports no torch."""

from __future__ import annotations

import argparse
import json

from quire.cli.plugin_flags import plugin_settings
from quire.cli.tables import table
from quire.plugins import PluginHost, PluginRecord


class ListAction:
    """All plugins that were found, in load order."""

    name = "list"
    help = "name, distribution, version, what each registers, enabled or why not"
    has_plugin_flags = True

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The output's form."""
        parser.add_argument("--json", action="store_true", help="print one JSON document")

    def run(self, args: argparse.Namespace) -> int:
        """Print the list; the status is 1 when a plugin failed."""
        host = PluginHost.discover(plugin_settings(args), strict=False)
        print(as_json(host) if args.json else as_text(host))
        return 1 if any(record.error is not None for record in host.records) else 0


def as_json(host: PluginHost) -> str:
    """The list for programs."""
    document = {
        "plugins": [describe_record(record) for record in host.records],
        "problems": [
            {"distribution": problem.distribution, "location": problem.location, "reason": problem.reason}
            for problem in host.problems
        ],
    }
    return json.dumps(document, indent=2)


def as_text(host: PluginHost) -> str:
    """The list for people: a line per plugin, and below it what it registers."""
    rows = [
        (record.name, record.candidate.distribution, record.candidate.version, record.status.value)
        for record in host.records
    ]
    head, *body = table(("PLUGIN", "DISTRIBUTION", "VERSION", "STATUS"), rows)
    lines = [head]
    for line, record in zip(body, host.records, strict=True):
        lines += [line, *(f"    {detail}" for detail in _details(record))]
    lines += [
        f"passed over: {entry.distribution} in {entry.location}: {entry.reason}" for entry in host.problems
    ]
    return "\n".join(lines)


def describe_record(record: PluginRecord) -> dict[str, object]:
    """A plugin for programs."""
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


def _details(record: PluginRecord) -> list[str]:
    lines = [record.info.description] if record.info and record.info.description else []
    if record.reason:
        lines.append(f"why: {record.reason}")
    return lines + [f"{kind}: {', '.join(names)}" for kind, names in record.registered_names().items()]
