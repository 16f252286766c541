"""Loading plugins: import all, order them, let each register, settle collisions."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pluggy

from quire.api.config import PluginSettings
from quire.api.errors import ConfigError, PluginError, QuireError
from quire.api.specs import PluginInfo
from quire.plugins.admission import check_hooks, import_plugin, source_file
from quire.plugins.caller import PluginCaller
from quire.plugins.calls import PluginCalls
from quire.plugins.collect import collect, read_info
from quire.plugins.collisions import Preferences, settle
from quire.plugins.compatibility import HookApi
from quire.plugins.discovery import Candidate
from quire.plugins.options import OptionsError, options_model, validate_options
from quire.plugins.ordering import constraints_of, describe_cycle, find_cycle, sort_plugins
from quire.plugins.record import NamedRegistration, PluginRecord, PluginStatus
from quire.plugins.selection import check_names, choose

logger = logging.getLogger("quire.plugins")

PLUGIN_FAILURES = (Exception, SystemExit)
"""What plugin code may raise and is held against the plugin; an interrupt passes through."""


@dataclass(slots=True, frozen=True)
class Loaded:
    """A plugin that was imported and let in, before it registers."""

    candidate: Candidate
    plugin: object
    info: PluginInfo
    caller: PluginCaller
    options: object
    import_s: float


class PluginLoader:
    """Loads plugins once. Nothing of a plugin that fails is left: not in pluggy, not in a registry.

    Attributes:
        strict: raise at the first failure of a plugin that is not optional; else record it.
        warnings: what is odd in the settings and harmless; when not strict also what is wrong in them.
        loaded: the enabled plugins, by name, in load order.
    """

    def __init__(
        self,
        manager: pluggy.PluginManager,
        calls: PluginCalls,
        settings: PluginSettings,
        api: HookApi,
        *,
        strict: bool,
    ) -> None:
        self.strict = strict
        self.warnings: list[str] = []
        self.loaded: dict[str, Loaded] = {}
        self._manager = manager
        self._calls = calls
        self._settings = settings
        self._api = api
        self._out: list[PluginRecord] = []

    def load(
        self, builtin: Sequence[Candidate], installed: Sequence[Candidate], extra: Sequence[Candidate]
    ) -> list[PluginRecord]:
        """Every plugin and what became of it: the enabled ones in load order, then the others by name."""
        preferences = self._read_preferences()
        choice = choose(installed, self._settings, preferences.distributions)
        self._out += [
            PluginRecord(candidate, PluginStatus.DISABLED, why) for candidate, why in choice.disabled
        ]
        for candidate, why in choice.refused:
            self._fail(candidate, PluginError(why))
        for candidate in (*builtin, *choice.selected, *extra):
            self._let_in(candidate)
        self._complain_of_names([*builtin, *installed, *extra])
        names = self._ordered(len(builtin))
        brought = {name: entries for name in names if (entries := self._collect(name)) is not None}
        settlement = settle(brought, preferences, self._settings.optional)
        for name, message in settlement.refused.items():
            self._fail(self._drop(name), PluginError(message))
        self._complain_of_preferences(preferences, brought)
        self.loaded = {name: self.loaded[name] for name in settlement.used}
        enabled = [
            PluginRecord(
                entry.candidate,
                PluginStatus.ENABLED,
                info=entry.info,
                registered=tuple(settlement.used[name]),
                unused=tuple(settlement.unused.get(name, ())),
                hooks=tuple(caller.name for caller in self._manager.get_hookcallers(entry.plugin) or ()),
                options=entry.options,
                import_s=entry.import_s,
                source=source_file(entry.plugin),
            )
            for name, entry in self.loaded.items()
        ]
        self._out.sort(key=lambda record: (record.name, record.candidate.distribution))
        return enabled + self._out

    def _let_in(self, candidate: Candidate) -> None:
        plugin: object | None = None
        begin = time.perf_counter()
        try:
            plugin = candidate.plugin if candidate.plugin is not None else import_plugin(candidate)
            import_s = time.perf_counter() - begin
            self._check_unique(candidate, plugin)
            check_hooks(self._manager, plugin)
            self._manager.register(plugin, name=candidate.name)
            self._manager.check_pending()
            info = read_info(self._manager, plugin, candidate.name, self._calls)
            caller = PluginCaller(candidate.name, self._written_for(candidate, info), self._api, self._calls)
            model = options_model(info)
            given = self._settings.options.get(candidate.name, {})
            options = validate_options(candidate.name, model, given)
        except OptionsError as error:
            self._unregister(candidate.name, plugin)
            if self.strict:
                raise
            self._fail(candidate, error)
        except PLUGIN_FAILURES as error:
            self._unregister(candidate.name, plugin)
            self._fail(candidate, error)
        else:
            self.loaded[candidate.name] = Loaded(candidate, plugin, info, caller, options, import_s)

    def _check_unique(self, candidate: Candidate, plugin: object) -> None:
        same_name = self.loaded.get(candidate.name)
        if same_name is not None:
            origin = same_name.candidate.origin
            raise PluginError(f"the plugin's name is taken already by {origin}: rename one of the two")
        twin = next((entry.candidate for entry in self.loaded.values() if entry.plugin is plugin), None)
        if twin is not None:
            raise PluginError(
                f"its module {candidate.target!r} is also the plugin {twin.name!r} of {twin.origin}: one of the "
                f"two is stale metadata of a renamed plugin; uninstall its distribution, or deny {twin.name!r} "
                f"or {candidate.name!r}"
            )

    def _written_for(self, candidate: Candidate, info: PluginInfo) -> tuple[int, int]:
        try:
            return self._api.written_for(info.api)
        except PluginError as error:
            hint = (
                f": install a version of {candidate.distribution} for it" if "written" in str(error) else ""
            )
            raise PluginError(f"{error}{hint}") from None

    def _ordered(self, num_builtin: int) -> list[str]:
        """The names in load order; the plugins of a cycle are dropped."""
        first = list(self.loaded)[:num_builtin]
        while True:
            names = list(self.loaded)
            infos = {name: entry.info for name, entry in self.loaded.items()}
            constraints = constraints_of(infos, self._settings)
            for entry in constraints:
                if entry.second in first and entry.first not in first:
                    message = f"{entry.source}, and {entry.second} is always the first: leave it out"
                    self._fail(self._drop(entry.first), PluginError(message))
                    break
            else:
                cycle = find_cycle(names, constraints)
                if not cycle:
                    return sort_plugins(names, constraints)
                members = [entry.first for entry in cycle]
                optional = [name for name in members if name in self._settings.optional]
                for name in optional or members:
                    self._fail(self._drop(name), PluginError(describe_cycle(cycle)))

    def _collect(self, name: str) -> list[NamedRegistration] | None:
        entry = self.loaded[name]
        try:
            return collect(entry.caller, self._manager, entry.plugin, entry.candidate)
        except PLUGIN_FAILURES as error:
            self._fail(self._drop(name), error)
            return None

    def _drop(self, name: str) -> Candidate:
        entry = self.loaded.pop(name)
        self._unregister(name, entry.plugin)
        return entry.candidate

    def _unregister(self, name: str, plugin: object | None) -> None:
        if plugin is not None and self._manager.get_plugin(name) is plugin:
            self._manager.unregister(plugin)

    def _fail(self, candidate: Candidate, error: BaseException) -> None:
        cause = str(error) if isinstance(error, QuireError) else f"{type(error).__name__}: {error}"
        self._out.append(PluginRecord(candidate, PluginStatus.FAILED, cause, error=error))
        message = f"plugin {candidate.name!r} ({candidate.origin}) could not be loaded: {cause}"
        if candidate.name in self._settings.optional and not isinstance(error, OptionsError):
            logger.error("%s. It is optional: the start goes on without it", message)
        elif self.strict:
            raise PluginError(
                f"{message}. Mend or uninstall it, or deny it (--no-plugin {candidate.name})"
            ) from error

    def _read_preferences(self) -> Preferences:
        try:
            return Preferences.read(self._settings.prefer)
        except ConfigError as error:
            if self.strict:
                raise
            self.warnings.append(str(error))
            return Preferences({}, {})

    def _complain_of_names(self, every: Sequence[Candidate]) -> None:
        complaints = check_names(self._settings, every, list(self.loaded))
        self._complain(complaints.errors, complaints.warnings)

    def _complain_of_preferences(
        self, preferences: Preferences, brought: Mapping[str, Sequence[NamedRegistration]]
    ) -> None:
        for (kind, name), plugin in preferences.plugins.items():
            entries = brought.get(plugin)
            if entries is not None and (kind, name) not in {(entry.kind, entry.name) for entry in entries}:
                message = f"plugins.prefer: plugin {plugin!r} registers no {kind} {name!r}"
                self._complain([ConfigError(message)], [])

    def _complain(self, errors: Sequence[QuireError], warnings: Sequence[str]) -> None:
        if errors and self.strict:
            raise errors[0]
        self.warnings += [*(str(error) for error in errors), *warnings]
