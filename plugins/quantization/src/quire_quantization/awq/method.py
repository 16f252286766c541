"""The methods `awq` and `awq-marlin`: which module is kept how."""

from __future__ import annotations

from dataclasses import dataclass

from quire.api.errors import QuantizationError
from quire.api.protocols import Ops
from quire.api.quantization import LayerChoice, QuantizationContext, StoredModule
from quire_quantization.awq.config import AwqConfig, parse_config
from quire_quantization.awq.stored_module import OWN_TENSORS, read_format
from quire_quantization.awq.weights import AwqLinear, AwqMarlinLinear, without_tiles
from quire_quantization.tensor_checks import is_unquantized
from quire_quantization.tiled import tile_refusal


@dataclass(slots=True, frozen=True)
class AwqMethod:
    """Keeps every quantized module in the layout of its checkpoint, or in tiles where they hold it."""

    config: AwqConfig
    ops: Ops
    prefers_tiles: bool

    def choose(self, module: StoredModule) -> LayerChoice:
        """See QuantizationMethod. What is stored decides; the config's lists explain."""
        if module.is_tied:
            return LayerChoice(None, "tied to the embedding, which is not quantized")
        reason = self.config.skip_reason(module.name)
        if is_unquantized(module, OWN_TENSORS):
            return LayerChoice(None, reason or "not quantized in the checkpoint")
        stored = read_format(self.config, module)
        note = f"quantized in the checkpoint although {reason}" if reason else ""
        if not self.prefers_tiles:
            return LayerChoice(AwqLinear(stored, self.ops), note)
        refusal = tile_refusal(4, module.in_features, stored.group_size)
        if stored.layout == "gemv_fast":
            refusal = "gemv_fast stores zero points multiplied by their scales, which tiles do not hold"
        if refusal:
            explained = "; ".join(filter(None, (note, refusal)))
            return LayerChoice(without_tiles(stored, self.ops, refusal), explained)
        return LayerChoice(AwqMarlinLinear(stored, self.ops), note)


def make_awq(context: QuantizationContext) -> AwqMethod:
    """The method `awq` for a checkpoint; QuantizationError for a config that it does not serve."""
    return _make(context, prefers_tiles=False)


def make_awq_marlin(context: QuantizationContext) -> AwqMethod:
    """The method `awq-marlin` for a checkpoint; QuantizationError for a config that it does not serve."""
    return _make(context, prefers_tiles=True)


def _make(context: QuantizationContext, prefers_tiles: bool) -> AwqMethod:
    config = context.request.config
    if config is None:
        raise QuantizationError("awq reads quantized checkpoints; this one has no quantization_config")
    return AwqMethod(parse_config(config), context.ops, prefers_tiles)
