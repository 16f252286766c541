"""Chooses the quantization method of a checkpoint, and says at start what serves how many layers, and why."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from torch import nn

from quire.api.batch import DeviceInfo, DTypeName
from quire.api.config import EngineConfig
from quire.api.errors import PluginError
from quire.api.quantization import QuantizationContext, QuantizationMethod, QuantizationRequest
from quire.engine.model_source import naming, read_model
from quire.execution.model_builder import BuildSettings, TorchBuildContext
from quire.loading.checkpoint import open_checkpoint
from quire.loading.linear_assignment import AssignedModule, LinearAssignment
from quire.loading.quantization_config import read_quantization_config
from quire.nn.linear import Linear
from quire.nn.unquantized import UnquantizedMethod
from quire.ops.paged_attention import TorchPagedAttention
from quire.ops.table import OpTable
from quire.plugins import PluginHost, resolve_factory
from quire.plugins.quantization_choice import QuantizationChoice, choose_quantization
from quire.plugins.registry import describe_origin

_MAX_NAMES = 3

logger = logging.getLogger("quire")


@dataclass(slots=True, frozen=True)
class ChosenQuantization:
    """A quantization method that serves a checkpoint.

    Attributes:
        choice: the claims, the winning one among them.
    """

    choice: QuantizationChoice
    method: QuantizationMethod

    @property
    def name(self) -> str:
        """The method's name."""
        return self.choice.served.name


def choose_method(
    setting: str | None, host: PluginHost, request: QuantizationRequest, ops: OpTable
) -> ChosenQuantization | None:
    """The method that serves a checkpoint; None where its linears stay in 16 bits.

    Args:
        setting: `quantization`.
        host: the plugins.
        request: the checkpoint and the device.
        ops: what multiplies.

    Raises:
        ConfigError: the setting contradicts the checkpoint.
        UnsupportedModelError: no method serves it.
        QuantizationError: the method refuses its quantization_config.
        PluginError: the method's factory failed.
    """
    off = [f"{record.name} ({record.reason})" for record in host.records if not record.is_enabled]
    registrations = host.quantizations.registrations()
    choice = choose_quantization(registrations, request, setting, off)
    if choice is None:
        return None
    served = choice.served
    origin = f"the quantization method {served.name!r} of {describe_origin(served.registration)}"
    factory = resolve_factory(served.spec.factory, served.registration)
    if not callable(factory):
        raise PluginError(f"{origin}: its factory {factory!r} is not callable")
    context = QuantizationContext(request, ops, host.options(served.registration.plugin))
    with naming(origin):
        method: object = factory(context)
    if not isinstance(method, QuantizationMethod):
        raise PluginError(f"{origin}: its factory gave {method!r}, expected a QuantizationMethod")
    return ChosenQuantization(choice, method)


def log_summary(
    chosen: ChosenQuantization, modules: list[AssignedModule], model: nn.Module, ops: OpTable
) -> None:
    """What serves how many modules, why not otherwise, and what memory the quantized linears take."""
    for line in summary(chosen, modules, ops):
        logger.info("quantization: %s", line)
    held, plain = linear_bytes(model)
    if plain:
        logger.info(
            "quantization: the quantized linears take %.1f MB, %.3f of their %.1f MB in 16 bits",
            held / 1e6,
            held / plain,
            plain / 1e6,
        )


def summary(chosen: ChosenQuantization, modules: list[AssignedModule], ops: OpTable) -> list[str]:
    """What serves how many modules, which claims lost, and why modules are not kept as the method would."""
    served = chosen.choice.served
    what = f"claims {chosen.choice.label}" if chosen.choice.label else "quantizes while loading"
    owner = describe_origin(served.registration)
    lines = [f"{served.name} of {owner} {what}: {_counts(modules, ops)}"]
    lines += [
        f"{claim.name} does not serve: {claim.reason}" for claim in chosen.choice.claims if claim.reason
    ]
    lines += [
        f"{names} by {method}, since {reason}" for (method, reason), names in _by_reason(modules).items()
    ]
    return lines


def explain(config: EngineConfig, host: PluginHost, device: DeviceInfo, dtype: DTypeName) -> list[str]:
    """What would serve a model's linears, by its headers: nothing of its weights is read.

    Raises:
        QuireError: what would keep an engine of it from starting, as far as its linears go.
    """
    source = read_model(config, host)
    request = QuantizationRequest(read_quantization_config(source.folder, source.hf_config), device, dtype)
    registrations = [*host.ops.registrations(), *host.op_impls.registrations()]
    ops = OpTable(registrations, device, dtype, resolve_factory)
    chosen = choose_method(config.model.quantization, host, request, ops)
    if chosen is None:
        return ["the checkpoint is not quantized: its linears stay in 16 bits"]
    assignment = LinearAssignment(chosen.method, open_checkpoint(source.folder))
    settings = BuildSettings(dtype, device, ops, TorchPagedAttention(), max_model_len=1)
    model = source.factory(source.config, TorchBuildContext(settings))
    assignment(cast(nn.Module, model), source.factory.weight_map(source.config))
    return summary(chosen, assignment.modules, ops)


def linear_bytes(model: nn.Module) -> tuple[int, int]:
    """Bytes that the quantized linears hold, and those that their weights would take in 16 bits."""
    held = plain = 0
    for module in model.modules():
        if not isinstance(module, Linear):
            continue
        for weights, (method, shape) in zip(module.weights, module.runs, strict=False):
            if not isinstance(method, UnquantizedMethod):
                held += sum(tensor.nbytes for tensor in [*weights.parameters(), *weights.buffers()])
                plain += 2 * shape.out_features * shape.in_features
    return held, plain


def _counts(modules: list[AssignedModule], ops: OpTable) -> str:
    bound = {entry.op: entry.bound.name for entry in ops.describe()}
    counts: dict[str, int] = {}
    for module in modules:
        kernel = f" ({module.op}: {bound.get(module.op, 'its own')})" if module.op else ""
        counts[module.method + kernel] = counts.get(module.method + kernel, 0) + 1
    return ", ".join(f"{count} modules {name}" for name, count in counts.items())


def _by_reason(modules: list[AssignedModule]) -> Mapping[tuple[str, str], str]:
    groups: dict[tuple[str, str], list[str]] = {}
    for module in modules:
        if module.reason:
            groups.setdefault((module.method, module.reason), []).append(module.name)
    return {
        key: ", ".join(names[:_MAX_NAMES])
        + (f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else "")
        for key, names in groups.items()
    }
