"""Forward passes of one sequence without an engine: what tests compare a model's logits with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from quire.api.batch import DTypeName, ForwardBatch, KVCacheDTypeName
from quire.api.errors import PromptError
from quire.api.protocols import ModelFactory
from quire.api.quantization import QuantizationRequest
from quire.engine.quantization import choose_method
from quire.execution.device import detect_device
from quire.execution.model_builder import BuildSettings, BuiltModel, build_model
from quire.loading.checkpoint import open_checkpoint
from quire.loading.hf_config import architectures_of, read_hf_config
from quire.loading.linear_assignment import AssignedModule, LinearAssignment
from quire.loading.quantization_config import read_quantization_config
from quire.loading.weight_map import load_weights
from quire.ops.backend_choice import BackendRequest, choose_attention_backend
from quire.ops.table import OpTable
from quire.plugins import PluginHost, resolve_factory

_BLOCK_SIZE = 4


class SequenceForward:
    """A loaded model and one sequence, which grows from call to call over a paged KV cache.

    Weights, ops and attention go through the path of the engine. The sequence's blocks lie in the
    cache in reverse, so that a model that confuses positions and slots fails.

    Attributes:
        modules: how each module is kept, where a quantization method serves the checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        dtype: DTypeName = "float32",
        *,
        max_len: int = 256,
        device: str = "cpu",
        host: PluginHost | None = None,
        quantization: str | None = None,
        kv_cache_dtype: KVCacheDTypeName = "auto",
    ) -> None:
        """Build and load the model.

        Args:
            folder: a model folder.
            dtype: of weights and activations.
            max_len: longest sequence.
            device: as `quire.execution.device.detect_device` takes it.
            host: the plugins; by default the installed ones.
            quantization: as the setting of that name.
            kv_cache_dtype: likewise.
        """
        host = host or PluginHost.discover()
        hf_config = read_hf_config(folder)
        architecture = architectures_of(hf_config)[0]
        registration = host.models.registration(architecture)
        factory = cast(ModelFactory, resolve_factory(host.models.spec(architecture).factory, registration))
        info = detect_device(device)
        request = BackendRequest(info, dtype, kv_cache_dtype=kv_cache_dtype)
        self._backend = choose_attention_backend(
            host.attention_backends.registrations(), request, resolve_factory
        )
        op_registrations = [*host.ops.registrations(), *host.op_impls.registrations()]
        ops = OpTable(op_registrations, info, dtype, resolve_factory)
        settings = BuildSettings(
            dtype=dtype,
            device=info,
            ops=ops,
            attention_backend=self._backend,
            max_model_len=max_len,
            kv_cache_dtype=kv_cache_dtype,
        )
        checkpoint = open_checkpoint(folder)
        stored = QuantizationRequest(read_quantization_config(folder, hf_config), info, dtype)
        chosen = choose_method(quantization, host, stored, ops)
        self.modules: list[AssignedModule] = []
        if chosen is not None:
            assignment = LinearAssignment(chosen.method, checkpoint)
            self.modules = assignment.modules
            settings = replace(settings, assign_linears=assignment)
        load = partial(load_weights, checkpoint=checkpoint, progress=lambda done, total: None)
        self.built: BuiltModel = build_model(factory, factory.parse_config(hf_config), settings, load)
        num_blocks = -(-max_len // _BLOCK_SIZE)
        self.built.allocate_kv_caches(num_blocks, _BLOCK_SIZE)
        blocks = torch.arange(num_blocks - 1, -1, -1, dtype=torch.int32, device=self.built.device)
        self._table = blocks[None]
        self._max_len = max_len
        self._num_computed = 0

    def logits(self, token_ids: Sequence[int], prompt_len: int | None = None) -> Tensor:
        """Append tokens to the sequence and return the logits of each: [T, V].

        Args:
            token_ids: the next tokens.
            prompt_len: length of the whole prompt, where these tokens are a part of it; None when
                the tokens so far are the prompt, or it is complete.

        Raises:
            PromptError: no tokens, or more than `max_len` together.
        """
        end = self._num_computed + len(token_ids)
        if not token_ids or end > self._max_len:
            raise PromptError(
                f"a sequence of {end} tokens: at least 1 new token, at most {self._max_len} in all"
            )
        batch = self._batch(token_ids, prompt_len or (end if self._num_computed == 0 else 0))
        self._num_computed = end
        model = self.built.model
        with torch.inference_mode():
            batch.attention = self._backend.prepare(batch)
            x = model.embed(batch)
            for layer in model.layers:
                x = layer(x, batch)
            return model.logits(model.finish(x))

    def _batch(self, token_ids: Sequence[int], prompt_len: int) -> ForwardBatch:
        count, start = len(token_ids), self._num_computed
        device = self.built.device
        positions = torch.arange(start, start + count, device=device)
        blocks = self._table[0].to(torch.int64)[positions // _BLOCK_SIZE]
        used = -(-(start + count) // _BLOCK_SIZE)
        return ForwardBatch(
            token_ids=torch.tensor(token_ids, dtype=torch.int64, device=device),
            positions=positions,
            rope_lens=(positions + 1).clamp(min=prompt_len),
            query_start=torch.tensor([0, count], dtype=torch.int32, device=device),
            seq_lens=torch.tensor([start + count], dtype=torch.int32, device=device),
            slot_mapping=blocks * _BLOCK_SIZE + positions % _BLOCK_SIZE,
            block_tables=self._table[:, :used],
            logits_rows=torch.arange(count, device=device),
            query_lens=[count],
            context_lens=[start + count],
            num_decode_rows=int(count == 1),
            block_size=_BLOCK_SIZE,
        )


def full_logits(
    folder: Path,
    token_ids: Sequence[int],
    dtype: DTypeName = "float32",
    *,
    host: PluginHost | None = None,
    quantization: str | None = None,
) -> Tensor:
    """Logits [T, V] of a prompt in one pass, on the CPU; builds and loads the model anew."""
    model = SequenceForward(folder, dtype, max_len=len(token_ids), host=host, quantization=quantization)
    return model.logits(token_ids)
