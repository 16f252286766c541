"""`quire plugins info NAME`: everything about one plugin. Imports no torch."""

from __future__ import annotations

import argparse
import dataclasses
import json
import types
import typing
from collections.abc import Mapping

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from quire.api.errors import PluginError
from quire.api.hookspecs import HOOKS
from quire.api.specs import Capabilities
from quire.cli.plugin_flags import plugin_settings
from quire.cli.plugins.listing import describe_record
from quire.cli.plugins.modules import source_file
from quire.cli.tables import table
from quire.plugins import PluginHost, PluginRecord
from quire.plugins.fingerprint import affects_outputs
from quire.plugins.record import NamedRegistration


class InfoAction:
    """One plugin in full."""

    name = "info"
    help = "what one plugin registers, its options, source file, place in the load order and calls"
    has_plugin_flags = True

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Which plugin, and the output's form."""
        parser.add_argument(
            "name", metavar="NAME", help="the plugin's name, as `quire plugins list` shows it"
        )
        form = parser.add_mutually_exclusive_group()
        form.add_argument("--json", action="store_true", help="print one JSON document")
        form.add_argument("--schema", action="store_true", help="print the JSON schema of its options, alone")

    def run(self, args: argparse.Namespace) -> int:
        """Print it; the status is 1 when the plugin failed.

        Raises:
            PluginError: there is no such plugin; with --schema, it has no options or is not enabled.
        """
        host = PluginHost.discover(plugin_settings(args), strict=False)
        record = host.record(args.name)
        if args.schema:
            print(json.dumps(_required_options(host, record).model_json_schema(), indent=2))
        elif args.json:
            print(json.dumps(describe_plugin(host, record), indent=2, default=repr))
        else:
            print("\n".join(describe_as_text(describe_plugin(host, record))))
        return 1 if record.error is not None else 0


def describe_plugin(host: PluginHost, record: PluginRecord) -> dict[str, object]:
    """Everything about a plugin, for programs."""
    names = [entry.name for entry in host.records if entry.is_enabled]
    position = names.index(record.name) + 1 if record.is_enabled else None
    return {
        **describe_record(record),
        "module": record.candidate.target,
        "source": record.source or source_file(record.candidate.target.partition(":")[0]),
        "metadata": record.candidate.location,
        "load_order": {"position": position, "of": len(names)},
        **_about(record),
        "hooks": [name for name in HOOKS if name in record.hooks],
        "specs": [_describe_spec(entry) for entry in record.registered],
        "unused": [
            {"kind": unused.entry.kind, "name": unused.entry.name, "reason": unused.reason}
            for unused in record.unused
        ],
        "options": _options(host, record),
        "calls": _calls(host, record.name),
    }


def _required_options(host: PluginHost, record: PluginRecord) -> type[BaseModel]:
    model = host.options_model(record.name)
    if model is not None:
        return model
    why = f"it is {record.status.value}: {record.reason}" if record.info is None else "it declares none"
    raise PluginError(f"plugin {record.name!r} has no options that could be shown: {why}")


def _about(record: PluginRecord) -> dict[str, object]:
    if record.info is None:
        return {}
    return {
        "before": list(record.info.before),
        "after": list(record.info.after),
        "runs_in": list(record.info.runs_in),
        "affects_outputs": affects_outputs(record),
    }


def _describe_spec(entry: NamedRegistration) -> dict[str, object]:
    spec = entry.registration.spec
    factory = getattr(spec, "factory", getattr(spec, "reference", None))
    described: dict[str, object] = {"kind": entry.kind, "name": entry.name, "factory": _reference(factory)}
    capabilities = getattr(spec, "capabilities", None)
    if isinstance(capabilities, Capabilities):
        described["limits"] = {
            field.name: getattr(capabilities, field.name)
            for field in dataclasses.fields(capabilities)
            if getattr(capabilities, field.name) != field.default
        }
    return described


def _reference(factory: object) -> str:
    if isinstance(factory, str):
        return factory
    module, name = getattr(factory, "__module__", None), getattr(factory, "__qualname__", None)
    return f"{module}:{name}" if module and name else repr(factory)


