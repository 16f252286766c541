"""Checkpoints labelled `fp8`: blocks as DeepSeek and transformers write them, or a scale per tensor."""

from __future__ import annotations

from quire.api.quantization import LayerChoice, QuantizationContext, StoredModule
from quire_quantization.compressed_tensors.config import InputScheme
from quire_quantization.compressed_tensors.fp8 import Fp8Scheme, choose_fp8
from quire_quantization.compressed_tensors.section import Section
from quire_quantization.compressed_tensors.stored_module import is_plain

_REMEDY = "quantize the model with FP8_DYNAMIC of llm-compressor, or load its 16-bit checkpoint"


class FineGrainedFp8:
    """The method of a checkpoint labelled `fp8`; see QuantizationMethod.

    Which modules are quantized is told by their tensors: lists of modules not to convert are spelled in
    many ways, and say nothing more.
    """

    def __init__(self, context: QuantizationContext) -> None:
        """Read the config.

        Raises:
            QuantizationError: it is malformed, or asks for what there is no method for.
        """
        section = Section(context.request.config or {}, "quantization_config")
        block = section.pair("weight_block_size")
        activations = section.get("activation_scheme", "dynamic").lower()
        if activations not in ("dynamic", "static") or (block is not None and activations == "static"):
            raise section.refuse(
                "activation_scheme", activations, "dynamic, or static without blocks", _REMEDY
            )
        for key, served in (("scale_fmt", "float"), ("fmt", "e4m3")):
            found = section.get(key, served).lower()
            if found != served:
                raise section.refuse(key, found, served, _REMEDY)
        if section.values.get("kv_cache_scheme") is not None:
            raise section.refuse("kv_cache_scheme", section.values["kv_cache_scheme"], "null", _REMEDY)
        size = None if block is None else block[1]
        inputs = InputScheme(is_float=True, is_static=activations == "static", group_size=size)
        self._scheme = Fp8Scheme(block, inputs, "weight_scale" if block is None else "weight_scale_inv")
        self._ops = context.ops

    def choose(self, module: StoredModule) -> LayerChoice:
        """See QuantizationMethod."""
        if module.is_tied:
            return LayerChoice(None, "tied to the embedding, which is not quantized")
        if is_plain(module):
            return LayerChoice(None, "not quantized in the checkpoint")
        return choose_fp8(module, self._scheme, "fp8", self._ops)
