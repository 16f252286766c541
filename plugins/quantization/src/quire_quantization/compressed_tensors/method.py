"""Chooses how each module of a compressed-tensors checkpoint is kept."""

from __future__ import annotations

import torch

from quire.api.errors import QuantizationError
from quire.api.protocols import Ops
from quire.api.quantization import LayerChoice, QuantizationContext, StoredModule
from quire_quantization.compressed_tensors.config import (
    CompressedTensorsConfig,
    InputScheme,
    Scheme,
    WeightScheme,
)
from quire_quantization.compressed_tensors.fp8 import Fp8Scheme, choose_fp8
from quire_quantization.compressed_tensors.integers import StoredIntegers
from quire_quantization.compressed_tensors.packing import WORD_BITS, num_gapped_words, num_words
from quire_quantization.compressed_tensors.rounded_inputs import W8A8Method
from quire_quantization.compressed_tensors.stored_module import ONE, is_plain, refuse_others
from quire_quantization.compressed_tensors.weight_only import WeightOnlyMethod
from quire_quantization.tensor_checks import FLOATS, outputs_of, require
from quire_quantization.tiled import tile_refusal

_NO_ORDER = (
    "no weight_g_idx is stored, so inputs are in groups in their own order, though the config says actorder"
)


class CompressedTensors:
    """The method of a compressed-tensors checkpoint; see QuantizationMethod."""

    def __init__(self, context: QuantizationContext) -> None:
        """Read the config.

        Raises:
            QuantizationError: it is malformed, or asks for what there is no method for.
        """
        self._config = CompressedTensorsConfig.parse(context.request.config or {})
        self._ops = context.ops

    def choose(self, module: StoredModule) -> LayerChoice:
        """See QuantizationMethod."""
        if module.is_tied:
            return LayerChoice(None, "tied to the embedding, which is not quantized")
        scheme, entry = self._config.scheme(module.name), self._config.ignoring(module.name)
        if is_plain(module):
            if entry is None:
                return LayerChoice(None, "not quantized in the checkpoint")
            by = f" ({entry})" if entry.startswith("re:") else ""
            return LayerChoice(None, f"on the config's ignore list{by}")
        if entry is not None:
            raise QuantizationError(
                f"the config's ignore list names it ({entry}): expected an unquantized 'weight', found "
                f"{', '.join(sorted(module.tensors)) or 'no tensors'}; mend `ignore` in config.json"
            )
        if scheme is None:
            raise QuantizationError(
                "no target of config_groups means it, and it has no unquantized 'weight'; found targets "
                f"{', '.join(self._config.schemes)}: mend `targets` in config.json"
            )
        if scheme.weights.is_float:
            return choose_fp8(module, _fp8_scheme(scheme), "compressed-tensors", self._ops)
        if scheme.inputs is None:
            return _choose_weight_only(module, scheme, self._ops)
        return _choose_w8a8(module, scheme, scheme.inputs, self._ops)


def _fp8_scheme(scheme: Scheme) -> Fp8Scheme:
    weights = scheme.weights
    block = (1, None) if weights.strategy == "channel" else weights.block
    return Fp8Scheme(block, scheme.inputs)


def _choose_weight_only(module: StoredModule, scheme: Scheme, ops: Ops) -> LayerChoice:
    stored, known = _stored_integers(module, scheme)
    refuse_others(module, known)
    refusal = tile_refusal(stored.bits, module.in_features, stored.group_size or module.in_features)
    is_unordered = scheme.weights.has_input_groups and not stored.has_input_groups
    reasons = (refusal, _NO_ORDER if is_unordered else "")
    method = WeightOnlyMethod(scheme.weights.bits, stored, not refusal, ops)
    return LayerChoice(method, "; ".join(filter(None, reasons)))


def _choose_w8a8(module: StoredModule, scheme: Scheme, inputs: InputScheme, ops: Ops) -> LayerChoice:
    stored, known = _stored_integers(module, scheme)
    refusal = tile_refusal(8, module.in_features, module.in_features)
    if refusal:
        raise QuantizationError(
            f"8-bit inputs are multiplied in tiles only: {refusal}; keep this module in 16 bits"
        )
    shape = None
    if inputs.is_static:
        shape = require(module, "input_scale", FLOATS, *ONE).shape
        known = (*known, "input_scale")
    refuse_others(module, known)
    return LayerChoice(W8A8Method(stored, shape, ops))


