"""The GPT-2 decoder: LayerNorm, learned positions, fused attention, plain MLP.

Source: Radford et al. 2019; transformers 5, models/gpt2/modeling_gpt2.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from quire.api.batch import ForwardBatch
from quire.api.errors import CheckpointError, UnsupportedModelError
from quire.api.hf_config import optional_bool, optional_float, optional_int, require_choice, require_int
from quire.api.protocols import AttentionParams, BuildContext
from quire.api.specs import WeightMap, WeightPart
from quire.nn.activation import ACTIVATION_OPS
from quire.nn.norm import LayerNorm, Stream


@dataclass(slots=True, frozen=True)
class GPT2Config:
    """A GPT-2's shape.

    Attributes:
        scales: for each layer what the attention scores are multiplied by.
    """

    vocab_size: int
    max_position_embeddings: int
    hidden_size: int
    inner_size: int
    num_layers: int
    num_attention_heads: int
    activation: str
    norm_eps: float
    scales: tuple[float, ...]
    is_tied: bool

    @property
    def rope_switch_len(self) -> int | None:
        """None: positions are learned."""
        return None


class GPT2Attention(nn.Module):
    """Multi-head attention with a fused QKV product."""

    def __init__(self, config: GPT2Config, index: int, ctx: BuildContext) -> None:
        super().__init__()
        size, heads = config.hidden_size, config.num_attention_heads
        self.head_size = size // heads
        self.qkv = ctx.linear(size, {"q": size, "k": size, "v": size}, bias=True)
        self.out = ctx.linear(size, {"out": size}, bias=True)
        self.attention = ctx.attention(AttentionParams(heads, heads, self.head_size, config.scales[index]))

    def forward(self, x: Tensor, batch: ForwardBatch) -> Tensor:
        """[T, E] to [T, E]."""
        query, key, value = (
            part.unflatten(-1, (-1, self.head_size)) for part in self.qkv(x).chunk(3, dim=-1)
        )
        result: Tensor = self.out(self.attention(query, key, value, batch))
        return result


class GPT2MLP(nn.Module):
    """`project(activation(expand(x)))`."""

    def __init__(self, config: GPT2Config, ctx: BuildContext) -> None:
        super().__init__()
        self.expand = ctx.linear(config.hidden_size, {"expand": config.inner_size}, bias=True)
        self.project = ctx.linear(config.inner_size, {"project": config.hidden_size}, bias=True)
        self._activate: Callable[[Tensor], Tensor] = getattr(ctx.ops, config.activation)

    def forward(self, x: Tensor) -> Tensor:
        """[T, E] to [T, E]."""
        result: Tensor = self.project(self._activate(self.expand(x)))
        return result


class GPT2Layer(nn.Module):
    """Attention and MLP, each on the normed stream and added to it; the last sum is the next layer's."""

    def __init__(self, config: GPT2Config, index: int, ctx: BuildContext) -> None:
        super().__init__()
        self.is_last = index == config.num_layers - 1
        self.attention_norm = LayerNorm(config.hidden_size, config.norm_eps, ctx)
        self.attention = GPT2Attention(config, index, ctx)
        self.mlp_norm = LayerNorm(config.hidden_size, config.norm_eps, ctx)
        self.mlp = GPT2MLP(config, ctx)

    def forward(self, x: Stream, batch: ForwardBatch) -> Stream:
        """[T, E] to [T, E], in two tensors whose sum it is, but from the last layer."""
        normed, x = self.attention_norm.of_stream(x)
        normed, x = self.mlp_norm.of_sum(x, self.attention(normed, batch))
        added: Tensor = self.mlp(normed)
        return x + added if self.is_last else (x, added)


