"""The plugins' settings: keywords and flags over the environment over the file over the defaults."""

from __future__ import annotations

import argparse
import copy
import json
import pickle
from pathlib import Path

import pytest

from quire.api.config import EngineConfig, PluginSettings, layered_plugin_settings
from quire.api.errors import ConfigError
from quire.cli.plugin_flags import add_plugin_flags, plugin_settings, read_plugin_settings

FILE = """
[plugins]
allow = ["from-file"]
deny = ["a"]
optional = ["o-file"]
observer_time_limit_s = 5.0
[plugins.prefer]
"op:x" = "file"
"op:y" = "file"
[plugins.order.p]
after = ["q"]
[plugins.options.p]
size = 1
color = "file"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "quire.toml"
    path.write_text(FILE)
    return path


def flags(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_plugin_flags(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def test_the_file_wins_over_the_defaults(file: Path) -> None:
    plugins = EngineConfig.from_keywords({}, file).plugins
    assert plugins.allow == ("from-file",)
    assert plugins.observer_time_limit_s == 5.0
    assert plugins.autoload is PluginSettings().autoload is True


def test_the_environment_wins_over_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIRE_PLUGINS", "one, two,-three")
    plugins = EngineConfig.from_keywords({}, file).plugins
    assert plugins.allow == ("one", "two")
    assert plugins.deny == ("a", "three")
    assert plugins.optional == ("o-file",)


def test_keywords_win_over_both_key_by_key(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "QUIRE_PLUGINS",
        json.dumps(
            {"allow": ["env"], "prefer": {"op:x": "env"}, "options": {"p": {"size": 2}, "e": {"k": True}}}
        ),
    )
    given = {"allow": ["keyword"], "deny": ["b"], "options": {"p": {"deep": {"x": [1]}}}, "trace": True}
    plugins = EngineConfig.from_keywords({"plugins": given}, file).plugins
    assert plugins.allow == ("keyword",)
    assert plugins.deny == ("a", "b")
    assert plugins.prefer == {"op:x": "env", "op:y": "file"}
    assert plugins.options == {"p": {"size": 2, "color": "file", "deep": {"x": (1,)}}, "e": {"k": True}}
    assert plugins.order["p"].after == ("q",)
    assert plugins.trace


def test_none_as_a_keyword_takes_an_allow_list_back(file: Path) -> None:
    assert EngineConfig.from_keywords({"plugins": {"allow": None}}, file).plugins.allow is None


def test_flags_reach_every_setting_and_win(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIRE_PLUGINS", "-env")
    args = flags(
        *("--config", file, "--plugin", "f", "--no-plugin", "g", "--no-plugin-autoload"),
        *("--plugin-optional", "h", "--plugin-option", "p.size=3", "--plugin-option", "p.deep.x=[1, 2]"),
        *("--plugin-prefer", "op:x=flag", "--plugin-order", "a,b,c", "--trace-plugins"),
        *("--plugin-observer-time-limit-s", 0.5),
    )
    plugins = plugin_settings(args)
    assert plugins.allow == ("f",)
    assert plugins.deny == ("a", "env", "g")
    assert plugins.autoload is False
    assert plugins.optional == ("h",)
    assert plugins.prefer == {"op:x": "flag", "op:y": "file"}
    assert {name: order.after for name, order in plugins.order.items()} == {
        "p": ("q",),
        "b": ("a",),
        "c": ("b",),
    }
    assert plugins.options["p"] == {"size": "3", "color": "file", "deep": {"x": "[1, 2]"}}
    assert (plugins.trace, plugins.observer_time_limit_s) == (True, 0.5)
    assert set(PluginSettings.model_fields) == plugins.model_fields_set


def test_merging_what_was_merged_changes_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIRE_PLUGINS", "x,-y")
    once = plugin_settings(flags("--config", file, "--plugin-option", "p.size=3"))
    again = EngineConfig.from_keywords({"plugins": once}, file).plugins
    assert again == once
    assert type(again.options["p"]["size"]) is type(once.options["p"]["size"])


def test_flags_are_found_among_others(file: Path) -> None:
    settings = read_plugin_settings(["generate", "--config", str(file), "--unknown", "--trace-plugins"])
    assert settings.trace
    assert settings.allow == ("from-file",)


@pytest.mark.parametrize("text", ["", "   "])
def test_a_blank_variable_says_nothing(text: str) -> None:
    assert layered_plugin_settings({}, PluginSettings(), {"QUIRE_PLUGINS": text}) == PluginSettings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("one -two", "QUIRE_PLUGINS='one -two': 'one -two' has a space; separate names by commas"),
        ("{", "QUIRE_PLUGINS='{' is not valid JSON"),
        ('{"alow": []}', "QUIRE_PLUGINS: unknown setting 'plugins.alow'; did you mean 'allow'"),
        ('{"deny": "x"}', "QUIRE_PLUGINS: deny='x'"),
    ],
)
def test_a_malformed_variable_is_named(text: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIRE_PLUGINS", text)
    with pytest.raises(ConfigError) as caught:
        EngineConfig.from_keywords({})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"order": {"p": {"bfore": []}}}, "'plugins.order.p.bfore'; did you mean 'before'"),
        ({"prefer": {"op:x": 1}}, "prefer.op:x=1"),
        ({"options": {"p": 1}}, "options.p=1"),
        ({"observer_time_limit_s": 0}, "greater than 0"),
        (3, "plugins=3: give a mapping with allow, deny"),
    ],
)
def test_wrong_settings_are_named(given: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EngineConfig.from_keywords({"plugins": given})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--plugin-option", "size=3"),
        ("--plugin-option", "p.size"),
        ("--plugin-option", "p.=3"),
        ("--plugin-option", "p.a=1", "--plugin-option", "p.a.b=2"),
        ("--plugin-prefer", "op:x"),
        ("--plugin-order", "a"),
        ("--plugin-order", "a,,b"),
    ],
)
def test_malformed_flags_are_named(arguments: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=arguments[0]):
        plugin_settings(flags(*arguments))


def test_settings_are_read_only_all_the_way_down_and_copy() -> None:
    # for mypy: of nested mappings
    settings = PluginSettings(options={"p": {"deep": {"x": [1]}}}, prefer={"op:x": "p"})  # type: ignore[dict-item]
    changes = [
        lambda: settings.options["p"].update(a=1),  # type: ignore[attr-defined]  # to be refused
        lambda: settings.options["p"]["deep"].__setitem__("x", 2),  # type: ignore[attr-defined]  # to be refused
        lambda: settings.prefer.pop("op:x"),  # type: ignore[attr-defined]  # to be refused
        lambda: setattr(settings, "trace", True),
    ]
    before = settings.model_dump_json()
    for change in changes:
        with pytest.raises((TypeError, ValueError)):
            change()
    assert settings.model_dump_json() == before
    assert copy.deepcopy(settings) == settings == pickle.loads(pickle.dumps(settings))
    assert settings.model_copy(update={"deny": ("z",)}).options == settings.options
