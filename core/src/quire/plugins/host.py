"""The plugin host: decides which plugins take part, loads them, and holds what they registered."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy
from pydantic import BaseModel

from quire.api.batch import DeviceInfo
from quire.api.config import EngineConfig, PluginSettings
from quire.api.errors import PluginError
from quire.api.extensions import CheckpointReader, EngineInfo, EngineObserver
from quire.api.hookspecs import PROJECT_NAME
from quire.api.specs import (
    AttentionBackendSpec,
    CommandSpec,
    DrafterSpec,
    ExecutorSpec,
    LogitsProcessorSpec,
    ModelSpec,
    OpImplSpec,
    OpSpec,
    PolicySpec,
    QuantizationSpec,
    ReasoningParserSpec,
    RouteSpec,
    StepCaptureSpec,
    ToolParserSpec,
)
from quire.plugins.builtin import builtin_candidates
from quire.plugins.calls import PluginCalls, show_trace
from quire.plugins.capabilities import Combination, Part, check_combination
from quire.plugins.compatibility import HookApi
from quire.plugins.discovery import Candidate, Discovery, DiscoveryProblem, discover_candidates
from quire.plugins.fingerprint import fingerprint
from quire.plugins.lifecycle import LifecycleHooks
from quire.plugins.loader import PluginLoader
from quire.plugins.options import options_model
from quire.plugins.record import PluginRecord
from quire.plugins.registry import Registry, describe_origin, nearest

if TYPE_CHECKING:
    from quire.api.protocols import Model

logger = logging.getLogger("quire.plugins")


class PluginHost:
    """The plugins of one engine (or one command), and their registries.

    Build it with `discover`. Afterwards it only answers: nothing is loaded later.

    Attributes:
        models: ModelSpec by architecture.
        ops: OpSpec by name. op_impls: OpImplSpec by "op/name".
        routes: RouteSpec by "plugin/path". The other registries: specs by name.
        calls: how often and how long plugins were called.
        problems: metadata that discovery passed over.
        warnings: what is odd in the settings; from a host that is not strict also what is wrong in them.
        settings: as given to `discover`.
    """

    def __init__(self) -> None:
        self.models: Registry[ModelSpec] = Registry("architecture")
        self.ops: Registry[OpSpec] = Registry("op")
        self.op_impls: Registry[OpImplSpec] = Registry("op implementation")
        self.attention_backends: Registry[AttentionBackendSpec] = Registry("attention backend")
        self.step_captures: Registry[StepCaptureSpec] = Registry("step capture")
        self.commands: Registry[CommandSpec] = Registry("command")
        self.quantizations: Registry[QuantizationSpec] = Registry("quantization")
        self.drafters: Registry[DrafterSpec] = Registry("drafter")
        self.policies: Registry[PolicySpec] = Registry("policy")
        self.logits_processors: Registry[LogitsProcessorSpec] = Registry("logits processor")
        self.executors: Registry[ExecutorSpec] = Registry("executor")
        self.routes: Registry[RouteSpec] = Registry("route")
        self.tool_parsers: Registry[ToolParserSpec] = Registry("tool parser")
        self.reasoning_parsers: Registry[ReasoningParserSpec] = Registry("reasoning parser")
        every = [value for value in vars(self).values() if isinstance(value, Registry)]
        self._registries: Mapping[str, Registry[Any]] = {registry.kind: registry for registry in every}
        self.calls = PluginCalls()
        self.problems: tuple[DiscoveryProblem, ...] = ()
        self.warnings: tuple[str, ...] = ()
        self.settings = PluginSettings()
        self._records: tuple[PluginRecord, ...] = ()
        self._manager = pluggy.PluginManager(PROJECT_NAME)
        self._hooks = LifecycleHooks(self._manager, ())

    @classmethod
    def discover(
        cls,
        settings: PluginSettings | None = None,
        extra_plugins: Sequence[object] = (),
        *,
        strict: bool = True,
        discovery: Discovery | None = None,
        api: HookApi | None = None,
    ) -> PluginHost:
        """Find, select, order and load plugins: core's own, then the installed ones by name, then `extra_plugins`.

        Args:
            settings: which, in which order, with which options; by default every installed plugin.
            extra_plugins: modules or objects with hook implementations, from a script or a test;
                allow, deny, autoload and discovery do not concern them.
            strict: raise at the first failure; False records it, for `quire plugins list`.
            discovery: what is installed, if it is known already.
            api: the hook API to offer, if not this version's.

        Raises:
            PluginError: a plugin cannot be imported or registered, two collide, the load order has a
                cycle, or an allowed plugin is not installed (only when strict).
            ConfigError: options are wrong, or the settings name a plugin that there is not (when strict).
        """
        settings = settings or PluginSettings()
        api = api or HookApi()
        discovery = discovery or discover_candidates()
        host = cls()
        host.settings = settings
        host.problems = discovery.problems
        host.calls.is_traced = settings.trace
        if settings.trace:
            show_trace()
        host._manager.add_hookspecs(api.specs)
        loader = PluginLoader(host._manager, host.calls, settings, api, strict=strict)
        extra = [_extra_candidate(plugin) for plugin in extra_plugins]
        host._records = tuple(loader.load(builtin_candidates(), discovery.candidates, extra))
        for record in host._records:
            for entry in record.registered:
                host._registries[entry.kind].add(entry.name, entry.registration)
        host._hooks = LifecycleHooks(host._manager, tuple(loader.loaded.values()))
        host.warnings = tuple(loader.warnings)
        if strict:
            for warning in host.warnings:
                logger.warning("%s", warning)
        return host

    @property
    def records(self) -> tuple[PluginRecord, ...]:
        """Every plugin that was found: the enabled ones in load order, then the others by name."""
        return self._records

    def record(self, name: str) -> PluginRecord:
        """The plugin called `name`; PluginError with the nearest name when there is none."""
        for record in self._records:
            if record.name == name:
                return record
        names = [record.name for record in self._records]
        raise PluginError(f"no plugin is called {name!r}: {nearest(name, names)}")

    def enabled_names(self) -> tuple[str, ...]:
        """The enabled plugins, in load order."""
        return tuple(record.name for record in self._records if record.is_enabled)

    def summary(self) -> str:
        """One line: the enabled plugins, grouped by distribution."""
        groups: dict[str, list[str]] = {}
        for record in self._records:
            if record.is_enabled:
                groups.setdefault(record.candidate.origin, []).append(record.name)
        return "; ".join(f"{origin}: {', '.join(names)}" for origin, names in groups.items())

    def options(self, name: str) -> object | None:
        """The validated options of an enabled plugin; None where it takes none, or is not enabled."""
        return self.record(name).options

    def options_model(self, name: str) -> type[BaseModel] | None:
        """The pydantic model of a plugin's options; None where it takes none, or was not imported."""
        info = self.record(name).info
        return None if info is None else options_model(info)

    def settings_schema(self) -> dict[str, object]:
        """The JSON schema of the section [plugins], with the options of every enabled plugin in it."""
        schema = PluginSettings.model_json_schema()
        models = {name: self.options_model(name) for name in self.enabled_names()}
        schema["properties"]["options"] = {
            "type": "object",
            "description": PluginSettings.model_fields["options"].description,
            "properties": {
                name: {**model.model_json_schema(), "additionalProperties": False}
                for name, model in models.items()
                if model is not None
            },
            "additionalProperties": False,
        }
        return schema

    def fingerprint(self, without: Collection[str] = ()) -> str:
        """A hash of name, version and options of every enabled plugin that can touch logits or KV.

        Args:
            without: names of plugins that are switched off for now.
        """
        return fingerprint(self._records, without)

    def resolve_model(self, name: str) -> Path | None:
        """Ask the plugins for the local folder of the model called `name`; None when none knows it.

        Raises:
            QuireError: a plugin failed or returned something else than a path; it is named.
        """
        return self._hooks.resolve_model(name)

    def open_checkpoint(self, path: Path) -> CheckpointReader | None:
        """Ask the plugins for a reader of the model folder `path`; None leaves it to core.

        Raises:
            QuireError: a plugin failed or returned something else than a reader; it is named.
        """
        return self._hooks.open_checkpoint(path)

    def check_config(self, config: EngineConfig, device: DeviceInfo) -> None:
        """Ask every plugin what cannot work with it; its warnings are logged.

        Raises:
            ConfigError: everything fatal, with the plugins' names.
            QuireError: a plugin failed; it is named.
        """
        self._hooks.check_config(config, device)

    def check_capabilities(self, combination: Combination) -> None:
        """Compare what the chosen parts say they go with, before weights are loaded.

        Raises:
            ConfigError: every pair that conflicts, with the remedy.
        """
        check_combination(self._parts(combination), combination)

    def prepare_model(self, model: Model, config: EngineConfig) -> None:
        """Let every plugin change the loaded model in place.

        Raises:
            QuireError: a plugin failed; it is named.
        """
        self._hooks.prepare_model(model, config)

    def create_observers(self, config: EngineConfig) -> list[tuple[str, EngineObserver]]:
        """The observers of one engine, each with its plugin's name; failures are logged."""
        return self._hooks.create_observers(config)

    def engine_started(self, info: EngineInfo) -> None:
        """Tell every plugin that the engine takes requests; failures are logged."""
        self._hooks.engine_started(info)

    def engine_stopping(self, info: EngineInfo, error: BaseException | None) -> None:
        """Tell every plugin that the engine closes, the last loaded first; failures are logged."""
        self._hooks.engine_stopping(info, error)

    def _parts(self, combination: Combination) -> list[Part]:
        processors = combination.logits_processors
        if processors is None:
            processors = tuple(spec.name for spec in self.logits_processors.specs() if spec.is_always_on)
        chosen: list[tuple[Registry[Any], str | None]] = [
            (self.models, combination.architecture),
            (self.attention_backends, combination.attention_backend),
            (self.policies, combination.policy),
            (self.drafters, combination.drafter),
            (self.quantizations, combination.quantization),
            (self.executors, combination.executor),
            *((self.logits_processors, name) for name in processors),
        ]
        return [
            Part(
                registry.kind,
                name,
                describe_origin(registry.registration(name)),
                registry.spec(name).capabilities,
            )
            for registry, name in chosen
            if name is not None and name in registry
        ]


def _extra_candidate(plugin: object) -> Candidate:
    name = getattr(plugin, "__name__", None) or type(plugin).__name__
    return Candidate(str(name), "", "given by the program", "", plugin=plugin)
