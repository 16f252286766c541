"""Flags are derived from the models, and give back what the models take."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pytest

from quire.api.config import SECTIONS, EngineConfig, PluginSettings
from quire.api.errors import ConfigError, SamplingParamsError
from quire.api.request import SamplingParams
from quire.cli.docstrings import argument_help
from quire.cli.flags import (
    CLI_SAMPLING_DEFAULTS,
    add_engine_flags,
    add_sampling_flags,
    engine_keywords,
    engine_settings,
    sampling_params,
    sampling_settings,
)
from quire.cli.plugin_flags import read_plugin_settings


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    add_engine_flags(parser)
    add_sampling_flags(parser)
    return parser.parse_args(list(arguments))


def test_every_field_has_a_flag_with_help() -> None:
    engine = {entry.name for settings in engine_settings().values() for entry in settings}
    assert engine == {name for model in SECTIONS.values() for name in model.model_fields}
    sampling = sampling_settings()
    assert [entry.name for entry in sampling] == [entry.name for entry in dataclasses.fields(SamplingParams)]
    every = [entry for settings in engine_settings().values() for entry in settings] + sampling
    assert all(entry.help for entry in every)
    assert len({entry.flag for entry in every}) == len(every)


def test_nothing_given_is_all_defaults() -> None:
    args = parse()
    assert engine_keywords(args) == {}
    assert sampling_params(args) == SamplingParams(**dict(CLI_SAMPLING_DEFAULTS))


def test_engine_flags_reach_the_config() -> None:
    args = parse(
        *("--max-model-len", "16Ki", "--block-size", "4", "--no-enable-prefix-caching", "--dtype", "float32"),
        *("--gpu-memory-utilization", "0.5", "--model", "12", "--engine-seed", "3"),
    )
    config = EngineConfig.from_keywords(engine_keywords(args))
    assert config.model.max_model_len == 16384
    assert config.cache.block_size == 4
    assert config.cache.enable_prefix_caching is False
    assert config.cache.gpu_memory_utilization == 0.5
    assert (config.model.model, config.model.dtype, config.model.seed) == ("12", "float32", 3)


def test_sampling_flags() -> None:
    args = parse(
        *("--temperature", "0.5", "--top-k", "3", "--seed", "7", "--stop", "a", "--stop", "b"),
        *("--stop-token-ids", "5", "--logit-bias", '{"5": -2.5}', "--ignore-eos", "--no-skip-special-tokens"),
    )
    params = sampling_params(args)
    assert (params.temperature, params.top_k, params.seed) == (0.5, 3, 7)
    assert params.stop_strings == ("a", "b")
    assert list(params.stop_token_ids or ()) == [5]
    assert params.logit_bias == {5: -2.5}
    assert params.ignore_eos
    assert not params.skip_special_tokens


@pytest.mark.parametrize("arguments", [("--temperature", "hot"), ("--top-k", "1.5"), ("--max-tokens", "0")])
def test_bad_sampling_values_are_the_models_errors(arguments: tuple[str, str]) -> None:
    with pytest.raises(SamplingParamsError, match=arguments[0][2:].replace("-", "_")):
        sampling_params(parse(*arguments))


def test_bad_json_is_explained() -> None:
    with pytest.raises(ConfigError, match="not JSON"):
        sampling_params(parse("--logit-bias", "{"))


def test_plugin_flags(tmp_path: Path) -> None:
    file = tmp_path / "quire.toml"
    file.write_text('[plugins]\ndeny = ["a"]\nautoload = false\n')
    settings = read_plugin_settings(
        ["generate", "--prompt", "x", "--plugin", "p", "--no-plugin", "b", f"--config={file}"]
    )
    assert settings == PluginSettings(allow=("p",), deny=("a", "b"), autoload=False)
    assert read_plugin_settings(["plugins", "list"]) == PluginSettings()


def test_docstring_entries() -> None:
    texts = argument_help(
        "First line.\n\n    Args:\n        a, b: both\n            of them.\n        c: one.\n\n"
        "    Raises:\n        d: no.\n"
    )
    assert texts == {"a": "both of them", "b": "both of them", "c": "one"}
