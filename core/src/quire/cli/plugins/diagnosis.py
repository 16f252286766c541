"""What `quire plugins doctor` finds out, as values."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from quire.api.errors import QuireError
from quire.cli.plugins import metadata
from quire.cli.plugins.choices import Choices, choose
from quire.cli.plugins.modules import ImportCost, measure_imports
from quire.plugins import PluginHost, PluginStatus

SLOW_IMPORT_S = 0.1
"""From here on a plugin's import is worth a warning: twenty of them make every command wait."""


@dataclass(slots=True, frozen=True)
class Finding:
    """Something to mend, or (not an error) to know."""

    is_error: bool
    about: str
    message: str


@dataclass(slots=True, frozen=True)
class Diagnosis:
    """The state of the installed plugins.

    Attributes:
        imports: by plugin. choices: None where the device cannot be asked.
    """

    host: PluginHost
    imports: Mapping[str, ImportCost]
    choices: Choices | None
    fingerprint: str
    findings: tuple[Finding, ...]

    @property
    def is_well(self) -> bool:
        """Whether nothing has to be mended."""
        return not any(finding.is_error for finding in self.findings)


def diagnose(host: PluginHost, args: argparse.Namespace) -> Diagnosis:
    """Look at everything; `args` holds the device and dtype that are asked about."""
    findings = [*_plugin_findings(host), *_start_findings(host), *_metadata_findings(host)]
    imports = _measure(host)
    findings += _import_findings(imports)
    choices: Choices | None = None
    try:
        choices = choose(host, args)
        findings += [Finding(True, "ops", problem) for problem in choices.problems]
    except QuireError as error:
        findings.append(Finding(True, "ops", str(error)))
    errors = {finding.message for finding in findings if finding.is_error}
    findings = [finding for finding in findings if finding.is_error or finding.message not in errors]
    return Diagnosis(host, imports, choices, host.fingerprint(), tuple(findings))


def _plugin_findings(host: PluginHost) -> list[Finding]:
    findings = []
    for record in host.records:
        if record.status is PluginStatus.FAILED:
            findings.append(Finding(True, f"{record.name} ({record.candidate.origin})", record.reason))
        for unused in record.unused:
            text = f"its {unused.entry.kind} {unused.entry.name!r} is not used: {unused.reason}"
            findings.append(Finding(False, record.name, text))
        model = host.options_model(record.name)
        bare = [name for name, field in model.model_fields.items() if not field.description] if model else []
        if bare:
            text = f"its options {', '.join(bare)} have no description"
            findings.append(Finding(False, record.name, text))
    findings += [Finding(False, "settings", warning) for warning in host.warnings]
    return findings


def _start_findings(host: PluginHost) -> list[Finding]:
    """What keeps an engine from starting, where no plugin failed: names in the settings."""
    if any(record.status is PluginStatus.FAILED for record in host.records):
        return []
    log = logging.getLogger("quire.plugins")
    was_disabled, log.disabled = log.disabled, True  # its warnings are findings already
    try:
        PluginHost.discover(host.settings)
    except QuireError as error:
        return [Finding(True, "start", str(error))]
    finally:
        log.disabled = was_disabled
    return []


def _metadata_findings(host: PluginHost) -> list[Finding]:
    names = metadata.plugin_distributions(host)
    findings = [
        Finding(True, "metadata", f"{entry.distribution} in {entry.location}: {entry.reason}")
        for entry in host.problems
    ]
    reported = [entry.distribution for entry in host.problems]
    findings += [Finding(True, "metadata", text) for text in metadata.doubled_metadata(names, reported)]
    findings += [Finding(True, "metadata", text) for text in metadata.stale_entry_points(host.records)]
    findings += [Finding(False, "metadata", text) for text in metadata.doubled_names(host.records)]
    findings += [Finding(False, "metadata", text) for text in metadata.overlooked_plugins(names)]
    findings += [Finding(True, "versions", text) for text in metadata.version_clashes(names)]
    return findings


def _measure(host: PluginHost) -> dict[str, ImportCost]:
    modules = {
        record.name: record.candidate.target.partition(":")[0]
        for record in host.records
        if record.is_enabled and record.candidate.plugin is None
    }
    costs = measure_imports(list(dict.fromkeys(modules.values())))
    return {name: costs[module] for name, module in modules.items()}


def _import_findings(imports: Mapping[str, ImportCost]) -> list[Finding]:
    findings = []
    for name, cost in imports.items():
        if cost.error:
            findings.append(Finding(True, name, f"importing it alone fails: {cost.error}"))
        elif cost.heavy:
            text = (
                f"its module imports {', '.join(cost.heavy)}: import only quire.api there, and name the rest as "
                "'module:attribute'"
            )
            findings.append(Finding(False, name, text))
        elif cost.seconds is not None and cost.seconds > SLOW_IMPORT_S and name != "core":
            text = f"its import takes {cost.seconds:.2f} s, more than {SLOW_IMPORT_S} s: import late"
            findings.append(Finding(False, name, text))
    return findings
