"""The plugin host: decides which plugins take part, loads them, and holds what they registered."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pluggy

from quire.api import hookspecs
from quire.api.config import PluginSettings
from quire.api.errors import PluginError, QuireError
from quire.api.hookspecs import HOOK_API_VERSION, PROJECT_NAME
from quire.api.specs import AttentionBackendSpec, CommandSpec, ModelSpec, OpImplSpec, OpSpec, PluginInfo
from quire.plugins.builtin import builtin_candidates
from quire.plugins.collect import collect, implementations, read_info, unmarked_hooks
from quire.plugins.discovery import Candidate, Discovery, DiscoveryProblem, discover_candidates
from quire.plugins.record import NamedRegistration, PluginRecord, PluginStatus
from quire.plugins.registry import Registry, nearest
from quire.plugins.selection import disabled_reason, duplicate_reasons
from quire.plugins.versions import format_version, is_in_range


class PluginHost:
    """The plugins of one engine (or one command), and their registries.

    Build it with `discover`. Afterwards it only answers: nothing is loaded later.

    Attributes:
        models: ModelSpec by architecture.
        ops: OpSpec by name. op_impls: OpImplSpec by "op/name".
        attention_backends, commands: by name.
        problems: metadata that discovery passed over.
    """

    def __init__(self) -> None:
        self.models: Registry[ModelSpec] = Registry("architecture")
        self.ops: Registry[OpSpec] = Registry("op")
        self.op_impls: Registry[OpImplSpec] = Registry("op implementation")
        self.attention_backends: Registry[AttentionBackendSpec] = Registry("attention backend")
        self.commands: Registry[CommandSpec] = Registry("command")
        every = (self.models, self.ops, self.op_impls, self.attention_backends, self.commands)
        self._registries: Mapping[str, Registry[Any]] = {registry.kind: registry for registry in every}
        self.problems: tuple[DiscoveryProblem, ...] = ()
        self._records: list[PluginRecord] = []
        self._manager = pluggy.PluginManager(PROJECT_NAME)
        self._manager.add_hookspecs(hookspecs)

    @classmethod
    def discover(
        cls,
        settings: PluginSettings | None = None,
        extra_plugins: Sequence[object] = (),
        *,
        strict: bool = True,
        discovery: Discovery | None = None,
    ) -> PluginHost:
        """Find, select and load plugins: core's own, then the installed ones by name, then `extra_plugins`.

        Args:
            settings: allow, deny, autoload; by default every installed plugin is loaded.
            extra_plugins: modules or objects with hook implementations, from a script or a test;
                neither settings nor discovery concern them.
            strict: raise at the first failure; False records it, for `quire plugins list`.
            discovery: what is installed, if it is known already.

        Raises:
            PluginError: a plugin cannot be imported or registered, two collide, or an allowed one
                is not installed (only when strict).
        """
        settings = settings or PluginSettings()
        discovery = discovery or discover_candidates()
        host = cls()
        host.problems = discovery.problems
        for candidate in builtin_candidates():
            host._load(candidate, strict)
        host._load_installed(discovery.candidates, settings, strict)
        for plugin in extra_plugins:
            host._load(_extra_candidate(plugin), strict)
        return host

    @property
    def records(self) -> tuple[PluginRecord, ...]:
        """Every plugin that was found, in load order, whether enabled or not."""
        return tuple(self._records)

    def record(self, name: str) -> PluginRecord:
        """The plugin called `name`; PluginError with the nearest name when there is none."""
        for record in self._records:
            if record.name == name:
                return record
        raise PluginError(f"no plugin is called {name!r}: {nearest(name, self._names())}")

    def summary(self) -> str:
        """One line: the enabled plugins, grouped by distribution."""
        groups: dict[str, list[str]] = {}
        for record in self._records:
            if record.is_enabled:
                groups.setdefault(record.candidate.origin, []).append(record.name)
        return "; ".join(f"{origin}: {', '.join(names)}" for origin, names in groups.items())

    def resolve_model(self, name: str) -> Path | None:
        """Ask the plugins for the local folder of the model called `name`; None when none knows it.

        Raises:
            PluginError: a resolver failed or returned something else than a path.
        """
        for impl in implementations(self._manager.hook.quire_resolve_model):
            try:
                path = impl.function(**{argument: name for argument in impl.argnames})
            except QuireError:
                raise
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                raise PluginError(
                    f"plugin {impl.plugin_name!r} failed to resolve model {name!r}: {reason}"
                ) from error
            if path is None:
                continue
            if not isinstance(path, Path):
                raise PluginError(
                    f"plugin {impl.plugin_name!r} resolved model {name!r} to {path!r}, expected a Path"
                )
            return path
        return None

    def _names(self) -> list[str]:
        return [record.name for record in self._records]

    def _load_installed(
        self, candidates: Sequence[Candidate], settings: PluginSettings, strict: bool
    ) -> None:
        reasons = duplicate_reasons(candidates, settings)
        for candidate in candidates:
            reason = disabled_reason(candidate.name, settings)
            if reason is not None:
                self._records.append(PluginRecord(candidate, PluginStatus.DISABLED, reason))
            elif candidate.name in reasons:
                self._fail(candidate, PluginError(reasons[candidate.name]), strict)
            else:
                self._load(candidate, strict)
        installed = {candidate.name for candidate in candidates}
        known = installed | set(self._names())
        missing = [name for name in settings.allow or () if name not in known]
        if missing and strict:
            raise PluginError(
                f"the allowed plugin {missing[0]!r} is not installed: {nearest(missing[0], known)}"
            )

    def _load(self, candidate: Candidate, strict: bool) -> None:
        plugin: object | None = None
        try:
            plugin = candidate.plugin if candidate.plugin is not None else _import(candidate)
            info, found = self._register(plugin, candidate)
        except (Exception, SystemExit) as error:
            self._roll_back(candidate, plugin)
            self._fail(candidate, error, strict)
        else:
            record = PluginRecord(candidate, PluginStatus.ENABLED, info=info, registered=tuple(found))
            self._records.append(record)

    def _register(self, plugin: object, candidate: Candidate) -> tuple[PluginInfo, list[NamedRegistration]]:
        unmarked = next(unmarked_hooks(self._manager, plugin), None)
        if unmarked is not None:
            raise PluginError(f"{unmarked} lacks the @hookimpl marker of quire.api.hookspecs")
        if candidate.name in self._names():
            other = self.record(candidate.name).candidate.origin
            raise PluginError(f"the plugin's name is taken already by {other}: rename one of the two")
        self._manager.register(plugin, name=candidate.name)
        info = read_info(self._manager, plugin)
        if not is_in_range(HOOK_API_VERSION, info.api):
            raise PluginError(
                f"it was written for hook API {info.api}, this Quire has {format_version(HOOK_API_VERSION)}: "
                f"install a version of {candidate.distribution} for it"
            )
        self._manager.check_pending()
        found = collect(self._manager, plugin, candidate)
        for entry in found:
            self._registries[entry.kind].add(entry.name, entry.registration)
        return info, found

    def _roll_back(self, candidate: Candidate, plugin: object | None) -> None:
        if plugin is None or self._manager.get_plugin(candidate.name) is not plugin:
            return
        self._manager.unregister(plugin)
        for registry in self._registries.values():
            registry.discard(candidate.name)

    def _fail(self, candidate: Candidate, error: BaseException, strict: bool) -> None:
        cause = str(error) if isinstance(error, QuireError) else f"{type(error).__name__}: {error}"
        self._records.append(PluginRecord(candidate, PluginStatus.FAILED, cause, error=error))
        if strict:
            raise PluginError(
                f"plugin {candidate.name!r} ({candidate.origin}) could not be loaded: {cause}. "
                f"Mend or uninstall it, or deny it (--no-plugin {candidate.name})"
            ) from error


def _import(candidate: Candidate) -> object:
    module_name, _, attribute = candidate.target.partition(":")
    try:
        target: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            where = f" in {candidate.location}" if candidate.location else ""
            raise PluginError(
                f"its module {module_name!r} does not exist: the metadata{where} may be stale; "
                f"run `pip install --force-reinstall {candidate.distribution}` or uninstall it"
            ) from error
        raise
    for part in attribute.split(".") if attribute else ():
        target = getattr(target, part)
    return target


def _extra_candidate(plugin: object) -> Candidate:
    name = getattr(plugin, "__name__", None) or type(plugin).__name__
    return Candidate(str(name), "", "given by the program", "", plugin=plugin)
