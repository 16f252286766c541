"""Impossible combinations are refused with the pair that conflicts and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import pytest

from quire.api.batch import DeviceInfo
from quire.api.config import DeviceSettings, EngineConfig
from quire.api.errors import ConfigError
from quire.api.specs import (
    AttentionBackendSpec,
    Capabilities,
    DrafterSpec,
    ExecutorSpec,
    LogitsProcessorSpec,
    ModelSpec,
    PolicySpec,
    QuantizationSpec,
)
from quire.plugins import Combination, PluginHost

Plugin = Callable[..., ModuleType]
HostOf = Callable[..., PluginHost]

EVERYTHING = Combination(
    config=EngineConfig(),
    device=DeviceInfo("cpu"),
    dtype="float16",
    architecture="X",
    attention_backend="a",
    policy="p",
    drafter="d",
    quantization="q",
    executor="e",
    logits_processors=("l",),
    has_sliding_windows=True,
)
KINDS = {
    "architecture": "'X'",
    "attention backend": "'a'",
    "policy": "'p'",
    "drafter": "'d'",
    "quantization": "'q'",
    "executor": "'e'",
    "logits processor": "'l'",
}


def host_with(plugin: Plugin, host_of: HostOf, kind: str, able: Capabilities) -> PluginHost:
    """One plugin of every kind; the given kind can do only what it says."""

    def of(other: str) -> Capabilities:
        return able if other == kind else Capabilities()

    module = plugin(
        "all",
        register_models=lambda: [ModelSpec("X", "a:b", of("architecture"))],
        register_attention_backends=lambda: [
            AttentionBackendSpec("a", "a:b", lambda device, dtype: None, capabilities=of("attention backend"))
        ],
        register_policies=lambda: [PolicySpec("p", "a:b", of("policy"))],
        register_drafters=lambda: [DrafterSpec("d", "a:b", of("drafter"))],
        register_quantizations=lambda: [QuantizationSpec("q", "a:b", capabilities=of("quantization"))],
        register_executors=lambda: [ExecutorSpec("e", "a:b", of("executor"))],
        register_logits_processors=lambda: [
            LogitsProcessorSpec("l", "a:b", capabilities=of("logits processor"))
        ],
    )
    return host_of(module)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("able", "other", "remedy"),
    [
        (Capabilities(dtypes=("float32", "bfloat16")), "dtype=float16", "set dtype to float32 or bfloat16"),
        (Capabilities(devices=("cuda",)), "device=cpu", "set device to cuda"),
        (Capabilities(prefix_caching=False), "enable_prefix_caching=True", "--no-enable-prefix-caching"),
        (Capabilities(chunked_prefill=False), "enable_chunked_prefill=True", "--no-enable-chunked-prefill"),
        (Capabilities(quantizations=("awq",)), "quantization 'q' of plugin 'all'", "it goes with awq"),
        (Capabilities(drafts=False), "drafter 'd' of plugin 'all'", "leave speculative_config out"),
        (Capabilities(sliding_windows=False), "the sliding windows of architecture 'X'", "another"),
    ],
)
def test_a_conflict_names_the_pair_and_the_remedy(
    plugin: Plugin, host_of: HostOf, kind: str, able: Capabilities, other: str, remedy: str
) -> None:
    host = host_with(plugin, host_of, kind, able)
    if f"{kind} {KINDS[kind]}" in other:  # what a part says of others does not concern itself
        host.check_capabilities(EVERYTHING)
        return
    with pytest.raises(ConfigError) as caught:
        host.check_capabilities(EVERYTHING)
    message = str(caught.value)
    first = f"{kind} {KINDS[kind]} of plugin 'all' (given by the program) does not go with "
    assert message.startswith(first)
    assert other in message
    assert remedy in message


@pytest.mark.parametrize("kind", KINDS)
def test_ranks(plugin: Plugin, host_of: HostOf, kind: str) -> None:
    config = EngineConfig(device=DeviceSettings(tensor_parallel_size=2))
    host = host_with(plugin, host_of, kind, Capabilities(tensor_parallel=False))
    with pytest.raises(ConfigError, match="does not go with tensor_parallel_size=2: give 1"):
        host.check_capabilities(replace(EVERYTHING, config=config))
    host.check_capabilities(EVERYTHING)


def test_what_goes_together_passes(plugin: Plugin, host_of: HostOf) -> None:
    able = Capabilities(dtypes=("float16",), devices=("cpu",), quantizations=("q",))
    for kind in KINDS:
        host_with(plugin, host_of, kind, able).check_capabilities(EVERYTHING)


def test_limits_that_the_settings_do_not_touch_pass(plugin: Plugin, host_of: HostOf) -> None:
    able = Capabilities(
        quantizations=(), drafts=False, sliding_windows=False, prefix_caching=False, chunked_prefill=False
    )
    config = EngineConfig.from_keywords({"enable_prefix_caching": False, "enable_chunked_prefill": False})
    host = host_with(plugin, host_of, "architecture", able)
    plain = replace(EVERYTHING, config=config, drafter=None, quantization=None, has_sliding_windows=False)
    host.check_capabilities(plain)


def test_all_conflicts_are_reported_together(plugin: Plugin, host_of: HostOf) -> None:
    host = host_with(
        plugin, host_of, "architecture", Capabilities(dtypes=("float32",), devices=("cuda",), drafts=False)
    )
    with pytest.raises(ConfigError) as caught:
        host.check_capabilities(EVERYTHING)
    for part in ("dtype=float16", "device=cpu", "drafter 'd'"):
        assert part in str(caught.value)


def test_only_processors_that_are_always_on_are_asked_unless_named(plugin: Plugin, host_of: HostOf) -> None:
    able = Capabilities(dtypes=("float32",))
    module = plugin(
        "p",
        register_logits_processors=lambda: [
            LogitsProcessorSpec("on", "a:b", is_always_on=True, capabilities=able),
            LogitsProcessorSpec("off", "a:b", capabilities=able),
        ],
    )
    combination = Combination(EngineConfig(), DeviceInfo("cpu"), "float16")
    with pytest.raises(ConfigError) as caught:
        host_of(module).check_capabilities(combination)
    assert "'on'" in str(caught.value)
    assert "'off'" not in str(caught.value)
    with pytest.raises(ConfigError, match="'off'"):
        host_of(module).check_capabilities(replace(combination, logits_processors=("off",)))


def test_a_name_that_is_not_registered_is_anothers_complaint(host_of: HostOf) -> None:
    host_of().check_capabilities(EVERYTHING)
