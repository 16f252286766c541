"""The Llama decoder: RMSNorm, rotary grouped-query attention, gated MLP.

Source: Touvron et al. 2023; transformers 5, models/llama/modeling_llama.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from quire.api.batch import ForwardBatch
from quire.api.errors import UnsupportedModelError
from quire.api.hf_config import (
    HeadLayout,
    optional_bool,
    optional_float,
    optional_int,
    require_choice,
    require_heads,
    require_int,
)
from quire.api.protocols import AttentionParams, BuildContext
from quire.api.specs import WeightMap, WeightPart
from quire.nn.activation import ACTIVATION_OPS
from quire.nn.mlp import GatedMLP
from quire.nn.norm import RMSNorm, Stream
from quire.nn.rope_config import RopeConfig, parse_full_rope
from quire.nn.rotary import RotaryEmbedding


@dataclass(slots=True, frozen=True)
class LlamaConfig:
    """A Llama's shape; `max_position_embeddings` includes what its rotary scaling adds.

    Attributes:
        window: None, or how many latest tokens a query sees (Mistral).
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    heads: HeadLayout
    activation: str
    norm_eps: float
    rope: RopeConfig
    has_attention_bias: bool
    has_mlp_bias: bool
    is_tied: bool
    window: int | None = None

    @property
    def num_attention_heads(self) -> int:
        """H."""
        return self.heads.num_heads

    @property
    def max_position_embeddings(self) -> int:
        """Longest context that the weights support."""
        return self.rope.max_len

    @property
    def rope_switch_len(self) -> int | None:
        """See ModelConfig."""
        return self.rope.switch_len


class LlamaAttention(nn.Module):
    """Rotary grouped-query attention with a fused QKV product."""

    def __init__(self, config: LlamaConfig, rotary: RotaryEmbedding, ctx: BuildContext) -> None:
        super().__init__()
        heads, kv_heads, size = config.heads.num_heads, config.heads.num_kv_heads, config.heads.head_size
        self.sizes = (heads * size, kv_heads * size, kv_heads * size)
        self.head_size = size
        parts = dict(zip(("q", "k", "v"), self.sizes, strict=True))
        bias = config.has_attention_bias
        self.qkv = ctx.linear(config.hidden_size, parts, bias=bias)
        self.out = ctx.linear(heads * size, {"out": config.hidden_size}, bias=bias)
        self.rotary = rotary
        self.attention = ctx.attention(
            AttentionParams(heads, kv_heads, size, scale=size**-0.5, window=config.window)
        )

    def forward(self, x: Tensor, batch: ForwardBatch) -> Tensor:
        """[T, E] to [T, E]."""
        query, key, value = (
            part.unflatten(-1, (-1, self.head_size)) for part in self.qkv(x).split(self.sizes, dim=-1)
        )  # [T, H, D], [T, K, D], [T, K, D]
        result: Tensor = self.out(self.attention(query, key, value, batch, self.rotary))
        return result


class LlamaLayer(nn.Module):
    """Attention and MLP, each on the normed stream and added to it; the last sum is the next layer's."""

    def __init__(self, config: LlamaConfig, index: int, rotary: RotaryEmbedding, ctx: BuildContext) -> None:
        super().__init__()
        self.is_last = index == config.num_layers - 1
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps, ctx)
        self.attention = LlamaAttention(config, rotary, ctx)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps, ctx)
        self.mlp = GatedMLP(
            config.hidden_size, config.intermediate_size, config.activation, ctx, bias=config.has_mlp_bias
        )

    def forward(self, x: Stream, batch: ForwardBatch) -> Stream:
        """[T, E] to [T, E], in two tensors whose sum it is, but from the last layer."""
        normed, x = self.attention_norm.of_stream(x)
        normed, x = self.mlp_norm.of_sum(x, self.attention(normed, batch))
        added: Tensor = self.mlp(normed)
        return x + added if self.is_last else (x, added)


class LlamaModel(nn.Module):
    """A Llama; see `quire.api.protocols.Model`."""

    def __init__(self, config: LlamaConfig, ctx: BuildContext) -> None:
        super().__init__()
        self.embedding = ctx.embedding(config.vocab_size, config.hidden_size)
        rotary = RotaryEmbedding(config.rope, ctx)
        self.layers = ctx.layers(config.num_layers, lambda index: LlamaLayer(config, index, rotary, ctx))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps, ctx)
        tied_to = self.embedding if config.is_tied else None
        self.lm_head = ctx.lm_head(config.hidden_size, config.vocab_size, tied_to=tied_to)

    def embed(self, batch: ForwardBatch) -> Tensor:
        """See Model."""
        result: Tensor = self.embedding(batch.token_ids)
        return result

    def finish(self, hidden: Tensor) -> Tensor:
        """See Model."""
        result: Tensor = self.norm(hidden)
        return result

    def logits(self, hidden: Tensor) -> Tensor:
        """See Model."""
        result: Tensor = self.lm_head(hidden)
        return result

    @staticmethod
    def parse_config(hf_config: Mapping[str, object]) -> LlamaConfig:
        """See ModelFactory; raises UnsupportedModelError for a sliding window and unknown activations."""
        if optional_int(hf_config, "sliding_window") is not None:
            raise UnsupportedModelError("LlamaForCausalLM with a sliding_window is not served")
        heads = require_heads(hf_config)
        return LlamaConfig(
            vocab_size=require_int(hf_config, "vocab_size", minimum=1),
            hidden_size=require_int(hf_config, "hidden_size", minimum=1),
            intermediate_size=require_int(hf_config, "intermediate_size", minimum=1),
            num_layers=require_int(hf_config, "num_hidden_layers", minimum=1),
            heads=heads,
            activation=require_choice(hf_config, "hidden_act", ACTIVATION_OPS, default="silu"),
            norm_eps=optional_float(hf_config, "rms_norm_eps", above=0.0) or 1e-6,
            rope=parse_full_rope(hf_config, heads.head_size),
            has_attention_bias=optional_bool(hf_config, "attention_bias", default=False),
            has_mlp_bias=optional_bool(hf_config, "mlp_bias", default=False),
            is_tied=optional_bool(hf_config, "tie_word_embeddings", default=False),
        )

    @staticmethod
    def weight_map(config: LlamaConfig) -> WeightMap:
        """See ModelFactory."""
        layer, source = "layers.{i}", "model.layers.{i}"
        modules = {
            "embedding": (WeightPart("model.embed_tokens"),),
            f"{layer}.attention_norm": (WeightPart(f"{source}.input_layernorm"),),
            f"{layer}.attention.qkv": tuple(
                WeightPart(f"{source}.self_attn.{part}_proj", part) for part in ("q", "k", "v")
            ),
            f"{layer}.attention.out": (WeightPart(f"{source}.self_attn.o_proj"),),
            f"{layer}.mlp_norm": (WeightPart(f"{source}.post_attention_layernorm"),),
            f"{layer}.mlp.gate_up": tuple(
                WeightPart(f"{source}.mlp.{part}_proj", part) for part in ("gate", "up")
            ),
            f"{layer}.mlp.down": (WeightPart(f"{source}.mlp.down_proj"),),
            "norm": (WeightPart("model.norm"),),
        }
        ignored = [r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"]
        if config.is_tied:
            ignored.append(r"lm_head\.weight")
        else:
            modules["lm_head"] = (WeightPart("lm_head"),)
        return WeightMap(modules, config.num_layers, tuple(ignored))
