"""What a plugin's module must be before any of its hooks is called."""

from __future__ import annotations

import importlib
import inspect

import pluggy

from quire.api.errors import PluginError
from quire.plugins.discovery import Candidate
from quire.plugins.registry import nearest

PREFIX = "quire_"


def import_plugin(candidate: Candidate) -> object:
    """The module, or the attribute of one, that a candidate's entry point names.

    Raises:
        PluginError: the module does not exist, which is how stale metadata shows.
    """
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
        if not hasattr(target, part):
            raise PluginError(f"its entry point names {candidate.target!r}, and there is no {part!r} in it")
        target = getattr(target, part)
    return target


def check_hooks(manager: pluggy.PluginManager, plugin: object) -> None:
    """Refuse what would be ignored silently, or would depend on pluggy's order of calls.

    Raises:
        PluginError: a hook's name is unknown, a function is called like a hook and lacks `@hookimpl`,
            or the marker asks for a wrapper, tryfirst or trylast.
    """
    hooks = [name for name in vars(manager.hook) if name.startswith(PREFIX)]
    for name in dir(plugin):
        if not name.startswith(PREFIX):
            continue
        marks = manager.parse_hookimpl_opts(plugin, name)
        if marks is None:
            if name in hooks and callable(getattr(plugin, name)):
                raise PluginError(f"{name} lacks the @hookimpl marker of quire.api.hookspecs")
            continue
        hook = marks.get("specname") or name
        if hook not in hooks and not marks.get("optionalhook"):
            raise PluginError(f"unknown hook {hook!r}: {nearest(hook, hooks)}")
        for mark in ("wrapper", "hookwrapper", "tryfirst", "trylast"):
            if marks.get(mark):
                raise PluginError(
                    f"{name} is marked {mark}=True, which Quire does not follow: each plugin answers for itself, "
                    "in load order; use PluginInfo.before and after"
                )


def source_file(plugin: object) -> str:
    """The file that a plugin's module or class comes from; empty where unknown."""
    try:
        return inspect.getsourcefile(plugin if inspect.ismodule(plugin) else type(plugin)) or ""
    except (TypeError, OSError):  # built in, or typed at a prompt
        return ""