class GPT2Model(nn.Module):
    """A GPT-2; see `quire.api.protocols.Model`."""

    def __init__(self, config: GPT2Config, ctx: BuildContext) -> None:
        super().__init__()
        self.embedding = ctx.embedding(config.vocab_size, config.hidden_size)
        self.positions = ctx.embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = ctx.layers(config.num_layers, lambda index: GPT2Layer(config, index, ctx))
        self.norm = LayerNorm(config.hidden_size, config.norm_eps, ctx)
        tied_to = self.embedding if config.is_tied else None
        self.lm_head = ctx.lm_head(config.hidden_size, config.vocab_size, tied_to=tied_to)

    def embed(self, batch: ForwardBatch) -> Tensor:
        """See Model."""
        result: Tensor = self.embedding(batch.token_ids) + self.positions(batch.positions)
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
    def parse_config(hf_config: Mapping[str, object]) -> GPT2Config:
        """See ModelFactory; raises UnsupportedModelError for cross-attention and unknown activations.

        `reorder_and_upcast_attn` changes the roundings of 16-bit training only: scores are computed
        in float32 or wider here in any case.
        """
        if optional_bool(hf_config, "add_cross_attention", default=False):
            raise UnsupportedModelError("GPT2LMHeadModel with add_cross_attention is not served")
        hidden_size = require_int(hf_config, "n_embd", minimum=1)
        num_heads = require_int(hf_config, "n_head", minimum=1)
        num_layers = require_int(hf_config, "n_layer", minimum=1)
        if hidden_size % num_heads:
            raise CheckpointError(f"config.json: n_embd {hidden_size} is no multiple of n_head {num_heads}")
        return GPT2Config(
            vocab_size=require_int(hf_config, "vocab_size", minimum=1),
            max_position_embeddings=require_int(hf_config, "n_positions", minimum=1),
            hidden_size=hidden_size,
            inner_size=optional_int(hf_config, "n_inner", minimum=1) or 4 * hidden_size,
            num_layers=num_layers,
            num_attention_heads=num_heads,
            activation=require_choice(hf_config, "activation_function", ACTIVATION_OPS, default="gelu_new"),
            norm_eps=optional_float(hf_config, "layer_norm_epsilon", above=0.0) or 1e-5,
            scales=_parse_scales(hf_config, hidden_size // num_heads, num_layers),
            is_tied=optional_bool(hf_config, "tie_word_embeddings", default=True),
        )

    @staticmethod
    def weight_map(config: GPT2Config) -> WeightMap:
        """See ModelFactory. Conv1D stores weights as [in, out]; Q, K and V are thirds of one source."""
        layer, source, size = "layers.{i}", "h.{i}", config.hidden_size
        modules = {
            "embedding": (WeightPart("wte"),),
            "positions": (WeightPart("wpe"),),
            f"{layer}.attention_norm": (WeightPart(f"{source}.ln_1"),),
            f"{layer}.attention.qkv": tuple(
                WeightPart(f"{source}.attn.c_attn", part, transposed=True, row_permutation=_rows(index, size))
                for index, part in enumerate(("q", "k", "v"))
            ),
            f"{layer}.attention.out": (WeightPart(f"{source}.attn.c_proj", transposed=True),),
            f"{layer}.mlp_norm": (WeightPart(f"{source}.ln_2"),),
            f"{layer}.mlp.expand": (WeightPart(f"{source}.mlp.c_fc", transposed=True),),
            f"{layer}.mlp.project": (WeightPart(f"{source}.mlp.c_proj", transposed=True),),
            "norm": (WeightPart("ln_f"),),
        }
        ignored = [r"h\.\d+\.attn\.(bias|masked_bias)"]
        if config.is_tied:
            ignored.append(r"lm_head\.weight")
        else:
            modules["lm_head"] = (WeightPart("lm_head"),)
        return WeightMap(modules, config.num_layers, tuple(ignored), prefixes=("", "transformer."))


def _rows(index: int, size: int) -> tuple[int, ...]:
    return tuple(range(index * size, (index + 1) * size))


def _parse_scales(hf_config: Mapping[str, object], head_size: int, num_layers: int) -> tuple[float, ...]:
    is_scaled = optional_bool(hf_config, "scale_attn_weights", default=True)
    scale = head_size**-0.5 if is_scaled else 1.0
    if optional_bool(hf_config, "scale_attn_by_inverse_layer_idx", default=False):
        return tuple(scale / (index + 1) for index in range(num_layers))
    return (scale,) * num_layers
