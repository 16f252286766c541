"""The method `squeezellm`: which module is kept how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from quire.api.errors import QuantizationError
from quire.api.protocols import Ops
from quire.api.quantization import LayerChoice, QuantizationContext, StoredModule
from quire_quantization.squeezellm.linear_ops import PER_WORD, TABLE_SIZE
from quire_quantization.squeezellm.weights import SqueezeLLMLinear
from quire_quantization.tensor_checks import FLOATS, is_unquantized, outputs_of, require

_BITS_KEYS = ("wbits", "bits", "w_bit")
_DENSE = ("qweight", "lookup_table")
_SPARSE = ("rows", "cols", "vals", "startrows", "full_rows", "full_row_indices")
"""Tensors of outliers, which SqueezeLLM may keep apart."""


@dataclass(slots=True, frozen=True)
class SqueezeLLMMethod:
    """Keeps modules as they are stored; what is stored decides."""

    ops: Ops

    def choose(self, module: StoredModule) -> LayerChoice:
        """See QuantizationMethod."""
        if module.is_tied:
            return LayerChoice(None, "tied to the embedding, which is not quantized")
        sparse = [suffix for suffix in _SPARSE if suffix in module.tensors]
        if sparse:
            raise QuantizationError(
                f"it keeps outliers apart ({', '.join(sparse)}), which is not served: "
                "load a checkpoint that was made without a sparse part"
            )
        if is_unquantized(module, _DENSE):
            return LayerChoice(None, "not quantized in the checkpoint")
        _check_tensors(module)
        return LayerChoice(SqueezeLLMLinear(getattr(torch, module.tensors["lookup_table"].dtype), self.ops))


def make_squeezellm(context: QuantizationContext) -> SqueezeLLMMethod:
    """The method for a checkpoint; QuantizationError for other than 4 bits."""
    config = context.request.config or {}
    _check_bits(config)
    return SqueezeLLMMethod(context.ops)


def _check_bits(config: Mapping[str, object]) -> None:
    for key in _BITS_KEYS:
        bits = config.get(key, 4)
        if isinstance(bits, bool) or bits != 4:
            raise QuantizationError(
                f"quantization_config: {key}={bits!r}; SqueezeLLM is served with 4 bits only: quantize with 4 bits"
            )


def _check_tensors(module: StoredModule) -> None:
    if module.in_features % PER_WORD:
        raise QuantizationError(
            f"its {module.in_features} inputs are not a multiple of {PER_WORD}, which a word holds: "
            "load the 16-bit checkpoint"
        )
    outputs = outputs_of(module, "lookup_table")
    require(module, "qweight", ("int32",), (module.in_features // PER_WORD, outputs))
    require(module, "lookup_table", FLOATS, (outputs, TABLE_SIZE))
