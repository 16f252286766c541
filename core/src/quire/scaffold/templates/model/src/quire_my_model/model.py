"""The Granite decoder: a Llama whose embeddings, residuals, scores and logits are scaled.

It works as it is. Lines marked CHANGE are where your architecture will differ.
Source: transformers 5, models/granite/modeling_granite.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from quire.api.batch import ForwardBatch
from quire.api.hf_config import optional_bool, require_choice, require_float, require_heads, require_int
from quire.api.protocols import AttentionParams, BuildContext
from quire.api.specs import WeightMap, WeightPart
from quire.nn.activation import ACTIVATION_OPS
from quire.nn.mlp import GatedMLP
from quire.nn.norm import RMSNorm
from quire.nn.rope_config import RopeConfig, parse_full_rope
from quire.nn.rotary import RotaryEmbedding


@dataclass(slots=True, frozen=True)
class MyModelConfig:
    """What the modules below need of config.json, parsed once. CHANGE: your architecture's fields.

    Core reads the first four; `rope_switch_len` is None where positions are not rotary.
    """

    vocab_size: int
    num_attention_heads: int
    max_position_embeddings: int
    rope_switch_len: int | None
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_kv_heads: int
    head_size: int
    activation: str
    norm_eps: float
    rope: RopeConfig
    embedding_multiplier: float
    attention_multiplier: float
    residual_multiplier: float
    logits_scaling: float
    attention_bias: bool
    mlp_bias: bool
    is_tied: bool


class MyModelLayer(nn.Module):
    """Attention and MLP, each on the normed stream and added to it. CHANGE: norms, order, residuals."""

    def __init__(self, config: MyModelConfig, rotary: RotaryEmbedding, ctx: BuildContext) -> None:
        super().__init__()
        size, heads, kv_heads = config.hidden_size, config.num_attention_heads, config.num_kv_heads
        self.head_size = config.head_size
        q_width, kv_width = heads * config.head_size, kv_heads * config.head_size
        self.parts = {"q": q_width, "k": kv_width, "v": kv_width}
        self.attention_norm = RMSNorm(size, config.norm_eps, ctx)
        # `ctx` makes linears, embeddings and attention: quantized, sharded and cached as configured.
        self.qkv = ctx.linear(size, self.parts, bias=config.attention_bias)
        self.out = ctx.linear(self.parts["q"], {"out": size}, bias=config.attention_bias)
        self.rotary = rotary
        params = AttentionParams(heads, kv_heads, self.head_size, scale=config.attention_multiplier)
        self.attention = ctx.attention(params)
        self.mlp_norm = RMSNorm(size, config.norm_eps, ctx)
        self.mlp = GatedMLP(size, config.intermediate_size, config.activation, ctx, bias=config.mlp_bias)
        self.residual_multiplier = config.residual_multiplier

    def forward(self, x: Tensor, batch: ForwardBatch) -> Tensor:
        """[T, E] to [T, E]: the T tokens of all requests of a step, flat, without padding."""
        split = self.qkv(self.attention_norm(x)).split(list(self.parts.values()), dim=-1)
        query, key, value = (part.unflatten(-1, (-1, self.head_size)) for part in split)  # [T, H or K, D]
        query, key = self.rotary(query, key, batch)
        x = x + self.out(self.attention(query, key, value, batch)) * self.residual_multiplier
        return x + self.mlp(self.mlp_norm(x)) * self.residual_multiplier


class MyModelModel(nn.Module):
    """The whole decoder: core calls `embed`, each of `layers`, then `finish` and `logits` for some rows."""

    def __init__(self, config: MyModelConfig, ctx: BuildContext) -> None:
        super().__init__()
        self.config = config
        self.embedding = ctx.embedding(config.vocab_size, config.hidden_size)
        rotary = RotaryEmbedding(config.rope, ctx)
        self.layers = ctx.layers(config.num_layers, lambda index: MyModelLayer(config, rotary, ctx))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps, ctx)
        tied_to = self.embedding if config.is_tied else None
        self.lm_head = ctx.lm_head(config.hidden_size, config.vocab_size, tied_to=tied_to)

    def embed(self, batch: ForwardBatch) -> Tensor:
        """[T, E]. CHANGE: learned positions are `+ self.positions(batch.positions)`."""
        return self.embedding(batch.token_ids) * self.config.embedding_multiplier

    def finish(self, hidden: Tensor) -> Tensor:
        """The final norm, [L, E] to [L, E]."""
        return self.norm(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """[L, E] to [L, V]."""
        return self.lm_head(hidden) / self.config.logits_scaling

    @staticmethod
    def parse_config(hf_config: Mapping[str, object]) -> MyModelConfig:
        """CHANGE: read your config.json; raise UnsupportedModelError for traits that are not computed here."""
        heads = require_heads(hf_config)
        rope = parse_full_rope(hf_config, heads.head_size)
        return MyModelConfig(
            vocab_size=require_int(hf_config, "vocab_size", minimum=1),
            num_attention_heads=heads.num_heads,
            max_position_embeddings=rope.max_len,
            rope_switch_len=rope.switch_len,
            hidden_size=require_int(hf_config, "hidden_size", minimum=1),
            intermediate_size=require_int(hf_config, "intermediate_size", minimum=1),
            num_layers=require_int(hf_config, "num_hidden_layers", minimum=1),
            num_kv_heads=heads.num_kv_heads,
            head_size=heads.head_size,
            activation=require_choice(hf_config, "hidden_act", ACTIVATION_OPS, default="silu"),
            norm_eps=require_float(hf_config, "rms_norm_eps", above=0.0),
            rope=rope,
            embedding_multiplier=require_float(hf_config, "embedding_multiplier"),
            attention_multiplier=require_float(hf_config, "attention_multiplier"),
            residual_multiplier=require_float(hf_config, "residual_multiplier"),
            logits_scaling=require_float(hf_config, "logits_scaling"),
            attention_bias=optional_bool(hf_config, "attention_bias", default=False),
            mlp_bias=optional_bool(hf_config, "mlp_bias", default=False),
            is_tied=optional_bool(hf_config, "tie_word_embeddings", default=False),
        )

    @staticmethod
    def weight_map(config: MyModelConfig) -> WeightMap:
        """CHANGE: left the modules above, right the checkpoint's; "{i}" is the layer, parts as in `ctx.linear`."""
        ours, theirs = "layers.{i}", "model.layers.{i}"
        modules = {
            "embedding": (WeightPart("model.embed_tokens"),),
            f"{ours}.attention_norm": (WeightPart(f"{theirs}.input_layernorm"),),
            f"{ours}.qkv": tuple(WeightPart(f"{theirs}.self_attn.{part}_proj", part) for part in "qkv"),
            f"{ours}.out": (WeightPart(f"{theirs}.self_attn.o_proj"),),
            f"{ours}.mlp_norm": (WeightPart(f"{theirs}.post_attention_layernorm"),),
            f"{ours}.mlp.gate_up": tuple(WeightPart(f"{theirs}.mlp.{p}_proj", p) for p in ("gate", "up")),
            f"{ours}.mlp.down": (WeightPart(f"{theirs}.mlp.down_proj"),),
            "norm": (WeightPart("model.norm"),),
        }
        if not config.is_tied:
            modules["lm_head"] = (WeightPart("lm_head"),)
        return WeightMap(modules, config.num_layers, (r"lm_head\.weight",) if config.is_tied else ())
