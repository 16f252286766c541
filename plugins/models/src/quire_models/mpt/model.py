"""The MPT decoder: LayerNorm, alibi or learned positions, fused attention, plain MLP, no biases.

Source: MosaicML NLP Team 2023; transformers 5, models/mpt/modeling_mpt.py. That port passes over
`alibi_bias_max`, `alibi: false`, `expansion_ratio` and `logit_scale`; here they mean what MosaicML's
llm-foundry makes of them (models/mpt/modeling_mpt.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from quire.api.batch import ForwardBatch
from quire.api.errors import CheckpointError, UnsupportedModelError
from quire.api.hf_config import (
    HFConfig,
    optional_bool,
    optional_float,
    optional_int,
    optional_mapping,
    require_choice,
    require_int,
)
from quire.api.protocols import AttentionParams, BuildContext
from quire.api.specs import WeightMap, WeightPart
from quire.nn.norm import LayerNorm, Stream


@dataclass(slots=True, frozen=True)
class MptConfig:
    """An MPT's shape.

    Attributes:
        scale: what the attention scores are multiplied by.
        clip_qkv: None, or the largest absolute value of queries, keys and values.
        alibi_slopes: one per head; None where positions are learned.
        logit_scale: what the logits are multiplied by.
    """

    vocab_size: int
    max_position_embeddings: int
    hidden_size: int
    inner_size: int
    num_layers: int
    num_attention_heads: int
    norm_eps: float
    scale: float
    clip_qkv: float | None
    alibi_slopes: tuple[float, ...] | None
    logit_scale: float
    is_tied: bool

    @property
    def rope_switch_len(self) -> int | None:
        """None: there is no rotary embedding."""
        return None


class MptAttention(nn.Module):
    """Multi-head attention with a fused, clipped QKV product."""

    def __init__(self, config: MptConfig, ctx: BuildContext) -> None:
        super().__init__()
        size, heads = config.hidden_size, config.num_attention_heads
        self.clip = config.clip_qkv
        self.qkv = ctx.linear(size, {"q": size, "k": size, "v": size})
        self.out = ctx.linear(size, {"out": size})
        slopes = config.alibi_slopes
        self.attention = ctx.attention(
            AttentionParams(heads, heads, size // heads, config.scale, alibi_slopes=slopes)
        )

    def forward(self, x: Tensor, batch: ForwardBatch) -> Tensor:
        """[T, E] to [T, E]."""
        qkv = self.qkv(x)
        if self.clip is not None:
            qkv.clamp_(-self.clip, self.clip)
        query, key, value = qkv.chunk(3, dim=-1)  # [T, H * D] each
        result: Tensor = self.out(self.attention(query, key, value, batch))
        return result


class MptLayer(nn.Module):
    """Attention and MLP, each on the normed stream and added to it; the last sum is the next layer's."""

    def __init__(self, config: MptConfig, index: int, ctx: BuildContext) -> None:
        super().__init__()
        self.is_last = index == config.num_layers - 1
        size, inner = config.hidden_size, config.inner_size
        self.attention_norm = LayerNorm(size, config.norm_eps, ctx, bias=False)
        self.attention = MptAttention(config, ctx)
        self.mlp_norm = LayerNorm(size, config.norm_eps, ctx, bias=False)
        self.expand = ctx.linear(size, {"expand": inner})
        self.project = ctx.linear(inner, {"project": size})
        self._activate = ctx.ops.gelu

    def forward(self, x: Stream, batch: ForwardBatch) -> Stream:
        """[T, E] to [T, E], in two tensors whose sum it is, but from the last layer."""
        normed, x = self.attention_norm.of_stream(x)
        normed, x = self.mlp_norm.of_sum(x, self.attention(normed, batch))
        added: Tensor = self.project(self._activate(self.expand(normed)))
        return x + added if self.is_last else (x, added)


