"""Models, each with one defect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from quire.api.batch import ForwardBatch
from quire.api.protocols import BuildContext
from quire.api.specs import WeightMap
from quire_models.gpt2.model import GPT2Model
from quire_models.llama.model import LlamaConfig, LlamaModel
from quire_models.mpt.model import MptConfig, MptModel


class WrongRopePairs(LlamaModel):
    def __init__(self, config: LlamaConfig, ctx: BuildContext) -> None:
        super().__init__(config, ctx)
        self.layers[0].attention.rotary.interleaved = True


class IgnoresTheta(LlamaModel):
    @staticmethod
    def parse_config(hf_config: Mapping[str, object]) -> LlamaConfig:
        ropes = {**hf_config["rope_parameters"], "rope_theta": 10000.0}  # type: ignore[dict-item]  # a dict of JSON
        return LlamaModel.parse_config({**hf_config, "rope_parameters": ropes})


class IgnoresBias(LlamaModel):
    @staticmethod
    def parse_config(hf_config: Mapping[str, object]) -> LlamaConfig:
        return replace(LlamaModel.parse_config(hf_config), has_attention_bias=False)

    @staticmethod
    def weight_map(config: LlamaConfig) -> WeightMap:
        right = LlamaModel.weight_map(config)
        return replace(right, ignored=(*right.ignored, r".*self_attn\..*\.bias"))


class SwapsGateAndUp(LlamaModel):
    @staticmethod
    def weight_map(config: LlamaConfig) -> WeightMap:
        right = LlamaModel.weight_map(config)
        path = "layers.{i}.mlp.gate_up"
        gate, up = right.modules[path]
        swapped = (replace(gate, part="up"), replace(up, part="gate"))
        return replace(right, modules={**right.modules, path: swapped})


class SwapsKeyAndValue(LlamaModel):
    @staticmethod
    def weight_map(config: LlamaConfig) -> WeightMap:
        right = LlamaModel.weight_map(config)
        path = "layers.{i}.attention.qkv"
        query, key, value = right.modules[path]
        swapped = (query, replace(key, part="v"), replace(value, part="k"))
        return replace(right, modules={**right.modules, path: swapped})


class IgnoresEps(LlamaModel):
    @staticmethod
    def parse_config(hf_config: Mapping[str, object]) -> LlamaConfig:
        return replace(LlamaModel.parse_config(hf_config), norm_eps=1e-6)


class TiesTheHead(LlamaModel):
    @staticmethod
    def parse_config(hf_config: Mapping[str, object]) -> LlamaConfig:
        return replace(LlamaModel.parse_config(hf_config), is_tied=True)


class NoFinalNorm(LlamaModel):
    def finish(self, hidden: Tensor) -> Tensor:
        return hidden


class ForgetsATensor(LlamaModel):
    @staticmethod
    def weight_map(config: LlamaConfig) -> WeightMap:
        right = LlamaModel.weight_map(config)
        return replace(
            right, modules={name: parts for name, parts in right.modules.items() if name != "norm"}
        )


class PositionsFromTwo(GPT2Model):
    def embed(self, batch: ForwardBatch) -> Tensor:
        batch.positions = (batch.positions + 1).clamp(max=63)
        return super().embed(batch)


class AlibiBackwards(MptModel):
    @staticmethod
    def parse_config(hf_config: Mapping[str, object]) -> MptConfig:
        right = MptModel.parse_config(hf_config)
        return replace(right, alibi_slopes=tuple(reversed(right.alibi_slopes or ())))


class PositionsFromTheChunk(LlamaModel):
    def embed(self, batch: ForwardBatch) -> Tensor:
        batch.positions = torch.cat([torch.arange(length) for length in batch.query_lens])
        return super().embed(batch)


class PositionsOffAfterAHit(LlamaModel):
    """What begins behind whole blocks, with more than one token to compute, stands one position too early."""

    def embed(self, batch: ForwardBatch) -> Tensor:
        positions = batch.positions.clone()
        starts = batch.query_start.tolist()
        for row, (count, context) in enumerate(zip(batch.query_lens, batch.context_lens, strict=True)):
            start = context - count
            if start and start % batch.block_size == 0 and count > 1:
                positions[starts[row] : starts[row + 1]] -= 1
        batch.positions = positions
        return super().embed(batch)


class CountsPositionsItself(LlamaModel):
    """Goes on from the last position that it saw where a single token comes: right for one request."""

    def __init__(self, config: LlamaConfig, ctx: BuildContext) -> None:
        super().__init__(config, ctx)
        self.last = -1

    def embed(self, batch: ForwardBatch) -> Tensor:
        if batch.num_tokens == 1:
            batch.positions = torch.tensor([min(self.last + 1, 63)])
        self.last = int(batch.positions[-1])
        return super().embed(batch)


class KeepsRopeRows(LlamaModel):
    """Keeps the rotary rows of the first step of so many tokens."""

    def __init__(self, config: LlamaConfig, ctx: BuildContext) -> None:
        super().__init__(config, ctx)
        self.kept: dict[int, Tensor] = {}

    def embed(self, batch: ForwardBatch) -> Tensor:
        batch.positions = self.kept.setdefault(batch.num_tokens, batch.positions.clone())
        return super().embed(batch)


class MixesRows(LlamaModel):
    """The embedding is shifted by the batch's mean, a little, where there are several requests."""

    def embed(self, batch: ForwardBatch) -> Tensor:
        x = super().embed(batch)
        return x + 1e-4 * x.mean(0) if batch.num_requests > 1 else x


class RotaryTableTooShort(LlamaModel):
    def embed(self, batch: ForwardBatch) -> Tensor:
        batch.positions = batch.positions % 40
        return super().embed(batch)


class RopeLensOfTheChunk(LlamaModel):
    """The length that dynamic scalings see is the context of now, not the prompt's."""

    def embed(self, batch: ForwardBatch) -> Tensor:
        counts = torch.tensor(batch.query_lens)
        batch.rope_lens = batch.seq_lens.long().repeat_interleave(counts)
        return super().embed(batch)


class LastRequestsLogits(LlamaModel):
    """The logits of a step with several samples are those of its last row but one for the last one."""

    def logits(self, hidden: Tensor) -> Tensor:
        result = super().logits(hidden)
        if 2 < result.shape[0] < 7:
            result = result.roll(1, 0)
        return result
