"""From settings and a folder to an engine: every bad input is refused with a typed error that says what to do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import cast

import pytest

from quire.api.config import EngineConfig, PluginSettings
from quire.api.errors import (
    CapacityError,
    CheckpointError,
    ConfigError,
    DeviceError,
    ModelNotFoundError,
    PluginError,
    QuantizationError,
    TokenizerError,
    UnsupportedModelError,
)
from quire.api.hookspecs import hookimpl
from quire.api.protocols import ModelFactory
from quire.api.request import SamplingParams
from quire.api.specs import ModelSpec, PluginInfo
from quire.engine.build import build_engine
from quire.engine.engine import Engine
from quire.plugins import PluginHost, resolve_factory
from quire.testing.tiny_models import write_tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("llama"))  # a context of 64 tokens


def build(folder: Path | str, **settings: object) -> Engine:
    keywords = {"model": folder, "skip_tokenizer_init": True, "dtype": "float32", "block_size": 4}
    return build_engine(EngineConfig.from_keywords({**keywords, **settings}))


def altered(folder: Path, target: Path, changes: Mapping[str, object]) -> Path:
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | dict(changes)))
    return target


@pytest.mark.parametrize("name", ["./no/such/model", "/no/such/model", "~/no such model"])
def test_a_model_that_nothing_resolves(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="is no folder, and no plugin resolves it: check the path"):
        build(name)


def test_a_file_and_a_folder_without_a_config(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="give the folder"):
        build(folder / "model.safetensors")
    with pytest.raises(ModelNotFoundError, match=r"has no config\.json"):
        build(tmp_path)


def test_an_architecture_that_no_plugin_serves(folder: Path, tmp_path: Path) -> None:
    path = altered(folder, tmp_path, {"architectures": ["NoSuchForCausalLM"]})
    with pytest.raises(UnsupportedModelError, match="NoSuchForCausalLM.*LlamaForCausalLM.*plugin"):
        build(path)


class BrokenFactory:
    """Good, but for the methods given."""

    def __init__(self, **methods: object) -> None:
        for name, method in methods.items():
            setattr(self, name, method)

    def parse_config(self, hf_config: Mapping[str, object]) -> object:
        host = PluginHost.discover()
        factory = resolve_factory(host.models.spec("LlamaForCausalLM").factory)
        return cast(ModelFactory, factory).parse_config(hf_config)

    def weight_map(self, config: object) -> object:
        return {}["no layer"]

    def __call__(self, config: object, context: object) -> object:
        raise RuntimeError("expected 4 dimensions")


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda: None, r"has no parse_config\(\), see ModelFactory"),
        (BrokenFactory(parse_config=lambda hf: hf["d_model"]), "parse_config failed: KeyError: 'd_model'"),
        (BrokenFactory(parse_config=lambda hf: None), "parse_config returned None, expected a ModelConfig"),
        (BrokenFactory(), "failed: RuntimeError: expected 4 dimensions"),
    ],
)
def test_a_plugin_s_broken_model_is_named(folder: Path, factory: object, message: str) -> None:
    plugin = ModuleType("broken")
    plugin.quire_plugin_info = hookimpl(lambda: PluginInfo(api=">=1,<2"))  # type: ignore[attr-defined]  # a module made here
    specs = [ModelSpec("LlamaForCausalLM", factory)]  # type: ignore[arg-type]  # any callable
    plugin.quire_register_models = hookimpl(lambda: specs)  # type: ignore[attr-defined]  # a module made here
    config = EngineConfig.from_keywords({"model": folder, "skip_tokenizer_init": True, "dtype": "float32"})
    settings = PluginSettings(prefer={"architecture:LlamaForCausalLM": "broken"})
    with pytest.raises(PluginError, match=f"'LlamaForCausalLM' of plugin 'broken'.*{message}"):
        build_engine(config, PluginHost.discover(settings, extra_plugins=[plugin]))


def test_settings_that_a_given_host_passes_over_are_named(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"model": folder, "skip_tokenizer_init": True, "dtype": "float32"}
    config = EngineConfig.from_keywords({**settings, "plugins": {"deny": ["mpt"]}})
    build_engine(config, PluginHost.discover(config.plugins)).close()
    assert "does nothing" not in caplog.text
    build_engine(config, PluginHost.discover()).close()
    assert "plugins.deny of the configuration" in caplog.text


def test_a_model_whose_plugin_is_off_is_told_so(folder: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"Installed and off: llama \(denied by plugins.deny\)"):
        build(folder, plugins={"deny": ["llama"]})


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (
            {"quant_method": "exl9"},
            UnsupportedModelError,
            "quant_method='exl9', which no plugin serves; served are",
        ),
        ("awq", QuantizationError, "quantization_config is a str; it must be a JSON object"),
        ({"bits": 4}, QuantizationError, "quant_method=None; name the method"),
    ],
)
def test_a_quantization_that_nothing_serves(
    folder: Path, tmp_path: Path, value: object, error: type[Exception], words: str
) -> None:
    path = altered(folder, tmp_path, {"quantization_config": value})
    with pytest.raises(error, match=words):
        build(path)


def test_weights_that_are_missing_or_cut(folder: Path, tmp_path: Path) -> None:
    path = altered(folder, tmp_path, {})
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64])
    with pytest.raises(CheckpointError):
        build(path)
    weights.unlink()
    with pytest.raises(CheckpointError):
        build(path)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"max_model_len": 65}, ConfigError, "max_model_len=65 is more than the model supports: give at most 64"),
        ({"max_model_len": 1}, ConfigError, "max_model_len=1 leaves no room"),
        ({"max_model_len": 0}, ConfigError, "max_model_len"),
        ({"max_num_seqs": 0}, ConfigError, "max_num_seqs"),
        ({"max_num_seqs": -1}, ConfigError, "max_num_seqs"),
        ({"max_num_batched_tokens": 0}, ConfigError, "max_num_batched_tokens"),
        ({"block_size": 0}, ConfigError, "block_size"),
        ({"block_size": -4}, ConfigError, "block_size"),
        ({"num_kv_blocks": 0}, ConfigError, "num_kv_blocks"),
        ({"kv_cache_memory_bytes": -1}, ConfigError, "kv_cache_memory_bytes"),
        ({"gpu_memory_utilization": 0.0}, ConfigError, "gpu_memory_utilization"),
        ({"gpu_memory_utilization": float("nan")}, ConfigError, "gpu_memory_utilization"),
        ({"enable_chunked_prefill": False, "max_num_batched_tokens": 63}, ConfigError, "less than max_model_len=64"),
        ({"scheduling_policy": "lifo"}, ConfigError, "fcfs, priority"),
        ({"max_model_len": 64, "num_kv_blocks": 15}, CapacityError, "holds 60 tokens, .*max_model_len=64 needs 16"),
        ({"kv_cache_memory_bytes": 16}, CapacityError, "holds 0 blocks of 4 tokens.*raise kv_cache_memory_bytes"),
        ({"num_kv_blocks": 1, "block_size": 1}, CapacityError, "room for 2 tokens"),
        ({"device": "abacus"}, DeviceError, "abacus"),
        ({"attention_backend": "no-such"}, PluginError, "no-such"),
        ({"skip_tokenizer_init": False}, TokenizerError, "tokenizer"),
        ({"chat_template": "no/such/file.jinja"}, TokenizerError, "neither a template nor a readable file"),
    ],
)  # fmt: skip
def test_bad_settings(folder: Path, settings: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        build(folder, **settings)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("out of memory: 7 bytes\nmore")])
def test_a_failed_allocation_is_a_capacity_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*args: object, **keywords: object) -> None:
        raise error

    monkeypatch.setattr("quire.engine.model_loading.build_model", fail)
    text = "the model in .*(MemoryError|out of memory: 7 bytes). Check the sizes .* max_num_seqs"
    with pytest.raises(CapacityError, match=text) as caught:
        build(folder)
    assert caught.value.__cause__ is error


def test_an_error_of_ours_in_an_allocation_stays_what_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **keywords: object) -> None:
        raise DeviceError("planted")

    monkeypatch.setattr("quire.engine.model_loading.build_model", fail)
    with pytest.raises(DeviceError, match="planted"):
        build(folder)


def test_what_the_folder_and_the_settings_say_reaches_the_engine(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text("{{ messages }}")
    engine = build(folder, num_kv_blocks=6, chat_template=tmp_path / "chat.jinja")
    assert engine.chat_template == "{{ messages }}"
    parts = engine._parts
    assert parts.inputs.max_model_len == parts.scheduler.limits.max_model_len == 24  # what the cache holds
    assert parts.scheduler.block_manager.usage().num_blocks == 6
    assert parts.scheduler.limits.max_num_batched_tokens == 2048
    assert parts.eos_token_ids == frozenset([2])
    assert parts.tokenizer is None
    name = engine.add_request([5] * 20, SamplingParams(temperature=0.0, max_tokens=99, ignore_eos=True))
    while engine.has_unfinished:
        engine.step()
    assert len(engine.pop_output(name).outputs[0].token_ids) == 4
    engine.close()


def test_a_template_may_be_given_as_text_and_the_budget_is_bound_by_what_can_run(folder: Path) -> None:
    engine = build(folder, chat_template="{{ messages[0] }}", max_num_seqs=2)
    assert engine.chat_template == "{{ messages[0] }}"
    assert engine._parts.scheduler.limits.max_num_batched_tokens == 2 * 64
    engine.close()
