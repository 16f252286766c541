"""Checkpoints labelled `fp8`: of DeepSeek, of transformers, and of GPTQModel."""

from __future__ import annotations

import re
from dataclasses import dataclass

from quire.api.quantization import LayerChoice, QuantizationContext, StoredModule
from quire_quantization.compressed_tensors.config import InputScheme
from quire_quantization.compressed_tensors.fp8 import Fp8Scheme, choose_fp8
from quire_quantization.compressed_tensors.section import Section
from quire_quantization.compressed_tensors.stored_module import ONE, is_plain

_REMEDY = "quantize the model with FP8_DYNAMIC of llm-compressor, or load its 16-bit checkpoint"

_SCALES = "weight_scale_inv"
_E4M3 = ("e4m3", "e4m3fn", "float8_e4m3", "float8_e4m3fn", "fp8")
_SPELLINGS = {
    "fmt": _E4M3,
    "format": _E4M3,
    "checkpoint_format": _E4M3,
    "scale_fmt": ("float",),
    "weight_scale_semantics": ("inverse",),
    "weight_scale_method": ("block", "row", "tensor"),
}
"""By key, the values that are served; null and an absent key are too."""

_CHECKED = (*_SPELLINGS, "weight_block_size", "activation_scheme", "pack_dtype")
_MEANINGFUL = re.compile("scale|pack|weight|activation|input|zero|transform|rotation|sparsity|kv_cache")
"""Keys that would change results, by their names."""


@dataclass(slots=True, frozen=True)
class FineGrainedConfig:
    """A quantization_config labelled `fp8`.

    Attributes:
        block: outputs and inputs that share a scale; None: all inputs do, of one output or of all.
        is_reciprocal: whether weights are divided by "weight_scale_inv", as GPTQModel means it; others multiply.
    """

    block: tuple[int, int] | None
    inputs: InputScheme | None
    is_reciprocal: bool

    @classmethod
    def parse(cls, section: Section) -> FineGrainedConfig:
        """Read a quantization_config.

        Raises:
            QuantizationError: it is malformed, or asks for what there is no method for.

        Source: FineGrainedFP8Config of transformers 5.23; FP8Config of GPTQModel 7.6, where semantics that are
        not said are "inverse", and inputs are left as they are.
        """
        _refuse_extras(section)
        values = {key: _spelling(section, key, served) for key, served in _SPELLINGS.items()}
        block, method = section.pair("weight_block_size"), values["weight_scale_method"]
        if method is not None and (method == "block") != (block is not None):
            expected = "[outputs, inputs]" if method == "block" else "null"
            raise section.refuse(
                "weight_block_size", block, f"{expected} with weight_scale_method {method!r}", _REMEDY
            )
        is_gptqmodel = method is not None or values["weight_scale_semantics"] is not None
        inputs = (
            None if is_gptqmodel and "activation_scheme" not in section.values else _inputs(section, block)
        )
        return cls(block, inputs, is_gptqmodel)

    def scheme(self, module: StoredModule) -> Fp8Scheme:
        """How a module lies, by the names and shapes of its scales where the config leaves that open."""
        scales, input_scale = _SCALES, "input_scale"
        if self.block is None and not self.is_reciprocal and _SCALES not in module.tensors:
            scales = "weight_scale"
        if "activation_scale" in module.tensors:
            input_scale = "activation_scale"
        found = module.tensors.get(scales)
        block: tuple[int, int | None] | None = self.block
        if block is None and found is not None and found.shape not in ONE:
            block = (1, None)
        return Fp8Scheme(block, self.inputs, scales, input_scale, self.is_reciprocal)


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
        self._config = FineGrainedConfig.parse(Section(context.request.config or {}, "quantization_config"))
        self._ops = context.ops

    def choose(self, module: StoredModule) -> LayerChoice:
        """See QuantizationMethod."""
        if module.is_tied:
            return LayerChoice(None, "tied to the embedding, which is not quantized")
        if is_plain(module):
            return LayerChoice(None, "not quantized in the checkpoint")
        return choose_fp8(module, self._config.scheme(module), "fp8", self._ops)


def _spelling(section: Section, key: str, served: tuple[str, ...]) -> str | None:
    found = section.optional(key, str)
    if found is not None and found.lower() not in served:
        raise section.refuse(key, found, " or ".join(served), _REMEDY)
    return None if found is None else found.lower()


def _inputs(section: Section, block: tuple[int, int] | None) -> InputScheme:
    scheme = section.get("activation_scheme", "dynamic").lower()
    if scheme not in ("dynamic", "static") or (block is not None and scheme == "static"):
        raise section.refuse("activation_scheme", scheme, "dynamic, or static without blocks", _REMEDY)
    return InputScheme(
        is_float=True, is_static=scheme == "static", group_size=None if block is None else block[1]
    )


def _refuse_extras(section: Section) -> None:
    """Keys that are not known and whose names tell of weights, scales or inputs."""
    for key, value in section.values.items():
        if key not in _CHECKED and _MEANINGFUL.search(key) and value not in (None, False, {}, []):
            raise section.refuse(key, value, "null, or none", _REMEDY)
