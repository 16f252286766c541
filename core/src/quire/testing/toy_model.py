"""The smallest model that an engine can serve, for suites of what is no model. Alibi gives it positions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from quire.api.batch import ForwardBatch
from quire.api.hf_config import require_int
from quire.api.protocols import AttentionParams, BuildContext
from quire.api.specs import WeightMap, WeightPart

ARCHITECTURE = "QuireToyForCausalLM"
VOCAB_SIZE = 61
MAX_LEN = 64
_HEADS, _HEAD_SIZE = 2, 8
_SIZE = _HEADS * _HEAD_SIZE


@dataclass(slots=True, frozen=True)
class ToyConfig:
    """Its shape."""

    vocab_size: int
    max_position_embeddings: int = MAX_LEN
    num_attention_heads: int = _HEADS

    @property
    def rope_switch_len(self) -> int | None:
        """None: there is no rotary embedding."""
        return None


class ToyLayer(nn.Module):
    """Attention, added to the stream."""

    def __init__(self, ctx: BuildContext) -> None:
        super().__init__()
        self.qkv = ctx.linear(_SIZE, {"q": _SIZE, "k": _SIZE, "v": _SIZE})
        params = AttentionParams(_HEADS, _HEADS, _HEAD_SIZE, _HEAD_SIZE**-0.5, alibi_slopes=(0.5, 0.1))
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
        self.embedding = ctx.embedding(config.vocab_size, _SIZE)
        self.layers = ctx.layers(1, lambda index: ToyLayer(ctx))
        self.lm_head = ctx.lm_head(_SIZE, config.vocab_size)

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
        return ToyConfig(require_int(hf_config, "vocab_size", minimum=1))

    @staticmethod
    def weight_map(config: ToyConfig) -> WeightMap:
        """See ModelFactory."""
        modules = {
            "embedding": (WeightPart("embedding"),),
            "layers.{i}.qkv": tuple(WeightPart(f"layers.{{i}}.{part}", part) for part in ("q", "k", "v")),
            "lm_head": (WeightPart("lm_head"),),
        }
        return WeightMap(modules, num_layers=1)


def write_toy_checkpoint(folder: Path, *, vocab_size: int = VOCAB_SIZE, seed: int = 0) -> Path:
    """Write config.json and random safetensors of a toy model; returns the folder."""
    from safetensors.torch import save_file

    random = torch.Generator().manual_seed(seed)
    shapes = {"embedding": (vocab_size, _SIZE), "lm_head": (vocab_size, _SIZE)}
    shapes |= {f"layers.0.{part}": (_SIZE, _SIZE) for part in ("q", "k", "v")}
    tensors = {f"{name}.weight": torch.randn(shape, generator=random) for name, shape in shapes.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"architectures": [ARCHITECTURE], "vocab_size": vocab_size, "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
