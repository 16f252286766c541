"""Plugins of a live engine: what can be turned off and on again while requests run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from quire.api.errors import PluginError
from quire.engine.extensions import LoadedPolicy, names_of
from quire.engine.observers import Observers
from quire.engine.processor_desk import ProcessorDesk
from quire.plugins.builtin import BUILTIN_PLUGINS
from quire.plugins.host import PluginHost
from quire.plugins.record import PluginRecord

SWITCHABLE_KINDS = frozenset({"policy", "logits processor", "drafter"})
NEUTRAL_KINDS = frozenset({"command"})
"""Kinds that an engine has nothing to do with."""

logger = logging.getLogger("quire.plugins")


@dataclass(slots=True, frozen=True)
class PluginSnapshot:
    """What is switched on between two steps; replaced whole, never changed.

    Attributes:
        plugins: names of the enabled plugins, in load order. disabled: those that were turned off here.
        fingerprint: of what can change outputs; part of the prefix cache's keys and of outputs' metadata.
        drafters: names of the drafters that can be used.
        policy: the name of the scheduling policy in use.
    """

    plugins: tuple[str, ...] = ()
    disabled: frozenset[str] = frozenset()
    fingerprint: str = ""
    drafters: tuple[str, ...] = ()
    policy: str = ""

    @property
    def metadata(self) -> dict[str, str]:
        """What outputs say of it."""
        return {"fingerprint": self.fingerprint, "plugins": ",".join(self.plugins)}


@dataclass(slots=True, frozen=True)
class SwitchedParts:
    """What a switch acts on.

    Attributes:
        policy: the configured one. fallback: what orders requests while its plugin is off.
        set_policy: makes the scheduler use a policy. set_fingerprint: gives the prefix cache a fingerprint.
        drafter_plugin: whose drafter the engine uses; None: it uses none.
        set_drafting: lets the scheduler ask for drafts, or not.
    """

    host: PluginHost
    observers: Observers
    processors: ProcessorDesk
    policy: LoadedPolicy
    fallback: LoadedPolicy
    set_policy: Callable[[LoadedPolicy], None]
    set_fingerprint: Callable[[str], None]
    set_drafting: Callable[[bool], None]
    drafter_plugin: str | None = None


class PluginSwitch:
    """`engine.plugins`: turns plugins off and on, between steps.

    It can be used for plugins that brought observers, policies, drafters or logits processors, and
    nothing that the model was built with. Requests that use a logits processor of a disabled plugin
    finish with it; new ones that name it are refused.
    """

    def __init__(self, parts: SwitchedParts) -> None:
        self._parts = parts
        self._is_held = False
        self._disabled: frozenset[str] = frozenset()
        self._unavailable = dict(parts.processors.unavailable)
        self.snapshot = self._make_snapshot(frozenset())

    @property
    def disabled(self) -> frozenset[str]:
        """The plugins that are turned off, or will be after the step that runs."""
        return self._disabled

    @property
    def fingerprint(self) -> str:
        """Of the plugins that are on and can change outputs."""
        return self.snapshot.fingerprint

    def disable(self, name: str) -> None:
        """Turn a plugin off; nothing happens where it is off.

        Raises:
            PluginError: there is no such plugin, or it cannot be turned off while the engine runs.
        """
        record = self._parts.host.record(name)
        if not record.is_enabled or name in self._disabled:
            return
        reason = self._refusal(record)
        if reason is not None:
            raise PluginError(f"{record.owner} cannot be disabled while the engine runs: {reason}")
        self._disabled |= {name}
        self._settle()

    def enable(self, name: str) -> None:
        """Turn a plugin on again; nothing happens where it is on.

        Raises:
            PluginError: there is no such plugin, or the engine was started without it.
        """
        record = self._parts.host.record(name)
        if not record.is_enabled:
            raise PluginError(
                f"plugin {name!r} was not loaded when the engine was started ({record.reason}): "
                "change the settings and build a new engine"
            )
        self._disabled -= {name}
        self._settle()

    def hold(self) -> None:
        """A step begins: what is asked for until `release` waits."""
        self._is_held = True

    def release(self) -> None:
        """The step is over."""
        self._is_held = False
        if self._disabled != self.snapshot.disabled:
            self._settle()

    def _settle(self) -> None:
        """Make what is asked for true, unless a step runs."""
        before, disabled = self.snapshot, self._disabled
        if self._is_held or disabled == before.disabled:
            return
        parts = self._parts
        snapshot = self._make_snapshot(disabled)
        parts.observers.set_disabled(disabled)
        refused = {
            name: f"its plugin {parts.processors.loaded[name].plugin!r} is disabled; enable it to use it"
            for name in names_of(disabled, parts.processors.loaded)
        }
        parts.processors.set_unavailable({**self._unavailable, **refused})
        if snapshot.fingerprint != before.fingerprint:
            parts.set_fingerprint(snapshot.fingerprint)
        if snapshot.policy != before.policy:
            policy = parts.policy if snapshot.policy == parts.policy.name else parts.fallback
            logger.warning("scheduling policy: %s from now on, was %s", snapshot.policy, before.policy)
            parts.set_policy(policy)
        if parts.drafter_plugin is not None:
            parts.set_drafting(parts.drafter_plugin not in disabled)
        self.snapshot = snapshot
        for name in sorted(disabled ^ before.disabled):
            logger.info("plugin %r is %s", name, "disabled" if name in disabled else "enabled")

    def _make_snapshot(self, disabled: frozenset[str]) -> PluginSnapshot:
        parts = self._parts
        is_policy_off = parts.policy.plugin in disabled
        return PluginSnapshot(
            plugins=tuple(name for name in parts.host.enabled_names() if name not in disabled),
            disabled=disabled,
            fingerprint=parts.host.fingerprint(disabled),
            drafters=tuple(
                name
                for name in parts.host.drafters
                if parts.host.drafters.registration(name).plugin not in disabled
            ),
            policy=parts.fallback.name if is_policy_off else parts.policy.name,
        )

    def _refusal(self, record: PluginRecord) -> str | None:
        """Why a plugin has to stay on; None when it can be turned off."""
        kinds = record.registered_names()
        fixed = [
            f"the {kind} {', '.join(names)}"
            for kind, names in kinds.items()
            if kind not in SWITCHABLE_KINDS | NEUTRAL_KINDS
        ]
        if "quire_prepare_model" in record.hooks:
            fixed.append("changes to the loaded model")
        if "quire_open_checkpoint" in record.hooks:
            fixed.append("a reader of checkpoints")
        is_builtin = record.name in dict(BUILTIN_PLUGINS)
        remedy = "core is always there" if is_builtin else f"start without it (--no-plugin {record.name})"
        if fixed:
            return f"it brought {'; '.join(fixed)}, with which the engine was built: {remedy}"
        if not SWITCHABLE_KINDS.intersection(kinds) and record.name not in self._parts.observers.plugins:
            return (
                "it brought none of what can be: observers, policies, drafters, logits processors; " + remedy
            )
        return None
