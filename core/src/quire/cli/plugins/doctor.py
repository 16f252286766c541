"""`quire plugins doctor`: everything that was discovered, what is wrong with it, and what serves here."""

from __future__ import annotations

import argparse
import dataclasses
import json

from quire.api.hookspecs import HOOK_API_VERSION
from quire.cli.plugin_flags import plugin_settings
from quire.cli.plugins.choices import add_checkpoint_flag, add_device_flags, choices_json, describe_choices
from quire.cli.plugins.diagnosis import Diagnosis, diagnose
from quire.cli.plugins.listing import describe_record
from quire.cli.plugins.metadata import api_range
from quire.cli.tables import table
from quire.plugins import PluginHost
from quire.plugins.versions import format_version


class DoctorAction:
    """The state of the installed plugins."""

    name = "doctor"
    help = (
        "what was discovered, what is off and why, import times, clashing versions, stale metadata, "
        "and what serves ops, attention and quantized checkpoints here; status 1 when something is wrong"
    )
    has_plugin_flags = True

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """What is asked about, and the output's form."""
        add_device_flags(parser)
        add_checkpoint_flag(parser)
        parser.add_argument("--json", action="store_true", help="print one JSON document")

    def run(self, args: argparse.Namespace) -> int:
        """Print the diagnosis; the status is 1 when something is wrong."""
        diagnosis = diagnose(PluginHost.discover(plugin_settings(args), strict=False), args)
        print(as_json(diagnosis) if args.json else as_text(diagnosis))
        return 0 if diagnosis.is_well else 1


def as_json(diagnosis: Diagnosis) -> str:
    """The diagnosis for programs."""
    document = {
        "hook_api": format_version(HOOK_API_VERSION),
        "fingerprint": diagnosis.fingerprint,
        "is_well": diagnosis.is_well,
        "plugins": [
            {
                **describe_record(record),
                "module": record.candidate.target,
                "metadata": record.candidate.location,
                "import": dataclasses.asdict(diagnosis.imports[record.name])
                if record.name in diagnosis.imports
                else None,
            }
            for record in diagnosis.host.records
        ],
        "choices": choices_json(diagnosis.choices) if diagnosis.choices else None,
        "findings": [dataclasses.asdict(finding) for finding in diagnosis.findings],
    }
    return json.dumps(document, indent=2, default=repr)


def as_text(diagnosis: Diagnosis) -> str:
    """The diagnosis for people; what is wrong comes last."""
    lines = [f"hook API {format_version(HOOK_API_VERSION)}", f"fingerprint {diagnosis.fingerprint}", ""]
    lines += _plugin_table(diagnosis)
    if diagnosis.choices is not None:
        device = diagnosis.choices.device
        lines += ["", f"{diagnosis.choices.dtype} on {device.type} ({device.name})", ""]
        lines += describe_choices(diagnosis.choices)
    lines.append("")
    for finding in sorted(diagnosis.findings, key=lambda finding: finding.is_error):
        lines.append(f"{'error' if finding.is_error else 'note'}: {finding.about}: {finding.message}")
    errors = sum(finding.is_error for finding in diagnosis.findings)
    lines.append(f"{errors} to mend" if errors else "nothing is wrong")
    return "\n".join(lines)


def _plugin_table(diagnosis: Diagnosis) -> list[str]:
    rows = []
    for record in diagnosis.host.records:
        cost = diagnosis.imports.get(record.name)
        milliseconds = f"{cost.seconds * 1e3:.1f}" if cost is not None and cost.seconds is not None else ""
        rows.append(
            (
                record.name,
                record.candidate.origin,
                record.status.value,
                api_range(record.info),
                milliseconds,
                record.candidate.location,
            )
        )
    lines = table(("PLUGIN", "DISTRIBUTION", "STATUS", "API", "IMPORT MS", "METADATA"), rows)
    described = [lines[0]]
    for line, record in zip(lines[1:], diagnosis.host.records, strict=True):
        described.append(line)
        if record.reason:
            described.append(f"    why: {record.reason}")
    return described
