"""Runs the suites for whatever a plugin registers, without pytest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from quire.api.batch import DTypeName
from quire.api.errors import PluginError
from quire.api.specs import (
    AttentionBackendSpec,
    DrafterSpec,
    LogitsProcessorSpec,
    ModelSpec,
    OpImplSpec,
    PolicySpec,
    QuantizationSpec,
    ReasoningParserSpec,
    Registration,
    ToolParserSpec,
)
from quire.execution.device import detect_device
from quire.ops.support import refusal_of
from quire.plugins import PluginHost
from quire.plugins.record import NamedRegistration
from quire.testing.attention_suite import AttentionBackendConformance
from quire.testing.conformance import CheckResult, Conformance
from quire.testing.drafter_suite import DrafterConformance
from quire.testing.model_base import ops_beside
from quire.testing.model_engine_suite import ModelConformance
from quire.testing.op_suite import OpConformance
from quire.testing.parser_suite import TextParserConformance
from quire.testing.policy_suite import PolicyConformance
from quire.testing.processor_suite import LogitsProcessorConformance
from quire.testing.quantization_suite import OnTheFlyConformance

_DTYPES: tuple[DTypeName, ...] = ("float64", "float32", "bfloat16", "float16")
_CORE = "core"

SuiteMaker = Callable[[PluginHost, NamedRegistration], type[Conformance] | str]
"""Makes the suite of a registered thing, or says why there is none."""


def check_plugin(
    host: PluginHost, name: str, on_result: Callable[[CheckResult], object] | None = None
) -> list[CheckResult]:
    """Run the suites for what a plugin has registered, on the CPU, in the order of registration.

    Models are compared with transformers' class of the same architecture, over configurations derived from
    its config class; for logits processors arguments are guessed, and drafters have their default settings.
    What needs the author's data says so in the reason of a skipped check: write a test file with the suite.

    Args:
        host: with the plugin loaded.
        name: of an enabled plugin.
        on_result: called with each check's result as it comes, for showing progress.

    Returns:
        One result per check; for kinds without a suite one skipped result each.

    Raises:
        PluginError: there is no such plugin, or it is not enabled.
    """
    record = host.record(name)
    if not record.is_enabled:
        raise PluginError(f"plugin {name!r} is {record.status.value}: {record.reason}; enable it to check it")
    results: list[CheckResult] = []
    for entry in record.registered:
        make = _MAKERS.get(entry.kind)
        suite = make(host, entry) if make else f"there is no suite for the kind {entry.kind!r}"
        if isinstance(suite, str):
            results.append(CheckResult(f"{entry.kind} {entry.name}", "-", "skipped", suite, 0.0))
        else:
            results += suite.run(entry.name, on_result)
    return results


def _model(host: PluginHost, entry: NamedRegistration) -> type[Conformance] | str:
    spec = cast(ModelSpec, entry.registration.spec)
    return _suite(
        ModelConformance,
        architecture=spec.architecture,
        factory=spec.factory,
        ops=ops_beside(host, entry.registration.plugin),
        capabilities=spec.capabilities,
    )


def _attention(host: PluginHost, entry: NamedRegistration) -> type[Conformance] | str:
    spec = cast(AttentionBackendSpec, entry.registration.spec)
    dtypes, refusal = _supported(entry.registration)
    if not dtypes:
        return f"it does not run here: {refusal}"
    return _suite(
        AttentionBackendConformance,
        backend=spec.factory,
        dtypes=dtypes,
        kv_cache_dtypes=spec.kv_cache_dtypes,
        capabilities=spec.capabilities,
    )


def _op(host: PluginHost, entry: NamedRegistration) -> type[Conformance] | str:
    return _suite(OpConformance, spec=entry.registration.spec, dtypes=_DTYPES[:3])


def _op_implementation(host: PluginHost, entry: NamedRegistration) -> type[Conformance] | str:
    spec = cast(OpImplSpec, entry.registration.spec)
    dtypes, refusal = _supported(entry.registration)
    if not dtypes:
        return f"it does not run here: {refusal}"
    return _suite(OpConformance, spec=host.ops.spec(spec.op), implementation=spec.factory, dtypes=dtypes)


def _policy(host: PluginHost, entry: NamedRegistration) -> type[Conformance] | str:
    spec = cast(PolicySpec, entry.registration.spec)
    is_core = entry.registration.plugin == _CORE
    return _suite(
        PolicyConformance,
        name=entry.name,
        policy=None if is_core else spec.factory,
        options=host.options(entry.registration.plugin),
    )


def _drafter(host: PluginHost, entry: NamedRegistration) -> type[Conformance] | str:
    spec = cast(DrafterSpec, entry.registration.spec)
    return _suite(
        DrafterConformance,
        name=entry.name,
        drafter=spec.factory,
        settings=None,
        settings_model=spec.settings,
        options=host.options(entry.registration.plugin),
    )


def _processor(host: PluginHost, entry: NamedRegistration) -> type[Conformance] | str:
    spec = cast(LogitsProcessorSpec, entry.registration.spec)
    return _suite(
        LogitsProcessorConformance,
        name=entry.name,
        processor=spec.factory,
        is_always_on=spec.is_always_on,
        options=host.options(entry.registration.plugin),
    )


def _parser(host: PluginHost, entry: NamedRegistration) -> type[Conformance] | str:
    spec = cast(ToolParserSpec | ReasoningParserSpec, entry.registration.spec)
    return _suite(
        TextParserConformance,
        parser=spec.factory,
        marks=("<think>", "</think>") if isinstance(spec, ReasoningParserSpec) else (),
        options=host.options(entry.registration.plugin),
    )


def _quantization(host: PluginHost, entry: NamedRegistration) -> type[Conformance] | str:
    spec = cast(QuantizationSpec, entry.registration.spec)
    if spec.quant_methods:
        return (
            "how its checkpoints store a weight only its author knows: write a test file with "
            "QuantizationConformance and its `pack`"
        )
    return _suite(
        OnTheFlyConformance,
        spec=spec,
        ops=ops_beside(host, entry.registration.plugin),
        options=host.options(entry.registration.plugin),
    )


def _supported(registration: Registration) -> tuple[tuple[DTypeName, ...], str]:
    """The dtypes that it supports on this CPU, and why not another."""
    device = detect_device("cpu")
    answers = {dtype: refusal_of(registration, device, dtype) for dtype in _DTYPES}
    refusals = [answer for answer in answers.values() if answer is not None]
    return tuple(dtype for dtype, answer in answers.items() if answer is None), "; ".join(refusals[:1])


def _suite(base: type[Conformance], **attributes: object) -> type[Conformance]:
    return cast(
        type[Conformance], type(base.__name__, (base,), {**attributes, "__module__": base.__module__})
    )


_MAKERS: Mapping[str, SuiteMaker] = {
    "architecture": _model,
    "attention backend": _attention,
    "op": _op,
    "op implementation": _op_implementation,
    "policy": _policy,
    "quantization": _quantization,
    "drafter": _drafter,
    "logits processor": _processor,
    "tool parser": _parser,
    "reasoning parser": _parser,
}
