"""Chooses the quantization method of a checkpoint, and says at start what serves how many layers, and why."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from quire.api.errors import PluginError
from quire.api.quantization import QuantizationContext, QuantizationMethod, QuantizationRequest
from quire.engine.model_source import naming
from quire.loading.linear_assignment import AssignedModule
from quire.nn.linear import Linear
from quire.nn.unquantized import UnquantizedMethod
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
    served = chosen.choice.served
    what = f"claims {chosen.choice.label}" if chosen.choice.label else "quantizes while loading"
    logger.info(
        "quantization: %s of %s %s: %s",
        served.name,
        describe_origin(served.registration),
        what,
        _counts(modules, ops),
    )
    for claim in chosen.choice.claims:
        if claim.reason is not None:
            logger.info("quantization: %s does not serve: %s", claim.name, claim.reason)
    for (method, reason), names in _by_reason(modules).items():
        logger.info("quantization: %s by %s, since %s", names, method, reason)
    held, plain = linear_bytes(model)
    if plain:
        logger.info(
            "quantization: the quantized linears take %.1f MB, %.3f of their %.1f MB in 16 bits",
            held / 1e6,
            held / plain,
            plain / 1e6,
        )


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
