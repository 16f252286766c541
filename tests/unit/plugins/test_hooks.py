"""The hooks as data: one list, documented in full, called in its order, each exercised below."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from quire.api import extensions, hookspecs
from quire.api.batch import DeviceInfo
from quire.api.config import EngineConfig
from quire.api.errors import ConfigError, ModelNotFoundError, PluginError
from quire.api.extensions import ConfigProblem, EngineInfo, EngineObserver
from quire.api.hookspecs import EXTENSION_POINTS, HOOK_API_VERSION, HOOKS
from quire.api.specs import PluginInfo
from quire.plugins import PluginHost
from quire.plugins.answers import CHECKS
from quire.plugins.collect import REGISTER_HOOKS

Plugin = Callable[..., ModuleType]
HostOf = Callable[..., PluginHost]

CONFIG = EngineConfig()
DEVICE = DeviceInfo("cpu")
INFO = EngineInfo(CONFIG, DEVICE, "tiny", "LlamaForCausalLM", 8, "f")


class Reader:
    """A checkpoint reader without a checkpoint."""

    names = shape = read = metadata = lambda self, *_: ()


CALLS: dict[str, Callable[[PluginHost], object]] = {
    "quire_resolve_model": lambda host: host.resolve_model("x"),
    "quire_open_checkpoint": lambda host: host.open_checkpoint(Path("/x")),
    "quire_check_config": lambda host: host.check_config(CONFIG, DEVICE),
    "quire_prepare_model": lambda host: host.prepare_model(SimpleNamespace(), CONFIG),  # type: ignore[arg-type]  # a stand-in
    "quire_create_observers": lambda host: host.create_observers(CONFIG),
    "quire_engine_started": lambda host: host.engine_started(INFO),
    "quire_engine_stopping": lambda host: host.engine_stopping(INFO, None),
}
"""How the host is made to call each hook that does not register; the others are called at load."""

LOADING = ("quire_plugin_info", *REGISTER_HOOKS)


MODEL = SimpleNamespace()
ERROR = RuntimeError("why it ended")
ARGUMENTS: dict[str, tuple[Callable[[PluginHost], object], dict[str, object]]] = {
    "quire_resolve_model": (lambda host: host.resolve_model("x"), {"name": "x"}),
    "quire_open_checkpoint": (lambda host: host.open_checkpoint(Path("/x")), {"path": Path("/x")}),
    "quire_check_config": (
        lambda host: host.check_config(CONFIG, DEVICE),
        {"config": CONFIG, "device": DEVICE, "options": None},
    ),
    "quire_prepare_model": (
        lambda host: host.prepare_model(MODEL, CONFIG),  # type: ignore[arg-type]  # a stand-in
        {"model": MODEL, "config": CONFIG, "options": None},
    ),
    "quire_create_observers": (
        lambda host: host.create_observers(CONFIG),
        {"config": CONFIG, "options": None},
    ),
    "quire_engine_started": (lambda host: host.engine_started(INFO), {"info": INFO}),
    "quire_engine_stopping": (
        lambda host: host.engine_stopping(INFO, ERROR),
        {"info": INFO, "error": ERROR},
    ),
}
"""Every hook that takes arguments: a call, and what a plugin must be given."""


def specified() -> list[str]:
    return [name for name in vars(hookspecs) if name.startswith("quire_")]


def test_the_table_the_specifications_and_the_calls_name_the_same_hooks_in_the_same_order() -> None:
    assert list(HOOKS) == specified()
    assert list(HOOKS) == [*LOADING, *CALLS]
    assert list(CHECKS) == list(CALLS)


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_says_when_what_in_which_order_what_on_errors_and_since(name: str) -> None:
    doc = inspect.getdoc(getattr(hookspecs, name)) or ""
    keys = [line.partition(": ")[0] for line in doc.splitlines()]
    assert [key for key in keys if key in ("When", "Returns", "Ordering", "Errors", "Since")] == [
        "When",
        "Returns",
        "Ordering",
        "Errors",
        "Since",
    ]
    since = ".".join(str(part) for part in HOOKS[name].since)
    assert f"Since: {since}." in doc
    assert HOOKS[name].since <= HOOK_API_VERSION
    for argument in inspect.signature(getattr(hookspecs, name)).parameters:
        assert f"    {argument}: " in doc, f"{name} does not explain {argument}"


def test_extension_points_exist_and_are_documented() -> None:
    assert set(EXTENSION_POINTS.values()) == {"request", "observer"}
    for point in EXTENSION_POINTS:
        owner, _, method = point.partition(".")
        assert inspect.getdoc(getattr(getattr(extensions, owner), method))


def test_hooks_are_called_in_the_order_of_an_engines_life(plugin: Plugin, host_of: HostOf) -> None:
    seen: list[str] = []

    def noting(name: str, answer: object) -> Callable[[], object]:
        return lambda: seen.append(name) or answer

    lists = {name for name in (*REGISTER_HOOKS, "quire_check_config", "quire_create_observers")}
    hooks = {
        name[6:]: noting(name, [] if name in lists else None) for name in HOOKS if name != "quire_plugin_info"
    }
    module = plugin("p", **hooks)
    info = PluginInfo(api=">=1")
    module.quire_plugin_info = hookspecs.hookimpl(noting("quire_plugin_info", info))
    host = host_of(module)
    for call in CALLS.values():
        call(host)
    assert seen == list(HOOKS)
    assert {name: host.calls.count("p", name).calls for name in HOOKS} == dict.fromkeys(HOOKS, 1)


@pytest.mark.parametrize("name", HOOKS)
def test_every_argument_arrives(name: str, plugin: Plugin, host_of: HostOf) -> None:
    parameters = list(inspect.signature(getattr(hookspecs, name)).parameters)
    if not parameters:
        assert name in LOADING
        return
    call, expected = ARGUMENTS[name]
    assert list(expected) == parameters, f"ARGUMENTS lacks an argument of {name}"
    seen: dict[str, object] = {}
    taken = ", ".join(parameters)
    given = ", ".join(f"{parameter}={parameter}" for parameter in parameters)
    answer = [] if name in ("quire_check_config", "quire_create_observers") else None
    function = eval(f"lambda {taken}: seen.update({given}) or answer", {"seen": seen, "answer": answer})
    call(host_of(plugin("p", **{name[6:]: function})))
    assert seen == expected


def test_load_order_holds_for_calls_and_is_turned_round_at_the_end(plugin: Plugin, host_of: HostOf) -> None:
    seen: list[str] = []
    both = [
        plugin(
            name,
            engine_started=lambda name=name: seen.append(f"start {name}"),
            engine_stopping=lambda name=name: seen.append(f"stop {name}"),
        )
        for name in ("a", "b")
    ]
    host = host_of(*both)
    host.engine_started(INFO)
    host.engine_stopping(INFO, None)
    assert seen == ["start a", "start b", "stop b", "stop a"]


def test_every_plugin_gets_its_own_options_and_the_arguments_that_it_names(
    plugin: Plugin, host_of: HostOf
) -> None:
    from pydantic import BaseModel

    class Options(BaseModel):
        size: int = 1

    seen: dict[str, tuple[object, ...]] = {}

    def check(config: object, options: object) -> list[ConfigProblem]:
        seen["a"] = (config, options)
        return []

    info = PluginInfo(api=">=1", options=Options)
    a = plugin("a", info=info, check_config=check)
    b = plugin(
        "b", check_config=lambda device, options, config: seen.update(b=(device, options, config)) or []
    )
    c = plugin("c", info=info, prepare_model=lambda options: seen.update(c=(options,)))
    host = host_of(a, b, c, options={"a": {"size": 5}})
    host.check_config(CONFIG, DEVICE)
    host.prepare_model(SimpleNamespace(), CONFIG)  # type: ignore[arg-type]  # a stand-in
    assert seen == {"a": (CONFIG, Options(size=5)), "b": (DEVICE, None, CONFIG), "c": (Options(),)}


def test_the_first_answer_wins_and_later_plugins_are_not_asked(plugin: Plugin, host_of: HostOf) -> None:
    reader = Reader()
    none = plugin("a", resolve_model=lambda: None, open_checkpoint=lambda: None)
    some = plugin("b", resolve_model=lambda: Path("/b"), open_checkpoint=lambda: reader)
    late = plugin("c", resolve_model=lambda: 1 / 0, open_checkpoint=lambda: 1 / 0)
    host = host_of(none, some, late)
    assert host.resolve_model("x") == Path("/b")
    assert host.open_checkpoint(Path("/x")) is reader
    assert host.calls.count("c", "quire_resolve_model").calls == 0


def test_all_fatal_problems_are_reported_together_and_warnings_logged(
    plugin: Plugin, host_of: HostOf, caplog: pytest.LogCaptureFixture
) -> None:
    a = plugin("a", check_config=lambda: [ConfigProblem("block_size=16 is odd", "give 8")])
    b = plugin(
        "b",
        check_config=lambda: [
            ConfigProblem("seed=0 is dull", "give 1", is_fatal=False),
            ConfigProblem("dtype is wrong", "give float32"),
        ],
    )
    with caplog.at_level(logging.WARNING, "quire.plugins"), pytest.raises(ConfigError) as caught:
        host_of(a, b).check_config(CONFIG, DEVICE)
    message = str(caught.value)
    assert "plugin 'a' (given by the program): block_size=16 is odd: give 8" in message
    assert "plugin 'b' (given by the program): dtype is wrong: give float32" in message
    assert "seed" not in message
    assert "plugin 'b' (given by the program): seed=0 is dull: give 1" in caplog.text


def test_observers_keep_their_owners(plugin: Plugin, host_of: HostOf) -> None:
    one, two, three = EngineObserver(), EngineObserver(), EngineObserver()
    host = host_of(
        plugin("a", create_observers=lambda: [one, two]), plugin("b", create_observers=lambda: [three])
    )
    assert host.create_observers(CONFIG) == [("a", one), ("a", two), ("b", three)]


def test_a_plugins_own_typed_error_keeps_its_type_and_gains_the_plugins_name(
    plugin: Plugin, host_of: HostOf
) -> None:
    def refuse(name: str) -> None:
        raise ModelNotFoundError(f"no {name} in the bucket")

    with pytest.raises(ModelNotFoundError, match=r"plugin 'p' .*quire_resolve_model: no x in the bucket"):
        host_of(plugin("p", resolve_model=refuse)).resolve_model("x")


def test_an_interrupt_is_nobodys_fault(plugin: Plugin, host_of: HostOf) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    host = host_of(plugin("p", engine_started=interrupt))
    with pytest.raises(KeyboardInterrupt):
        host.engine_started(INFO)
    with pytest.raises(KeyboardInterrupt):
        host_of(plugin("p", register_models=interrupt), optional=["p"])


def test_a_trace_says_who_answered_what(
    plugin: Plugin, host_of: HostOf, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "quire.plugins"):
        host_of(plugin("quiet", resolve_model=lambda: Path("/q"))).resolve_model("x")
        assert caplog.text == ""
        host_of(plugin("loud", resolve_model=lambda: Path("/l")), trace=True).resolve_model("x")
    assert "loud: quire_resolve_model in " in caplog.text
    assert "/l" in caplog.text


def test_a_reader_must_be_one(plugin: Plugin, host_of: HostOf) -> None:
    half = SimpleNamespace(names=list, shape=list, read=list)
    with pytest.raises(PluginError, match="it lacks 'metadata'"):
        host_of(plugin("p", open_checkpoint=lambda: half)).open_checkpoint(Path("/x"))
