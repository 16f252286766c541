"""Model shapes that the benchmarks run, and checkpoints of them with random weights."""

from __future__ import annotations

import json
import os
import string
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor


@dataclass(slots=True, frozen=True)
class Shape:
    """Sizes of a decoder with grouped queries, a gated MLP and tied embeddings, in bfloat16."""

    name: str
    architecture: str
    model_type: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    rope_theta: float
    has_qkv_bias: bool = False
    max_position_embeddings: int = 8192

    @property
    def head_size(self) -> int:
        """D."""
        return self.hidden // self.heads

    @property
    def linear_params(self) -> int:
        """Weights of all layers' linears, multiplied once per token."""
        kv_width = self.kv_heads * self.head_size
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * kv_width
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_params(self) -> int:
        """Weights of the output projection, multiplied once per sampled token."""
        return self.vocab * self.hidden

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token over all layers."""
        return self.layers * 2 * self.kv_heads * self.head_size * 2


SHAPES: dict[str, Shape] = {
    "S": Shape("S", "LlamaForCausalLM", "llama", 576, 30, 9, 3, 1536, 49152, 1e5),
    "M": Shape("M", "Qwen2ForCausalLM", "qwen2", 896, 24, 14, 2, 4864, 151936, 1e6, has_qkv_bias=True),
}
"""S is the shape of SmolLM2-135M, M that of Qwen2.5-0.5B."""


def cache_folder() -> Path:
    """Where checkpoints are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "quire-benchmarks"


def checkpoint(shape: Shape, folder: Path | None = None) -> Path:
    """The folder of a random checkpoint of the shape, made if it is not there yet."""
    target = (folder or cache_folder()) / f"{shape.model_type}-{shape.name}"
    weights = target / "model.safetensors"
    if not weights.exists():
        target.mkdir(parents=True, exist_ok=True)
        (target / "config.json").write_text(json.dumps(_config(shape), indent=2))
        partial = target / "model.safetensors.partial"
        save_file(_random_weights(shape), str(partial), metadata={"format": "pt"})
        partial.rename(weights)
    tokenizer = target / "tokenizer.json"
    if not tokenizer.exists():
        _made_up_tokenizer(shape.vocab).save(str(tokenizer))
    return target


def _config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": [shape.architecture],
        "model_type": shape.model_type,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.max_position_embeddings,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _made_up_tokenizer(vocab_size: int) -> Tokenizer:
    """Byte-level BPE of the given size, whose longer tokens are letters in a row."""
    tokens = ["<unk>", "<s>", "</s>", *sorted(ByteLevel.alphabet())]
    starts, merges = ["Ġ", *string.ascii_letters], []
    for start in starts:
        for letter in string.ascii_lowercase:
            if len(tokens) < vocab_size:
                merges.append((start, letter))
                tokens.append(start + letter)
                starts.append(start + letter)
    tokenizer = Tokenizer(BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens(tokens[:3])
    return tokenizer


def _random_weights(shape: Shape) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> Tensor:
        return (torch.randn(rows, columns, generator=generator) * 0.02).bfloat16()

    hidden, kv_width = shape.hidden, shape.kv_heads * shape.head_size
    widths = {"q_proj": hidden, "k_proj": kv_width, "v_proj": kv_width}
    weights = {"model.embed_tokens.weight": matrix(shape.vocab, hidden)}
    for index in range(shape.layers):
        layer = f"model.layers.{index}"
        for name, width in widths.items():
            weights[f"{layer}.self_attn.{name}.weight"] = matrix(width, hidden)
            if shape.has_qkv_bias:
                weights[f"{layer}.self_attn.{name}.bias"] = matrix(1, width).flatten()
        weights[f"{layer}.self_attn.o_proj.weight"] = matrix(hidden, hidden)
        weights[f"{layer}.mlp.gate_proj.weight"] = matrix(shape.intermediate, hidden)
        weights[f"{layer}.mlp.up_proj.weight"] = matrix(shape.intermediate, hidden)
        weights[f"{layer}.mlp.down_proj.weight"] = matrix(hidden, shape.intermediate)
        weights[f"{layer}.input_layernorm.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
        weights[f"{layer}.post_attention_layernorm.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
    weights["model.norm.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
    return weights
