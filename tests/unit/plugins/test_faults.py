"""Faults at every hook: exception, SystemExit, wrong type, None, mutation; at the first and the third call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from quire.api.batch import DeviceInfo
from quire.api.config import EngineConfig
from quire.api.errors import QuireError
from quire.api.extensions import EngineInfo, EngineObserver
from quire.api.hookspecs import HOOKS, hookimpl
from quire.api.specs import ModelSpec, PluginInfo
from quire.plugins import PluginHost, PluginStatus
from quire.plugins.collect import REGISTER_HOOKS

Plugin = Callable[..., ModuleType]
HostOf = Callable[..., PluginHost]

CONFIG = EngineConfig.from_keywords({"plugins": {"options": {}}})
DEVICE = DeviceInfo("cpu")
INFO = EngineInfo(CONFIG, DEVICE, "tiny", "LlamaForCausalLM", 8, "f")
CALLS: dict[str, Callable[[PluginHost], object]] = {
    "quire_resolve_model": lambda host: host.resolve_model("x"),
    "quire_open_checkpoint": lambda host: host.open_checkpoint(Path("/x")),
    "quire_check_config": lambda host: host.check_config(CONFIG, DEVICE),
    "quire_prepare_model": lambda host: host.prepare_model(SimpleNamespace(), CONFIG),  # type: ignore[arg-type]  # a stand-in
    "quire_create_observers": lambda host: host.create_observers(CONFIG),
    "quire_engine_started": lambda host: host.engine_started(INFO),
    "quire_engine_stopping": lambda host: host.engine_stopping(INFO, None),
}
LOADING = ("quire_plugin_info", *REGISTER_HOOKS)
FAULTS = ("exception", "exit", "wrong type", "wrong entry", "none")
MAY_BE_NONE = frozenset(
    {
        "quire_resolve_model",
        "quire_open_checkpoint",
        "quire_prepare_model",
        "quire_engine_started",
        "quire_engine_stopping",
    }
)
FROZEN_ARGUMENTS = {
    "quire_check_config": ("config", "device"),
    "quire_prepare_model": ("config",),
    "quire_create_observers": ("config",),
    "quire_engine_started": ("info",),
    "quire_engine_stopping": ("info",),
}
"""Arguments that a plugin could try to change. A name and a path cannot be; a model is there to be changed."""

OBSERVER = EngineObserver()


@dataclass
class Faulty:
    """A hook that answers well until its n-th call."""

    hook: str
    fault: str
    at: int
    calls: int = field(default=0)

    def __call__(self) -> object:
        self.calls += 1
        if self.calls < self.at:
            return self.good()
        if self.fault == "exception":
            raise OSError("no disk")
        if self.fault == "exit":
            raise SystemExit(3)
        if self.fault == "wrong entry":
            return [{"wrong": 1}]
        return None if self.fault == "none" else {"wrong": 1}

    def good(self) -> object:
        if self.hook == "quire_plugin_info":
            return PluginInfo(api=">=1")
        if self.hook == "quire_register_models":
            return [ModelSpec("BadForCausalLM", "a:b")]
        return None if self.hook in MAY_BE_NONE else []


def broken(plugin: Plugin, hook: str, fault: str, at: int) -> ModuleType:
    """The module `bad`, which also registers a model that must not stay."""
    faulty = Faulty(hook, fault, at)
    module = plugin("bad", register_models=lambda: [ModelSpec("BadForCausalLM", "a:b")])
    setattr(module, hook, hookimpl(lambda: faulty()))
    return module


def neighbour(plugin: Plugin) -> ModuleType:
    return plugin(
        "neighbour",
        register_models=lambda: [ModelSpec("GoodForCausalLM", "a:b")],
        create_observers=lambda: [OBSERVER],
    )


def matrix() -> Iterator[tuple[str, str, int]]:
    for hook in HOOKS:
        for fault in FAULTS:
            for at in (1, 3):
                yield hook, fault, at


def test_the_matrix_covers_every_hook() -> None:
    assert {hook for hook, _, _ in matrix()} == set(HOOKS) == {*LOADING, *CALLS}


@pytest.mark.parametrize(("hook", "fault", "at"), [entry for entry in matrix() if entry[0] in LOADING])
def test_at_load(plugin: Plugin, host_of: HostOf, hook: str, fault: str, at: int) -> None:
    """The start fails and names the plugin and the cause; hosts that were built before are as they were."""
    assert HOOKS[hook].scope == "start"
    bad, good = broken(plugin, hook, fault, at), neighbour(plugin)
    before = [host_of(bad, good) for _ in range(at - 1)]
    with pytest.raises(QuireError) as caught:
        host_of(bad, good)
    message = str(caught.value)
    causes = {
        "wrong entry": "{'wrong': 1}",
        "exception": "OSError: no disk",
        "exit": "SystemExit: 3",
        "wrong type": "{'wrong': 1}",
        "none": "None",
    }
    for part in ("plugin 'bad'", "given by the program", causes[fault], "--no-plugin bad"):
        assert part in message
    if fault in ("wrong type", "wrong entry", "none"):
        assert f"{hook} returned" in message
    assert all(host.record("bad").is_enabled for host in before)


@pytest.mark.parametrize(("hook", "fault", "at"), [entry for entry in matrix() if entry[0] in LOADING])
def test_at_load_of_an_optional_plugin(
    plugin: Plugin, host_of: HostOf, caplog: pytest.LogCaptureFixture, hook: str, fault: str, at: int
) -> None:
    """It is left out whole, and loudly; nothing of it stays, and its neighbour is untouched."""
    bad, good = broken(plugin, hook, fault, at), neighbour(plugin)
    for _ in range(at - 1):
        host_of(bad, good)
    with caplog.at_level(logging.ERROR, "quire.plugins"):
        host = host_of(bad, good, optional=["bad"])
    assert "plugin 'bad' (given by the program) could not be loaded" in caplog.text
    assert host.record("bad").status is PluginStatus.FAILED
    assert_no_trace(host, host_of(good))
    assert host.calls.count("bad", hook).errors == 1


@pytest.mark.parametrize(("hook", "fault", "at"), [entry for entry in matrix() if entry[0] in CALLS])
def test_after_load(
    plugin: Plugin, host_of: HostOf, caplog: pytest.LogCaptureFixture, hook: str, fault: str, at: int
) -> None:
    host = host_of(broken(plugin, hook, fault, at), neighbour(plugin))
    call = CALLS[hook]
    for _ in range(at - 1):
        call(host)
    is_fault = fault != "none" or hook not in MAY_BE_NONE
    if not is_fault:
        call(host)
        assert host.calls.count("bad", hook).errors == 0
        return
    if HOOKS[hook].scope == "start":
        with pytest.raises(QuireError, match=rf"plugin 'bad' \(given by the program\) failed in {hook}: "):
            call(host)
    else:
        with caplog.at_level(logging.ERROR, "quire.plugins"):
            answer = call(host)
        assert f"plugin 'bad' (given by the program) failed in {hook}" in caplog.text
        if hook == "quire_create_observers":
            assert answer == [("neighbour", OBSERVER)]
    count = host.calls.count("bad", hook)
    assert (count.calls, count.errors) == (at, 1)


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize(
    ("hook", "argument"),
    [(hook, argument) for hook, arguments in FROZEN_ARGUMENTS.items() for argument in arguments],
)
def test_arguments_cannot_be_changed(
    plugin: Plugin, host_of: HostOf, caplog: pytest.LogCaptureFixture, hook: str, argument: str, at: int
) -> None:
    """The attempt raises in the plugin, and counts as its failure; the next plugin sees what was given."""
    calls = 0

    def mutate(value: object) -> object:
        nonlocal calls
        calls += 1
        if calls == at:
            if argument == "config":
                value.plugins.options["stolen"] = {}  # type: ignore[attr-defined]  # to be refused
            setattr(value, "model" if argument != "device" else "type", "stolen")
        return [] if hook in ("quire_check_config", "quire_create_observers") else None

    functions = {
        "config": lambda config: mutate(config),
        "device": lambda device: mutate(device),
        "info": lambda info: mutate(info),
    }
    before = (CONFIG.model_dump_json(), repr(DEVICE), repr(INFO))
    host = host_of(plugin("bad", **{hook[6:]: functions[argument]}), neighbour(plugin))
    for _ in range(at - 1):
        CALLS[hook](host)
    if HOOKS[hook].scope == "start":
        with pytest.raises(QuireError, match="plugin 'bad'"):
            CALLS[hook](host)
    else:
        CALLS[hook](host)
        assert "plugin 'bad'" in caplog.text
    assert host.calls.count("bad", hook).errors == 1
    assert (CONFIG.model_dump_json(), repr(DEVICE), repr(INFO)) == before


def assert_no_trace(host: PluginHost, clean: PluginHost) -> None:
    """Nothing of `bad` is left: the host is as one that never saw it, but for the record of its failure."""
    for kind, registry in host._registries.items():
        assert list(registry) == list(clean._registries[kind])
        assert all(registry.registration(name).plugin != "bad" for name in registry)
    assert host._manager.get_plugin("bad") is None
    assert vars(host._manager.hook).keys() == vars(clean._manager.hook).keys()
    owners = {
        impl.plugin_name for hook in HOOKS for impl in getattr(host._manager.hook, hook).get_hookimpls()
    }
    assert owners == {"core", "neighbour"}
    assert host.enabled_names() == clean.enabled_names()
    assert host.fingerprint() == clean.fingerprint()
    assert host.record("bad").registered == ()
    assert host.options("bad") is None


@pytest.mark.parametrize(
    "hooks",
    [
        {"regster_models": lambda: []},
        {"resolve_model": lambda nam: None},
        {"register_models": lambda: [ModelSpec("A", "a:b"), ModelSpec("A", "a:b")]},
        {"register_models": lambda: [ModelSpec("GoodForCausalLM", "a:b")]},
    ],
)
def test_other_failures_leave_no_trace_either(
    plugin: Plugin, host_of: HostOf, hooks: dict[str, Callable[..., object]]
) -> None:
    good = neighbour(plugin)
    host = host_of(good, plugin("bad", **hooks), optional=["bad"])
    assert host.record("bad").status is PluginStatus.FAILED
    assert_no_trace(host, host_of(good))


def test_an_answer_whose_repr_fails_is_a_failure_like_another(plugin: Plugin, host_of: HostOf) -> None:
    class Hostile:
        def __repr__(self) -> str:
            raise ValueError("no repr")

    host = host_of(plugin("bad", resolve_model=lambda: Hostile()), trace=True)
    with pytest.raises(QuireError, match="plugin 'bad'"):
        host.resolve_model("x")


def test_a_trace_survives_an_answer_whose_repr_fails(
    host_of: HostOf, caplog: pytest.LogCaptureFixture
) -> None:
    class Hostile:
        def __repr__(self) -> str:
            raise ValueError("no repr")

    host = host_of(trace=True)
    with caplog.at_level(logging.INFO, "quire.plugins"):
        host.calls.call("p", "point", Hostile)
    assert "p: point in " in caplog.text
    assert "a Hostile whose repr raises ValueError" in caplog.text
