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

_BITS_KEYS = ("wbits", "bits", "w_bit")
_DENSE = ("qweight", "lookup_table")
_SPARSE = ("rows", "cols", "vals", "startrows", "full_rows", "full_row_indices")
"""Tensors of outliers, which SqueezeLLM may keep apart."""

_TABLE_DTYPES = ("float16", "bfloat16", "float32")


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
                f"{module.name} keeps outliers apart ({', '.join(sparse)}), which is not served: "
                "load a checkpoint that was made without a sparse part"
            )
        dense = [suffix for suffix in _DENSE if suffix in module.tensors]
        if "weight" in module.tensors and not dense:
            return LayerChoice(None, "not quantized in the checkpoint")
        if "weight" in module.tensors:
            raise QuantizationError(
                f"{module.name} has both weight and {', '.join(dense)}; a module is quantized or it is not: "
                "delete one of them"
            )
        missing = [f"{module.name}.{suffix}" for suffix in _DENSE if suffix not in dense]
        if missing:
            raise QuantizationError(f"the checkpoint lacks {', '.join(missing)}: fetch it again")
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
            f"{module.name}: {module.in_features} inputs are not a multiple of {PER_WORD}, which a word holds: "
            "load the 16-bit checkpoint"
        )
    table = module.tensors["lookup_table"].shape
    outputs = module.out_features or (table[0] if table else 0)
    _check(module, "qweight", ("int32",), (module.in_features // PER_WORD, outputs))
    _check(module, "lookup_table", _TABLE_DTYPES, (outputs, TABLE_SIZE))


def _check(module: StoredModule, suffix: str, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> None:
    found = module.tensors[suffix]
    if found.dtype not in dtypes or found.shape != shape:
        raise QuantizationError(
            f"tensor {module.name}.{suffix} is {found.dtype} {list(found.shape)}, expected "
            f"{' or '.join(dtypes)} {list(shape)}: check that config.json belongs to these weights"
        )
