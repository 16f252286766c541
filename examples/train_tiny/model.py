"""The network that is trained: a Llama decoder with grouped-query attention, written for speed on a CPU.

The parameters carry the names of ``LlamaForCausalLM`` in Hugging Face Transformers, so the export is a copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class TinyConfig:
    """Shape of the network."""

    vocab_size: int = 1024
    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    max_position_embeddings: int = 2048
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads


def rope_tables(config: TinyConfig, length: int) -> tuple[Tensor, Tensor]:
    """Returns the cosine and sine tables, each of shape (length, head_dim)."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angles = torch.outer(torch.arange(length, dtype=torch.float32), config.rope_theta**-exponents)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Applies rotary position embedding in Hugging Face's half-split layout."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    """Causal grouped-query self-attention."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        kv_width = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Attends over ``x`` of shape (batch, length, hidden)."""
        batch, length, _ = x.shape
        shape = (batch, length, -1, self.config.head_dim)
        kv_heads = self.config.num_key_value_heads
        groups = self.config.num_attention_heads // kv_heads
        queries = rotate(self.q_proj(x).view(shape).transpose(1, 2), cos, sin)
        keys = rotate(self.k_proj(x).view(shape).transpose(1, 2), cos, sin)
        values = self.v_proj(x).view(shape).transpose(1, 2)
        # Plain products beat the fused kernel here: its backward pass is slow in bfloat16 on a CPU.
        queries = queries.reshape(batch, kv_heads, groups * length, -1)
        scores = (queries @ keys.transpose(-1, -2)).view(batch, kv_heads, groups, length, length)
        scores = scores * self.config.head_dim**-0.5 + self.mask(length, x)
        weights = scores.softmax(-1).view(batch, kv_heads, groups * length, length)
        mixed = (weights @ values).view(batch, -1, length, self.config.head_dim)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))

    @staticmethod
    def mask(length: int, x: Tensor) -> Tensor:
        """Returns the additive causal mask."""
        return torch.full((length, length), float("-inf"), dtype=x.dtype).triu(1)


class MLP(nn.Module):
    """SwiGLU feed-forward block."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transforms every position on its own."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Adds the attention and the feed-forward output to ``x``."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)


class TinyLM(nn.Module):
    """A language model whose output layer is tied to the embedding."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                last = name.endswith(("o_proj.weight", "down_proj.weight"))
                scale = (2 * config.num_hidden_layers) ** -0.5 if last else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)

    def hidden(self, ids: Tensor) -> Tensor:
        """Computes the normalised output of the last layer for token ids of shape (batch, length)."""
        x = self.model.embed_tokens(ids)
        cos, sin = (table.to(x.dtype) for table in rope_tables(self.config, ids.shape[1]))
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return self.model.norm(x)

    def forward(self, ids: Tensor) -> Tensor:
        """Computes logits, shape (batch, length, vocabulary)."""
        return self.head(self.hidden(ids))

    def head(self, x: Tensor) -> Tensor:
        """Turns hidden states into logits with the tied embedding."""
        return F.linear(x, self.model.embed_tokens.weight)
