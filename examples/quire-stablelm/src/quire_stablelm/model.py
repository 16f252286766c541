"""The StableLM decoder: LayerNorm, partly rotated heads, gated MLP after or beside attention.

Source: transformers 5, models/stablelm/modeling_stablelm.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quire.api import hf_config as hf
from quire.api.batch import ForwardBatch
from quire.api.protocols import AttentionParams, BuildContext
from quire.api.specs import WeightMap, WeightPart
from quire.nn.activation import ACTIVATION_OPS
from quire.nn.dtypes import torch_device, torch_dtype
from quire.nn.linear import TensorSlot
from quire.nn.mlp import GatedMLP
from quire.nn.norm import LayerNorm
from quire.nn.rope_config import RopeConfig, parse_rope_config
from quire.nn.rotary import RotaryEmbedding


@dataclass(slots=True, frozen=True)
class StableLmConfig:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    heads: hf.HeadLayout
    activation: str
    norm_eps: float
    rope: RopeConfig
    has_qkv_bias: bool
    has_head_norms: bool
    is_parallel: bool
    is_tied: bool
    num_attention_heads: int
    max_position_embeddings: int
    rope_switch_len: int | None


class HeadNorm(nn.Module):
    """A LayerNorm without bias for each head; the checkpoint has a module per head, here they are rows."""

    def __init__(self, num_heads: int, config: StableLmConfig, ctx: BuildContext) -> None:
        super().__init__()
        shape = (num_heads, config.heads.head_size)
        values = torch.empty(shape, dtype=torch_dtype(ctx.dtype), device=torch_device(ctx.device))
        self.weight = nn.Parameter(values, requires_grad=False)
        self.eps = config.norm_eps

    def tensor_slots(self, part: str | None) -> list[TensorSlot]:
        return [TensorSlot("weight", self.weight.data[int(part or 0)], output_dim=0)]

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()  # [T, H, D]; rounded once, as by nn.LayerNorm
        return (F.layer_norm(wide, wide.shape[-1:], eps=self.eps) * self.weight).to(x.dtype)


class StableLmLayer(nn.Module):
    def __init__(self, config: StableLmConfig, rotary: RotaryEmbedding, ctx: BuildContext) -> None:
        super().__init__()
        size, head_size = config.hidden_size, config.heads.head_size
        heads, kv_heads = config.heads.num_heads, config.heads.num_kv_heads
        self.head_size = head_size
        self.parts = {"q": heads * head_size, "k": kv_heads * head_size, "v": kv_heads * head_size}
        self.attention_norm = LayerNorm(size, config.norm_eps, ctx)
        self.qkv = ctx.linear(size, self.parts, bias=config.has_qkv_bias)
        self.q_norm = HeadNorm(heads, config, ctx) if config.has_head_norms else None
        self.k_norm = HeadNorm(kv_heads, config, ctx) if config.has_head_norms else None
        self.rotary = rotary
        self.attention = ctx.attention(AttentionParams(heads, kv_heads, head_size, scale=head_size**-0.5))
        self.out = ctx.linear(heads * head_size, {"out": size})
        self.mlp_norm = None if config.is_parallel else LayerNorm(size, config.norm_eps, ctx)
        self.mlp = GatedMLP(size, config.intermediate_size, config.activation, ctx)

    def forward(self, x: Tensor, batch: ForwardBatch) -> Tensor:
        """[T, E] to [T, E]."""
        normed = self.attention_norm(x)
        split = self.qkv(normed).split(list(self.parts.values()), dim=-1)
        query, key, value = (part.unflatten(-1, (-1, self.head_size)) for part in split)  # [T, H or K, D]
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = self.rotary(query, key, batch)
        x = x + self.out(self.attention(query, key, value, batch))
        result: Tensor = x + self.mlp(normed if self.mlp_norm is None else self.mlp_norm(x))
        return result


class StableLmModel(nn.Module):
    """See `quire.api.protocols.Model` and `ModelFactory`."""

    def __init__(self, config: StableLmConfig, ctx: BuildContext) -> None:
        super().__init__()
        self.embedding = ctx.embedding(config.vocab_size, config.hidden_size)
        rotary = RotaryEmbedding(config.rope, ctx)
        self.layers = ctx.layers(config.num_layers, lambda index: StableLmLayer(config, rotary, ctx))
        self.norm = LayerNorm(config.hidden_size, config.norm_eps, ctx)
        tied_to = self.embedding if config.is_tied else None
        self.lm_head = ctx.lm_head(config.hidden_size, config.vocab_size, tied_to=tied_to)

    def embed(self, batch: ForwardBatch) -> Tensor:
        result: Tensor = self.embedding(batch.token_ids)
        return result

    def finish(self, hidden: Tensor) -> Tensor:
        result: Tensor = self.norm(hidden)
        return result

    def logits(self, hidden: Tensor) -> Tensor:
        result: Tensor = self.lm_head(hidden)
        return result

    @staticmethod
    def parse_config(hf_config: hf.HFConfig) -> StableLmConfig:
        heads = hf.require_heads(hf_config)
        rope = parse_rope_config(
            {"partial_rotary_factor": 0.25, **hf_config},
            head_size=heads.head_size,
            max_position_embeddings=hf.require_int(hf_config, "max_position_embeddings", minimum=1),
        )
        return StableLmConfig(
            vocab_size=hf.require_int(hf_config, "vocab_size", minimum=1),
            hidden_size=hf.require_int(hf_config, "hidden_size", minimum=1),
            intermediate_size=hf.require_int(hf_config, "intermediate_size", minimum=1),
            num_layers=hf.require_int(hf_config, "num_hidden_layers", minimum=1),
            heads=heads,
            activation=hf.require_choice(hf_config, "hidden_act", ACTIVATION_OPS, default="silu"),
            norm_eps=hf.optional_float(hf_config, "layer_norm_eps", above=0.0) or 1e-5,
            rope=rope,
            has_qkv_bias=hf.optional_bool(hf_config, "use_qkv_bias", default=False),
            has_head_norms=hf.optional_bool(hf_config, "qk_layernorm", default=False),
            is_parallel=hf.optional_bool(hf_config, "use_parallel_residual", default=False),
            is_tied=hf.optional_bool(hf_config, "tie_word_embeddings", default=False),
            num_attention_heads=heads.num_heads,
            max_position_embeddings=rope.max_len,
            rope_switch_len=rope.switch_len,
        )

    @staticmethod
    def weight_map(config: StableLmConfig) -> WeightMap:
        ours, theirs = "layers.{i}", "model.layers.{i}"
        modules: dict[str, tuple[WeightPart, ...]] = {
            "embedding": (WeightPart("model.embed_tokens"),),
            "norm": (WeightPart("model.norm"),),
            f"{ours}.attention_norm": (WeightPart(f"{theirs}.input_layernorm"),),
            f"{ours}.qkv": tuple(WeightPart(f"{theirs}.self_attn.{part}_proj", part) for part in "qkv"),
            f"{ours}.out": (WeightPart(f"{theirs}.self_attn.o_proj"),),
            f"{ours}.mlp.gate_up": tuple(WeightPart(f"{theirs}.mlp.{p}_proj", p) for p in ("gate", "up")),
            f"{ours}.mlp.down": (WeightPart(f"{theirs}.mlp.down_proj"),),
        }
        if not config.is_parallel:
            modules[f"{ours}.mlp_norm"] = (WeightPart(f"{theirs}.post_attention_layernorm"),)
        if config.has_head_norms:
            for part, count in (("q", config.heads.num_heads), ("k", config.heads.num_kv_heads)):
                source = f"{theirs}.self_attn.{part}_layernorm.norms"
                modules[f"{ours}.{part}_norm"] = tuple(
                    WeightPart(f"{source}.{head}", str(head)) for head in range(count)
                )
        if not config.is_tied:
            modules["lm_head"] = (WeightPart("lm_head"),)
        return WeightMap(modules, config.num_layers, (r"lm_head\.weight",) if config.is_tied else ())
