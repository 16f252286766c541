"""Typed options per plugin."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import BaseModel, ConfigDict, Field

from quire.api.config import PluginSettings
from quire.api.errors import ConfigError, PluginError
from quire.api.specs import PluginInfo
from quire.plugins import Discovery, OptionText, PluginHost, PluginStatus

MakePlugin = Callable[..., Path]
Found = Callable[[], Discovery]
Plugin = Callable[..., ModuleType]
HostOf = Callable[..., PluginHost]


class Nested(BaseModel):
    """Options of options."""

    width: int = Field(1, description="how wide")


class Options(BaseModel):
    """Options for the tests; extra keys are allowed, and Quire refuses them all the same."""

    model_config = ConfigDict(extra="allow")

    size: int = Field(3, ge=1, le=9, description="how big")
    label: str = Field("x", description="what to call it")
    words: tuple[str, ...] = Field((), description="several")
    nested: Nested | None = Field(None, description="deeper")


class Required(BaseModel):
    """An option without a default."""

    path: str


def with_options(plugin: Plugin, options: object = Options, name: str = "p") -> ModuleType:
    return plugin(name, info=PluginInfo(api=">=1", options=options))  # type: ignore[arg-type]  # right and wrong ones


def test_options_are_validated_and_owned(plugin: Plugin, host_of: HostOf) -> None:
    host = host_of(with_options(plugin), plugin("plain"), options={"p": {"size": 4, "nested": {"width": 2}}})
    assert host.options("p") == Options(size=4, nested=Nested(width=2))
    assert host.options("plain") is None
    assert host.options_model("p") is Options


def test_defaults_where_nothing_is_said(plugin: Plugin, host_of: HostOf) -> None:
    assert host_of(with_options(plugin)).options("p") == Options()


def test_the_model_may_be_named(plugin: Plugin, host_of: HostOf, site: Path) -> None:
    (site / "late_options.py").write_text(
        "from pydantic import BaseModel\nclass Late(BaseModel):\n    size: int = 7\n"
    )
    host = host_of(with_options(plugin, "late_options:Late"), options={"p": {"size": 8}})
    assert host.options("p").size == 8  # type: ignore[union-attr]  # its options model


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sise": 4}, "plugins.options.p has no option 'sise': did you mean 'size'?"),
        ({"nested": {"wdth": 1}}, "plugins.options.p.nested has no option 'wdth': did you mean 'width'?"),
        ({"size": 10}, "plugins.options.p.size=10: input should be less than or equal to 9"),
        ({"size": "big"}, "plugins.options.p.size='big'"),
    ],
)
def test_wrong_options_name_value_and_limit(
    plugin: Plugin, host_of: HostOf, given: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        host_of(with_options(plugin), options={"p": given})
    assert message in str(caught.value)
    record = host_of(with_options(plugin), options={"p": given}, strict=False).record("p")
    assert record.status is PluginStatus.FAILED
    assert message in record.reason


def test_a_required_option_is_asked_for(plugin: Plugin, host_of: HostOf) -> None:
    with pytest.raises(ConfigError, match=r"plugins\.options\.p\.path is required"):
        host_of(with_options(plugin, Required))


def test_a_plugin_without_options_takes_none(plugin: Plugin, host_of: HostOf) -> None:
    with pytest.raises(ConfigError, match="takes no options; leave a out"):
        host_of(plugin("p"), options={"p": {"a": 1}})


def test_options_of_an_unknown_plugin_are_an_error(plugin: Plugin, host_of: HostOf) -> None:
    with pytest.raises(ConfigError, match=r"no plugin is called 'llma': did you mean 'llama'"):
        host_of(plugin("llama"), options={"llma": {}})


def test_options_of_a_disabled_plugin_are_a_warning(
    make_plugin: MakePlugin, found: Found, caplog: pytest.LogCaptureFixture
) -> None:
    make_plugin("foo", "raise RuntimeError('imported')")
    settings = PluginSettings(deny=("foo",), options={"foo": {"a": 1}})
    with caplog.at_level(logging.WARNING, "quire.plugins"):
        host = PluginHost.discover(settings, discovery=found())
    assert "[plugins.options.foo] has no effect" in caplog.text
    assert host.options("foo") is None


@pytest.mark.parametrize("model", [3, dict, "quire.api.specs:PluginInfo", "not_there:X"])
def test_what_is_no_model_is_the_plugins_fault(plugin: Plugin, host_of: HostOf, model: object) -> None:
    with pytest.raises(PluginError, match="'p'"):
        host_of(with_options(plugin, model))


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("size", "4", 4),
        ("label", "4", "4"),
        ("label", "[1]", "[1]"),
        ("words", '["a", "b"]', ("a", "b")),
        ("nested", '{"width": 5}', Nested(width=5)),
    ],
)
def test_text_off_a_command_line_is_text_first_then_json(
    plugin: Plugin, host_of: HostOf, key: str, text: str, value: object
) -> None:
    host = host_of(with_options(plugin), options={"p": {key: OptionText(text)}})
    assert getattr(host.options("p"), key) == value


def test_nested_text_is_parsed_too(plugin: Plugin, host_of: HostOf) -> None:
    host = host_of(with_options(plugin), options={"p": {"nested": {"width": OptionText("6")}}})
    assert host.options("p") == Options(nested=Nested(width=6))


def test_the_schema_holds_every_enabled_plugins_options(plugin: Plugin, host_of: HostOf) -> None:
    schema = host_of(with_options(plugin), plugin("plain")).settings_schema()
    properties = schema["properties"]
    assert set(properties) == set(PluginSettings.model_fields)  # type: ignore[call-overload]  # a dict of JSON
    options = properties["options"]["properties"]  # type: ignore[index]  # a dict of JSON
    assert set(options) == {"p"}
    assert options["p"]["properties"]["size"]["maximum"] == 9
    assert options["p"]["additionalProperties"] is False


def test_a_plugin_that_raises_a_config_error_is_named_all_the_same(plugin: Plugin, host_of: HostOf) -> None:
    def refuse() -> None:
        raise ConfigError("not on a Sunday")

    with pytest.raises(PluginError, match=r"plugin 'p' .*not on a Sunday.*deny it"):
        host_of(plugin("p", register_models=refuse))


def test_wrong_options_end_the_start_of_optional_plugins_too_and_no_log_says_otherwise(
    plugin: Plugin, host_of: HostOf, caplog: pytest.LogCaptureFixture
) -> None:
    info = PluginInfo(api=">=1,<2", options=Options)
    settings = PluginSettings(optional=("p",), options={"p": {"size": 99}})
    host = PluginHost.discover(settings, extra_plugins=[plugin("p", info=info)], strict=False)
    assert host.record("p").status is PluginStatus.FAILED and "goes on" not in caplog.text
    with pytest.raises(ConfigError, match="plugins.options.p.size=99"):
        PluginHost.discover(settings, extra_plugins=[plugin("p", info=info)])
