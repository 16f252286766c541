"""Writes tiny random Hugging Face checkpoints, for tests: every bias and norm weight is random too.

Needs transformers, which is imported when a builder is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SHARD_SIZE = "20KB"


def write_tiny_llama(path: Path, *, seed: int = 0, is_sharded: bool = False, **overrides: Any) -> Path:
    """Write a random LlamaForCausalLM of two layers.

    Args:
        path: the folder, made when missing.
        seed: of the weights.
        is_sharded: many small files and an index instead of one file.
        **overrides: fields of transformers' LlamaConfig.

    Returns:
        The folder.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**{**_decoder_fields(), **overrides})
    return _write(LlamaForCausalLM(config), path, seed, is_sharded)


def write_tiny_qwen2(path: Path, *, seed: int = 0, is_sharded: bool = False, **overrides: Any) -> Path:
    """Write a random Qwen2ForCausalLM of two layers; see `write_tiny_llama`."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(**{**_decoder_fields(), **overrides})
    return _write(Qwen2ForCausalLM(config), path, seed, is_sharded)


def write_tiny_qwen3(path: Path, *, seed: int = 0, is_sharded: bool = False, **overrides: Any) -> Path:
    """Write a random Qwen3ForCausalLM of two layers; see `write_tiny_llama`."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(**{**_decoder_fields(), "head_dim": 8, **overrides})
    return _write(Qwen3ForCausalLM(config), path, seed, is_sharded)


def write_tiny_mistral(path: Path, *, seed: int = 0, is_sharded: bool = False, **overrides: Any) -> Path:
    """Write a random MistralForCausalLM of two layers; see `write_tiny_llama`."""
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(**{**_decoder_fields(), **overrides})
    return _write(MistralForCausalLM(config), path, seed, is_sharded)


def write_tiny_mpt(path: Path, *, seed: int = 0, is_sharded: bool = False, **overrides: Any) -> Path:
    """Write a random MptForCausalLM of two layers; see `write_tiny_llama`."""
    from transformers import MptConfig, MptForCausalLM

    fields: dict[str, Any] = {
        "vocab_size": 97,
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 4,
        "max_seq_len": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = MptConfig(**{**fields, **overrides})
    return _write(MptForCausalLM(config), path, seed, is_sharded)


def write_tiny_gpt2(path: Path, *, seed: int = 0, is_sharded: bool = False, **overrides: Any) -> Path:
    """Write a random GPT2LMHeadModel of two layers; see `write_tiny_llama`."""
    from transformers import GPT2Config, GPT2LMHeadModel

    fields: dict[str, Any] = {
        "vocab_size": 97,
        "n_positions": 64,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = GPT2Config(**{**fields, **overrides})
    return _write(GPT2LMHeadModel(config), path, seed, is_sharded)


def _decoder_fields() -> dict[str, Any]:
    return {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _write(model: PreTrainedModel, path: Path, seed: int, is_sharded: bool) -> Path:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            is_norm_weight = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.3 * noise if is_norm_weight else 0.25 * noise)
    if is_sharded:
        model.save_pretrained(path, max_shard_size=_SHARD_SIZE)
    else:
        model.save_pretrained(path)
    return path
