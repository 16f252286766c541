"""The Mistral decoder: a Llama whose queries see a window of the latest tokens only, in every layer.

Source: Jiang et al. 2023; transformers 5, models/mistral/modeling_mistral.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from quire.api.errors import UnsupportedModelError
from quire.api.hf_config import HFConfig, optional_bool, optional_int, optional_strings
from quire_models.llama.model import LlamaConfig, LlamaModel

_DEFAULTS: Final[HFConfig] = MappingProxyType({"num_key_value_heads": 8, "sliding_window": 4096})
"""What transformers takes for missing keys; a null `sliding_window` means none."""


class MistralModel(LlamaModel):
    """A Mistral; see `quire.api.protocols.Model`."""

    @staticmethod
    def parse_config(hf_config: Mapping[str, object]) -> LlamaConfig:
        """See ModelFactory; raises UnsupportedModelError for biases and windows in some layers only."""
        config = {**_DEFAULTS, **hf_config}
        for name in ("attention_bias", "mlp_bias"):
            if optional_bool(config, name, default=False):
                raise UnsupportedModelError(f"MistralForCausalLM with {name} is not served")
        window = optional_int(config, "sliding_window", minimum=1)
        kind = "full_attention" if window is None else "sliding_attention"
        others = sorted(set(optional_strings(config, "layer_types") or ()) - {kind})
        if others:
            raise UnsupportedModelError(
                f"MistralForCausalLM with {others[0]!r} in layer_types is not served: "
                f"by its sliding_window ({window}) every layer is {kind!r}"
            )
        return replace(LlamaModel.parse_config({**config, "sliding_window": None}), window=window)