class MptModel(nn.Module):
    """An MPT; see `quire.api.protocols.Model`."""

    def __init__(self, config: MptConfig, ctx: BuildContext) -> None:
        super().__init__()
        size = config.hidden_size
        self.embedding = ctx.embedding(config.vocab_size, size)
        has_positions = config.alibi_slopes is None
        self.positions = ctx.embedding(config.max_position_embeddings, size) if has_positions else None
        self.layers = ctx.layers(config.num_layers, lambda index: MptLayer(config, index, ctx))
        self.norm = LayerNorm(size, config.norm_eps, ctx, bias=False)
        tied_to = self.embedding if config.is_tied else None
        self.lm_head = ctx.lm_head(size, config.vocab_size, tied_to=tied_to)
        self.logit_scale = config.logit_scale

    def embed(self, batch: ForwardBatch) -> Tensor:
        """See Model."""
        result: Tensor = self.embedding(batch.token_ids)
        return result if self.positions is None else result + self.positions(batch.positions)

    def finish(self, hidden: Tensor) -> Tensor:
        """See Model."""
        result: Tensor = self.norm(hidden)
        return result

    def logits(self, hidden: Tensor) -> Tensor:
        """See Model."""
        result: Tensor = self.lm_head(hidden)
        return result if self.logit_scale == 1.0 else result * self.logit_scale

    @staticmethod
    def parse_config(hf_config: Mapping[str, object]) -> MptConfig:
        """See ModelFactory; raises UnsupportedModelError for the traits of `_check_traits`."""
        attention = optional_mapping(hf_config, "attn_config") or {}
        _check_traits(hf_config, attention)
        hidden_size = require_int(hf_config, "d_model", minimum=1)
        num_heads = require_int(hf_config, "n_heads", minimum=1)
        if hidden_size % num_heads:
            raise CheckpointError(f"config.json: d_model {hidden_size} is no multiple of n_heads {num_heads}")
        scale = optional_float(attention, "softmax_scale", above=0.0)
        clip = optional_float(attention, "clip_qkv") or None  # 0 means none too
        if clip is not None and clip < 0:
            raise CheckpointError(f"config.json: attn_config.clip_qkv is {clip}; it must not be negative")
        return MptConfig(
            vocab_size=require_int(hf_config, "vocab_size", minimum=1),
            max_position_embeddings=require_int(hf_config, "max_seq_len", minimum=1),
            hidden_size=hidden_size,
            inner_size=hidden_size * (optional_int(hf_config, "expansion_ratio", minimum=1) or 4),
            num_layers=require_int(hf_config, "n_layers", minimum=1),
            num_attention_heads=num_heads,
            norm_eps=optional_float(hf_config, "layer_norm_epsilon", above=0.0) or 1e-5,
            scale=(hidden_size // num_heads) ** -0.5 if scale is None else scale,
            clip_qkv=clip,
            alibi_slopes=_parse_slopes(attention, num_heads),
            logit_scale=_parse_logit_scale(hf_config, hidden_size),
            is_tied=optional_bool(hf_config, "tie_word_embeddings", default=True),
        )

    @staticmethod
    def weight_map(config: MptConfig) -> WeightMap:
        """See ModelFactory. Q, K and V are thirds of one source."""
        layer, source, size = "layers.{i}", "blocks.{i}", config.hidden_size
        modules = {
            "embedding": (WeightPart("wte"),),
            f"{layer}.attention_norm": (WeightPart(f"{source}.norm_1"),),
            f"{layer}.attention.qkv": tuple(
                WeightPart(f"{source}.attn.Wqkv", part, row_permutation=tuple(range(start, start + size)))
                for part, start in (("q", 0), ("k", size), ("v", 2 * size))
            ),
            f"{layer}.attention.out": (WeightPart(f"{source}.attn.out_proj"),),
            f"{layer}.mlp_norm": (WeightPart(f"{source}.norm_2"),),
            f"{layer}.expand": (WeightPart(f"{source}.ffn.up_proj"),),
            f"{layer}.project": (WeightPart(f"{source}.ffn.down_proj"),),
            "norm": (WeightPart("norm_f"),),
        }
        if config.alibi_slopes is None:
            modules["positions"] = (WeightPart("wpe"),)
        if not config.is_tied:
            modules["lm_head"] = (WeightPart("lm_head"),)
        ignored = (r"lm_head\.weight",) if config.is_tied else ()
        return WeightMap(modules, config.num_layers, ignored, prefixes=("transformer.", ""))


def _check_traits(hf_config: HFConfig, attention: HFConfig) -> None:
    """Refuse what neither transformers nor this module computes, by name."""
    flags = ("qk_ln", "qk_gn", "prefix_lm", "attn_uses_sequence_id", "rope")
    refused = [f"attn_config.{name}" for name in flags if optional_bool(attention, name, default=False)]
    if not optional_bool(hf_config, "no_bias", default=True):
        refused.append("no_bias: false")
    if optional_int(attention, "sliding_window_size") not in (None, -1):
        refused.append("attn_config.sliding_window_size")
    if hf_config.get("block_overrides") is not None:
        refused.append("block_overrides")
    is_learned = optional_bool(hf_config, "learned_pos_emb", default=True)
    if not is_learned and not optional_bool(attention, "alibi", default=True):
        refused.append("neither attn_config.alibi nor learned_pos_emb")
    if refused:
        raise UnsupportedModelError(f"MptForCausalLM with {', '.join(refused)} is not served")
    norms = {"low_precision_layernorm": "", "layernorm": ""}
    require_choice(hf_config, "norm_type", norms, default="low_precision_layernorm")
    mlp = optional_mapping(hf_config, "ffn_config") or {}
    require_choice(mlp, "ffn_type", {"mptmlp": ""}, default="mptmlp")
    require_choice(attention, "attn_type", {"multihead_attention": ""}, default="multihead_attention")


def _parse_slopes(attention: HFConfig, num_heads: int) -> tuple[float, ...] | None:
    """`2 ** (-alibi_bias_max * i / n)` for i = 1 ... n, the power of two at or above the number of heads.

    Where there are fewer heads than n, the even i come first and then the odd ones, as far as needed.
    """
    if not optional_bool(attention, "alibi", default=True):
        return None
    bias_max = optional_float(attention, "alibi_bias_max", above=0.0) or 8.0
    count = 1 << (num_heads - 1).bit_length()
    slopes = [2.0 ** (-bias_max * i / count) for i in range(1, count + 1)]
    if count != num_heads:
        slopes = slopes[1::2] + slopes[::2]
    return tuple(slopes[:num_heads])


def _parse_logit_scale(hf_config: HFConfig, hidden_size: int) -> float:
    if hf_config.get("logit_scale") == "inv_sqrt_d_model":
        return float(hidden_size**-0.5)
    scale = optional_float(hf_config, "logit_scale")
    return 1.0 if scale is None else scale