def _stored_integers(module: StoredModule, scheme: Scheme) -> tuple[StoredIntegers, tuple[str, ...]]:
    """How the module's integers are stored, and the tensors that they take; QuantizationError: not as configured."""
    weights, inputs = scheme.weights, module.in_features
    is_packed = scheme.format == "pack-quantized"
    suffix, dtype = ("weight_packed", "int32") if is_packed else ("weight", "int8")
    width = num_words(inputs, weights.bits) if is_packed else inputs
    outputs = outputs_of(module, suffix)
    has_gaps = is_packed and _has_gaps(module, weights.bits)
    if not has_gaps:
        require(module, suffix, (dtype,), (outputs, width))
    group_size = weights.group_size
    if group_size is not None and inputs % group_size:
        raise QuantizationError(
            f"its {inputs} inputs are not a multiple of the group size {group_size}: mend group_size in config.json, "
            "or quantize with one that divides"
        )
    groups = 1 if group_size is None else inputs // group_size
    scale = require(module, "weight_scale", FLOATS, *_scale_shapes(weights, outputs, groups))
    known = [suffix, "weight_scale"]
    shape_dtype = None
    if is_packed and "weight_shape" in module.tensors:
        shape_dtype = getattr(torch, require(module, "weight_shape", ("int64", "int32"), (2,)).dtype)
        known.append("weight_shape")
    if not weights.is_symmetric:
        count_words = num_gapped_words if has_gaps else num_words
        packed = count_words(outputs, weights.bits) if is_packed else None
        _require_zeros(module, weights, (outputs, groups), packed, scale.shape)
        known.append("weight_zero_point")
    has_input_groups = weights.has_input_groups and "weight_g_idx" in module.tensors
    if has_input_groups:
        require(module, "weight_g_idx", ("int32",), (inputs,))
        known.append("weight_g_idx")
    stored = StoredIntegers(
        bits=weights.bits if is_packed else 8,
        is_packed=is_packed,
        has_gaps=has_gaps,
        shape_dtype=shape_dtype,
        scale_dtype=getattr(torch, scale.dtype),
        scale_shape=scale.shape if weights.strategy == "tensor" else None,
        has_flat_scales=weights.strategy == "channel" and len(scale.shape) == 1,
        group_size=group_size,
        has_zeros=not weights.is_symmetric,
        has_input_groups=has_input_groups,
        takes_all_rows=module.out_features is not None,
    )
    return stored, tuple(known)


def _has_gaps(module: StoredModule, bits: int) -> bool:
    """Whether "weight_packed" has the width that it had up to compressed-tensors 0.12, and not today's."""
    inputs, packed = module.in_features, module.tensors.get("weight_packed")
    width = num_gapped_words(inputs, bits)
    if WORD_BITS % bits == 0 or width == num_words(inputs, bits) or packed is None:
        return False
    return packed.dtype == "int32" and packed.shape == (outputs_of(module, "weight_packed"), width)


def _scale_shapes(weights: WeightScheme, outputs: int, groups: int) -> tuple[tuple[int, ...], ...]:
    if weights.strategy == "tensor":
        return ONE
    return ((outputs, 1), (outputs,)) if weights.strategy == "channel" else ((outputs, groups),)


def _require_zeros(
    module: StoredModule,
    weights: WeightScheme,
    size: tuple[int, int],
    packed: int | None,
    scale_shape: tuple[int, ...],
) -> None:
    """`packed`: the words that hold a group's zero points, or None where each is an int8."""
    if weights.strategy == "tensor":
        require(module, "weight_zero_point", ("int8",), scale_shape)
    elif packed is not None:
        require(module, "weight_zero_point", ("int32",), (packed, size[1]))
    else:
        require(module, "weight_zero_point", ("int8",), size)
