"""Models for a GPU: their sizes, the least time of their steps, and checkpoints of them made as they are read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from quire.api.extensions import CheckpointReader
from quire.api.hookspecs import hookimpl
from quire.api.specs import PluginInfo
from quire.plugins import PluginHost
from roofline import MachineLimits

_POOL_SIZE = 1 << 22
"""Random values that all weights repeat: generating billions would take longer than measuring."""


@dataclass(slots=True, frozen=True)
class Decoder:
    """Sizes of a Llama or Qwen3 without biases, in bfloat16.

    Attributes:
        has_head_norms: queries and keys are normed by head, as in Qwen3.
    """

    name: str
    architecture: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocab: int
    is_tied: bool
    has_head_norms: bool

    @property
    def body_params(self) -> int:
        """Weights of the layers' linears, multiplied once a token."""
        attention = 2 * self.hidden * self.head_size * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_params(self) -> int:
        """Weights of the output projection, multiplied once a sampled token."""
        return self.vocab * self.hidden

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token over all layers."""
        return 4 * self.layers * self.kv_heads * self.head_size

    def hf_config(self) -> dict[str, object]:
        """As config.json holds it."""
        return {
            "architectures": [self.architecture],
            "model_type": "qwen3" if self.has_head_norms else "llama",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_size,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocab,
            "max_position_embeddings": 16384,
            "rope_theta": 500000.0,
            "rms_norm_eps": 1e-6,
            "hidden_act": "silu",
            "tie_word_embeddings": self.is_tied,
            "torch_dtype": "bfloat16",
            "bos_token_id": 1,
            "eos_token_id": 2,
        }

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the checkpoint, by name."""
        wide, narrow = self.heads * self.head_size, self.kv_heads * self.head_size
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocab, self.hidden),
            "model.norm.weight": (self.hidden,),
        }
        if not self.is_tied:
            shapes["lm_head.weight"] = (self.vocab, self.hidden)
        for index in range(self.layers):
            layer = f"model.layers.{index}"
            shapes |= {
                f"{layer}.self_attn.q_proj.weight": (wide, self.hidden),
                f"{layer}.self_attn.k_proj.weight": (narrow, self.hidden),
                f"{layer}.self_attn.v_proj.weight": (narrow, self.hidden),
                f"{layer}.self_attn.o_proj.weight": (self.hidden, wide),
                f"{layer}.mlp.gate_proj.weight": (self.intermediate, self.hidden),
                f"{layer}.mlp.up_proj.weight": (self.intermediate, self.hidden),
                f"{layer}.mlp.down_proj.weight": (self.hidden, self.intermediate),
                f"{layer}.input_layernorm.weight": (self.hidden,),
                f"{layer}.post_attention_layernorm.weight": (self.hidden,),
            }
            if self.has_head_norms:
                shapes[f"{layer}.self_attn.q_norm.weight"] = (self.head_size,)
                shapes[f"{layer}.self_attn.k_norm.weight"] = (self.head_size,)
        return shapes


DECODERS = {
    "0.6B": Decoder("0.6B", "Qwen3ForCausalLM", 1024, 28, 16, 8, 128, 3072, 151936, True, True),
    "8B": Decoder("8B", "LlamaForCausalLM", 4096, 32, 32, 8, 128, 14336, 128256, False, False),
}
"""The shapes of Qwen3-0.6B and Llama-3-8B."""
QUICK_DECODERS = {
    "0.6B": Decoder("0.6B", "Qwen3ForCausalLM", 64, 2, 4, 2, 32, 128, 1024, True, True),
    "8B": Decoder("8B", "LlamaForCausalLM", 128, 2, 4, 2, 32, 256, 1024, False, False),
}
"""Tiny ones in their place, to see that everything runs."""


def step_floor_s(
    decoder: Decoder,
    limits: MachineLimits,
    rows: Sequence[tuple[int, int]] | np.ndarray[tuple[int, int], np.dtype[np.int64]],
) -> float:
    """The least time of a step: linears, and after them attention, each bound by bytes or by operations.

    Args:
        rows: for each request the tokens that it has and the new ones that it computes; one is sampled each.
    """
    starts, counts = np.asarray(rows, dtype=np.float64).reshape(-1, 2).T
    num_tokens, num_rows = float(counts.sum()), len(counts)
    weights = 2.0 * (decoder.body_params + decoder.head_params)
    operations = 2.0 * (num_tokens * decoder.body_params + num_rows * decoder.head_params)
    pairs = float((counts * starts + counts * (counts + 1) / 2).sum())
    attention = 4.0 * decoder.layers * decoder.heads * decoder.head_size * pairs
    kv_bytes = decoder.kv_bytes_per_token * float(starts.sum())
    return limits.least_time_s(weights, operations) + limits.least_time_s(kv_bytes, attention)


def offline_floor_s(
    decoder: Decoder, limits: MachineLimits, prompts: Sequence[int], outputs: Sequence[int]
) -> float:
    """The least time of jobs that arrive together: all prompts at once, then one token each a step."""
    lengths, wanted = np.asarray(prompts), np.asarray(outputs)
    total = step_floor_s(decoder, limits, [(0, int(length)) for length in lengths])
    for index in range(1, int(wanted.max())):
        contexts = lengths[wanted > index] + index - 1
        total += step_floor_s(decoder, limits, np.stack([contexts, np.ones_like(contexts)], axis=1))
    return total


class RandomCheckpoint:
    """Weights of a decoder, random and in bfloat16, made when they are read; norms are ones."""

    def __init__(self, decoder: Decoder) -> None:
        self._shapes = decoder.tensor_shapes()
        generator = torch.Generator().manual_seed(0)
        values = (torch.randn(_POOL_SIZE, generator=generator) * 0.02).bfloat16()
        largest = max(math.prod(shape) for shape in self._shapes.values())
        self._pool = values.repeat(-(-largest // _POOL_SIZE))

    def names(self) -> Sequence[str]:
        """See CheckpointReader."""
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """See CheckpointReader."""
        return self._shapes[name]

    def read(self, name: str) -> Tensor:
        """See CheckpointReader; tensors share their memory."""
        shape = self._shapes[name]
        if len(shape) == 1:
            return torch.ones(shape, dtype=torch.bfloat16)
        return self._pool[: math.prod(shape)].view(shape)

    def metadata(self) -> Mapping[str, str]:
        """See CheckpointReader."""
        return {}


def random_model(decoder: Decoder, folder: Path) -> PluginHost:
    """Write a decoder's config.json to `folder`, and load the plugins with one that reads it random weights."""
    (folder / "config.json").write_text(json.dumps(decoder.hf_config()))
    plugin = ModuleType("random_weights")

    @hookimpl
    def quire_plugin_info() -> PluginInfo:
        return PluginInfo(api=">=1,<2", description="random weights for benchmarks")

    @hookimpl
    def quire_open_checkpoint(path: Path) -> CheckpointReader | None:
        return RandomCheckpoint(decoder) if path == folder else None

    for hook in (quire_plugin_info, quire_open_checkpoint):
        setattr(plugin, hook.__name__, hook)
    return PluginHost.discover(extra_plugins=[plugin])
