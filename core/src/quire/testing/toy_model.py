"""The smallest model that an engine can serve, for suites of what is no model. Alibi gives it positions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from quire.api.batch import ForwardBatch
from quire.api.hf_config import optional_int, require_int
from quire.api.protocols import AttentionParams, BuildContext
from quire.api.specs import WeightMap, WeightPart

ARCHITECTURE = "QuireToyForCausalLM"
VOCAB_SIZE = 61
MAX_LEN = 64
_HEADS, _SIZE = 2, 16


@dataclass(slots=True, frozen=True)
class ToyConfig:
    """Its shape."""

    vocab_size: int
    hidden_size: int = _SIZE
    max_position_embeddings: int = MAX_LEN
    num_attention_heads: int = _HEADS

    @property
    def rope_switch_len(self) -> int | None:
        """None: there is no rotary embedding."""
        return None


class ToyLayer(nn.Module):
    """Attention, added to the stream."""

    def __init__(self, size: int, ctx: BuildContext) -> None:
        super().__init__()
        self.qkv = ctx.linear(size, {"q": size, "k": size, "v": size})
        head_size = size // _HEADS
        params = AttentionParams(_HEADS, _HEADS, head_size, head_size**-0.5, alibi_slopes=(0.5, 0.1))
        self.attention = ctx.attention(params)

    def forward(self, x: Tensor, batch: ForwardBatch) -> Tensor:
        """[T, E] to [T, E]."""
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        result: Tensor = x + self.attention(query, key, value, batch)
        return result


class ToyModel(nn.Module):
    """One layer and a head; see `quire.api.protocols.Model`."""

    def __init__(self, config: ToyConfig, ctx: BuildContext) -> None:
        super().__init__()
        self.embedding = ctx.embedding(config.vocab_size, config.hidden_size)
        self.layers = ctx.layers(1, lambda index: ToyLayer(config.hidden_size, ctx))
        self.lm_head = ctx.lm_head(config.hidden_size, config.vocab_size)

    def embed(self, batch: ForwardBatch) -> Tensor:
        """See Model."""
        result: Tensor = self.embedding(batch.token_ids)
        return result

    def finish(self, hidden: Tensor) -> Tensor:
        """See Model."""
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """See Model."""
        result: Tensor = self.lm_head(hidden)
        return result

    @staticmethod
    def parse_config(hf_config: Mapping[str, object]) -> ToyConfig:
        """See ModelFactory."""
        return ToyConfig(
            require_int(hf_config, "vocab_size", minimum=1),
            optional_int(hf_config, "hidden_size", minimum=2) or _SIZE,
        )

    @staticmethod
    def weight_map(config: ToyConfig) -> WeightMap:
        """See ModelFactory."""
        modules = {
            "embedding": (WeightPart("embedding"),),
            "layers.{i}.qkv": tuple(WeightPart(f"layers.{{i}}.{part}", part) for part in ("q", "k", "v")),
            "lm_head": (WeightPart("lm_head"),),
        }
        return WeightMap(modules, num_layers=1)


def toy_tensors(
    *, vocab_size: int = VOCAB_SIZE, hidden_size: int = _SIZE, seed: int = 0
) -> dict[str, Tensor]:
    """Random weights of a toy model, by name."""
    random = torch.Generator().manual_seed(seed)
    shapes = {"embedding": (vocab_size, hidden_size), "lm_head": (vocab_size, hidden_size)}
    shapes |= {f"layers.0.{part}": (hidden_size, hidden_size) for part in ("q", "k", "v")}
    return {f"{name}.weight": torch.randn(shape, generator=random) for name, shape in shapes.items()}


def write_toy_checkpoint(
    folder: Path,
    *,
    vocab_size: int = VOCAB_SIZE,
    seed: int = 0,
    tensors: Mapping[str, Tensor] | None = None,
    config: Mapping[str, object] | None = None,
) -> Path:
    """Write config.json and safetensors of a toy model; returns the folder.

    Args:
        folder: made when missing.
        vocab_size: of random weights.
        seed: of random weights.
        tensors: other weights.
        config: further fields of config.json.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    stored = dict(tensors or toy_tensors(vocab_size=vocab_size, seed=seed))
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    fields = {"architectures": [ARCHITECTURE], "vocab_size": vocab_size, "dtype": "float32", **(config or {})}
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    return folder