def _options(host: PluginHost, record: PluginRecord) -> list[dict[str, object]]:
    model = host.options_model(record.name)
    if model is None:
        return []
    return [
        {
            "name": name,
            "type": _type(field.annotation),
            "default": _default(field),
            "value": repr(getattr(record.options, name, None)),
            "description": field.description or "",
        }
        for name, field in model.model_fields.items()
    ]


def _type(annotation: object) -> str:
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Annotated:
        return _type(arguments[0])
    if typing.get_origin(annotation) is typing.Literal:
        return " | ".join(map(repr, arguments))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " | ".join(_type(argument) for argument in arguments)
    if annotation is type(None):
        return "None"
    if isinstance(annotation, type) and not arguments:
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("collections.abc.", "")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return "made anew" if field.default_factory is not None else repr(field.get_default())


def _calls(host: PluginHost, plugin: str) -> dict[str, dict[str, float]]:
    calls: dict[str, dict[str, float]] = {}
    for metric in host.calls.metrics():
        if metric.labels.get("plugin") == plugin:
            point = calls.setdefault(metric.labels["point"], {})
            point[metric.name.removeprefix("quire:plugin_")] = metric.value
    return calls


def describe_as_text(about: Mapping[str, typing.Any]) -> list[str]:
    """What `describe_plugin` gives, for people."""
    order = about["load_order"]
    facts = [
        ("distribution", f"{about['distribution']} {about['version']}".strip()),
        ("status", about["status"] + (f": {about['reason']}" if about["reason"] else "")),
        ("description", about["description"]),
        ("hook API", about["api"] or ""),
        ("module", about["module"]),
        ("source", about["source"] or "not found"),
        ("metadata", about["metadata"]),
        ("load order", f"{order['position']} of {order['of']}" if order["position"] else ""),
        ("before", ", ".join(about.get("before", ()))),
        ("after", ", ".join(about.get("after", ()))),
        ("runs in", ", ".join(about.get("runs_in", ()))),
        ("changes outputs", {True: "yes", False: "no"}.get(about.get("affects_outputs", None), "")),
        ("hooks", ", ".join(about["hooks"])),
    ]
    lines = [about["name"]]
    lines += [f"  {name + ':':<16} {value}" for name, value in facts if value]
    for title, rows in (
        ("registers", _spec_rows(about["specs"])),
        ("left to other plugins", _unused_rows(about["unused"])),
        ("options", _option_rows(about["options"])),
        ("calls of this command", _call_rows(about["calls"])),
    ):
        if len(rows) > 1:
            lines += ["", f"{title}:", *(f"  {line}" for line in table(rows[0], rows[1:]))]
    if not about["options"] and about["api"]:
        lines += ["", "options: none"]
    return lines


def _spec_rows(specs: list[dict[str, typing.Any]]) -> list[tuple[str, ...]]:
    rows = [("KIND", "NAME", "FACTORY", "LIMITS")]
    for spec in specs:
        limits = ", ".join(f"{name}={value!r}" for name, value in spec.get("limits", {}).items())
        rows.append((spec["kind"], spec["name"], spec["factory"], limits))
    return list(rows)


def _unused_rows(unused: list[dict[str, str]]) -> list[tuple[str, ...]]:
    return [("KIND", "NAME", "WHY"), *((entry["kind"], entry["name"], entry["reason"]) for entry in unused)]


def _option_rows(options: list[dict[str, str]]) -> list[tuple[str, ...]]:
    names = ("name", "type", "default", "value", "description")
    return [
        ("OPTION", "TYPE", "DEFAULT", "VALUE", "MEANING"),
        *(tuple(option[name] for name in names) for option in options),
    ]


def _call_rows(calls: dict[str, dict[str, float]]) -> list[tuple[str, ...]]:
    rows = [("POINT", "CALLS", "ERRORS", "MS")]
    for point, figures in calls.items():
        milliseconds = f"{figures.get('seconds', 0.0) * 1e3:.2f}"
        rows.append((point, str(figures.get("calls", 0)), str(figures.get("errors", 0)), milliseconds))
    return list(rows)
