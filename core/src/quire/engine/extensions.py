"""What plugins bring that runs with requests and steps, made once when the engine is built."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, replace
from typing import cast

from quire.api.errors import ConfigError, PluginError
from quire.api.extensions import ExtensionContext, LogitsProcessorFactory, SchedulingPolicy
from quire.api.specs import LogitsProcessorSpec, PolicySpec, Registration
from quire.engine.guarded_policy import GuardedPolicy
from quire.engine.processor_desk import ProcessorDesk
from quire.execution.processors import LoadedProcessor
from quire.plugins import PluginHost, resolve_factory
from quire.plugins.builtin import BUILTIN_PLUGINS
from quire.plugins.registry import describe_origin, nearest

DEFAULT_POLICY = "fcfs"

logger = logging.getLogger("quire.plugins")


@dataclass(slots=True, frozen=True)
class LoadedPolicy:
    """A scheduling policy, ready for the scheduler.

    Attributes:
        name: as the settings call it. plugin: who brought it.
    """

    name: str
    plugin: str
    policy: SchedulingPolicy


class ExtensionLoader:
    """Calls the factories of a host's specs.

    Args:
        host: the plugins.
        context: what factories are given; each gets its own plugin's options.
    """

    def __init__(self, host: PluginHost, context: ExtensionContext) -> None:
        self._host = host
        self._context = context

    def policy(self, name: str, failures: MutableMapping[str, Exception]) -> LoadedPolicy:
        """The policy of that name; those of plugins are guarded.

        Raises:
            ConfigError: there is none.
            PluginError: its factory failed.
        """
        if name not in self._host.policies:
            raise ConfigError(
                f"scheduling policy {name!r} is not known: {nearest(name, self._host.policies)} "
                f"(registered: {', '.join(self._host.policies)})"
            )
        entry = self._host.policies.registration(name)
        made = self._make(entry, "PolicySpec.factory", cast(PolicySpec, entry.spec).factory)
        if not callable(getattr(made, "key", None)):
            raise PluginError(
                f"policy {name!r} of {describe_origin(entry)}: its factory gave {made!r}, which has no key()"
            )
        policy = cast(SchedulingPolicy, made)
        if entry.plugin not in dict(BUILTIN_PLUGINS):
            origin = describe_origin(entry)
            policy = GuardedPolicy(name, entry.plugin, origin, policy, self._host.calls, failures)
        return LoadedPolicy(name, entry.plugin, policy)

    def processors(self) -> ProcessorDesk:
        """All logits processors.

        Raises:
            PluginError: a factory failed; of an optional plugin it is logged, and the processor left out.
        """
        loaded: dict[str, LoadedProcessor] = {}
        optional = (*self._host.settings.optional, *self._context.config.plugins.optional)
        unavailable: dict[str, str] = {}
        for entry in self._host.logits_processors.registrations():
            spec = cast(LogitsProcessorSpec, entry.spec)
            try:
                loaded[spec.name] = self._processor(entry, spec)
            except PluginError as error:
                if entry.plugin not in optional:
                    raise
                logger.error("%s. The plugin is optional: the start goes on without it", error)
                unavailable[spec.name] = str(error)
        return ProcessorDesk(loaded, self._host.calls, unavailable)

    def _processor(self, entry: Registration, spec: LogitsProcessorSpec) -> LoadedProcessor:
        factory = self._make(entry, "LogitsProcessorSpec.factory", spec.factory)
        origin = describe_origin(entry)
        if not callable(getattr(factory, "for_request", None)):
            raise PluginError(
                f"logits processor {spec.name!r} of {origin}: its factory gave {factory!r}, "
                "which has no for_request()"
            )
        processors = cast(LogitsProcessorFactory, factory)
        return LoadedProcessor(spec.name, entry.plugin, origin, processors, spec.is_always_on)

    def _make(self, entry: Registration, point: str, reference: object) -> object:
        factory = cast("Callable[..., object]", resolve_factory(cast("str", reference), entry))
        context = replace(self._context, options=self._host.options(entry.plugin))
        try:
            return self._host.calls.call(entry.plugin, point, factory, context)
        except (Exception, SystemExit) as error:
            what = f"{type(error).__name__}: {error}"
            raise PluginError(f"{point} {reference!r} of {describe_origin(entry)} failed: {what}") from error


@dataclass(slots=True, frozen=True)
class LoadedExtensions:
    """What plugins bring that runs with requests.

    Attributes:
        failures: filled by the policy, emptied by the engine.
    """

    policy: LoadedPolicy
    fallback_policy: LoadedPolicy
    processors: ProcessorDesk
    failures: dict[str, Exception]


def load_extensions(host: PluginHost, context: ExtensionContext) -> LoadedExtensions:
    """The policy that the settings name, the one that follows if it fails, and all logits processors.

    Raises:
        ConfigError, PluginError: as ExtensionLoader.
    """
    loader = ExtensionLoader(host, context)
    failures: dict[str, Exception] = {}
    return LoadedExtensions(
        policy=loader.policy(context.config.scheduler.scheduling_policy, failures),
        fallback_policy=loader.policy(DEFAULT_POLICY, failures),
        processors=loader.processors(),
        failures=failures,
    )


def names_of(plugins: frozenset[str], loaded: Mapping[str, LoadedProcessor]) -> list[str]:
    """The logits processors of some plugins."""
    return [name for name, processor in loaded.items() if processor.plugin in plugins]
