"""`quire plugins check TARGET`: the conformance suites for what plugins register."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from quire.api.config import PluginSettings
from quire.api.errors import PluginError
from quire.cli.plugin_flags import plugin_settings
from quire.cli.tables import table
from quire.plugins import Discovery, PluginHost, PluginRecord, discover_candidates
from quire.plugins.discovery import canonical
from quire.plugins.registry import nearest

if TYPE_CHECKING:
    from quire.testing import CheckResult


class CheckAction:
    """Conformance of plugins."""

    name = "check"
    help = "run the conformance suites for what a plugin registers; status 1 when a check fails"
    has_plugin_flags = True

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """What is checked, and the output's form."""
        parser.add_argument(
            "target",
            metavar="TARGET",
            help="a plugin, a distribution (all its plugins), or module:attribute (module: for the module itself) of "
            "one that is not installed",
        )
        parser.add_argument("--json", action="store_true", help="print one JSON document")

    def run(self, args: argparse.Namespace) -> int:
        """Run the suites and print a table; the status is 1 when a check failed.

        Raises:
            PluginError: there is no such target, or it is disabled or failed.
        """
        host, names = find_target(args.target, plugin_settings(args))
        results = run_suites(host, names, is_shown=sys.stderr.isatty())
        is_empty = not any(results.values())
        if args.json or not is_empty:
            print(as_json(results) if args.json else as_text(results))
        if is_empty:
            print(
                f"{args.target}: there is no suite for what it registers, nothing was checked",
                file=sys.stderr,
            )
        failed = any(result.status == "failed" for found in results.values() for result in found)
        return 1 if failed else 0


Results = dict[str, list["CheckResult"]]
"""What the suites found, by plugin."""


def find_target(target: str, settings: PluginSettings) -> tuple[PluginHost, list[str]]:
    """A host with the plugins that a target means, and their names.

    Raises:
        PluginError: there is no such target, or it is disabled or failed.
    """
    if ":" in target:
        return _host_of_module(target, settings)
    host = PluginHost.discover(settings, strict=False)
    records = [record for record in host.records if record.name == target]
    if not records:
        wanted = canonical(target)
        records = [record for record in host.records if canonical(record.candidate.distribution) == wanted]
    if not records:
        known = {name for record in host.records for name in (record.name, record.candidate.distribution)}
        raise PluginError(
            f"no plugin and no distribution with plugins is called {target!r}: {nearest(target, known)} "
            "(a plugin that is not installed is given as 'module:')"
        )
    return host, [_enabled(record) for record in records]


def run_suites(host: PluginHost, names: Sequence[str], *, is_shown: bool) -> Results:
    """Run the suites of each plugin; a bar on standard error where `is_shown`."""
    from tqdm import tqdm

    from quire.testing import check_plugin

    results: Results = {}
    with tqdm(disable=not is_shown, unit=" checks", leave=False) as bar:

        def show(result: CheckResult) -> None:
            bar.set_postfix_str(f"{result.check}: {result.status}", refresh=False)
            bar.update()

        for number, name in enumerate(names, 1):
            bar.set_description(f"{name} ({number} of {len(names)})")
            results[name] = list(check_plugin(host, name, show))
    return results


def as_json(results: Results) -> str:
    """The results for programs."""
    document = {name: [dataclasses.asdict(result) for result in found] for name, found in results.items()}
    return json.dumps(document, indent=2)


def as_text(results: Results) -> str:
    """A table of all checks, what failed in full below it, and the sums."""
    every = [(name, result) for name, found in results.items() for result in found]
    rows = [
        (name, result.suite, result.check, result.status, f"{result.seconds:.2f}", _note(result))
        for name, result in every
    ]
    lines = table(("PLUGIN", "SUITE", "CHECK", "STATUS", "S", "NOTE"), rows)
    for name, result in every:
        if result.status == "failed":
            lines += ["", f"{name}, {result.suite}, {result.check}:", f"  {result.detail}"]
    counts = {
        status: sum(result.status == status for _, result in every)
        for status in ("passed", "failed", "skipped")
    }
    summary = ", ".join(f"{count} {status}" for status, count in counts.items())
    return "\n".join([*lines, "", summary])


def _note(result: CheckResult) -> str:
    if result.status == "failed":
        return "see below"
    text = " ".join(result.detail.split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _enabled(record: PluginRecord) -> str:
    if not record.is_enabled:
        raise PluginError(
            f"plugin {record.name!r} ({record.candidate.origin}) is {record.status.value} and cannot be checked: "
            f"{record.reason}"
        )
    return record.name


def _host_of_module(target: str, settings: PluginSettings) -> tuple[PluginHost, list[str]]:
    """A host with one plugin that need not be installed; an installed one of the same module stays out."""
    module_name, _, attribute = target.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does, and a console script does not
    try:
        plugin: object = importlib.import_module(module_name)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise PluginError(
            f"cannot import {module_name!r} of TARGET={target!r}: {reason}; install it, or set PYTHONPATH"
        ) from error
    for part in attribute.split(".") if attribute else ():
        if not hasattr(plugin, part):
            hint = nearest(part, (name for name in vars(plugin) if not name.startswith("_")))
            raise PluginError(f"TARGET={target!r}: {module_name} has no {part!r}: {hint}")
        plugin = getattr(plugin, part)
    if isinstance(plugin, type):
        plugin = plugin()
    everything = discover_candidates()
    others = tuple(entry for entry in everything.candidates if entry.target.partition(":")[0] != module_name)
    discovery = Discovery(others, everything.problems)
    host = PluginHost.discover(settings, [plugin], strict=False, discovery=discovery)
    return host, [_enabled(record) for record in host.records if record.candidate.plugin is plugin]
