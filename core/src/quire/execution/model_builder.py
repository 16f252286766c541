"""Builds a model on a device and fills it from a checkpoint: the BuildContext of core."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import nn

from quire.api.batch import DeviceInfo, DTypeName, KVCacheDTypeName
from quire.api.errors import UnsupportedModelError
from quire.api.protocols import AttentionBackend, AttentionParams, Model, ModelConfig, ModelFactory, Ops
from quire.api.specs import WeightMap
from quire.execution.host_memory import lazy_zeros
from quire.execution.opaque import OpaqueCalls
from quire.loading.linear_assignment import AssignLinears, assign_unquantized
from quire.loading.weight_map import naming_module
from quire.nn.attention import Attention
from quire.nn.dtypes import torch_device, torch_dtype
from quire.nn.embedding import TokenEmbedding
from quire.nn.linear import Linear, LinearShape, LMHead
from quire.ops.paged_attention import TorchPagedAttention
from quire.ops.table import OpTable

LoadWeights = Callable[[nn.Module, WeightMap], None]
"""Fills the parameters of a built model, e.g. `quire.loading.weight_map.load_weights` with a checkpoint."""


@dataclass(slots=True, frozen=True)
class BuildSettings:
    """What a model is built with.

    Attributes:
        dtype: of weights and activations. ops: bound for `device` and `dtype`.
        kv_cache_dtype: which the attention backend serves.
        assign_linears: gives linear layers the methods that keep their weights.
        opaque: of `ops` and `attention_backend`, for a model that is to be compiled; None: it is not.
    """

    dtype: DTypeName
    device: DeviceInfo
    ops: Ops
    attention_backend: AttentionBackend
    max_model_len: int
    assign_linears: AssignLinears = assign_unquantized
    kv_cache_dtype: KVCacheDTypeName = "auto"
    opaque: OpaqueCalls | None = None


@dataclass(slots=True, frozen=True)
class BuiltModel:
    """A loaded model, ready for its KV cache.

    Attributes:
        model: the module, without gradients.
        attention_layers: in the order of construction, which is the order of the KV caches.
        vocab_size: the logits' width.
        dtype, device: of its weights and activations.
        kv_cache_dtype: of its KV caches.
    """

    model: Model
    attention_layers: tuple[Attention, ...]
    vocab_size: int
    dtype: torch.dtype
    device: torch.device
    kv_cache_dtype: KVCacheDTypeName = "auto"

    @property
    def kv_tensor_dtype(self) -> torch.dtype:
        """Of the KV caches' tensors: bytes where they are quantized."""
        return self.dtype if self.kv_cache_dtype == "auto" else torch.uint8

    def kv_bytes_per_block(self, block_size: int) -> int:
        """Bytes that one block takes over all layers."""
        shapes = [layer.kv_cache_shape(1, block_size) for layer in self.attention_layers]
        return sum(torch.Size(shape).numel() for shape in shapes) * self.kv_tensor_dtype.itemsize

    def allocate_kv_caches(self, num_blocks: int, block_size: int) -> list[torch.Tensor]:
        """Allocate one zeroed cache per attention layer, in their order, and bind them."""
        caches, dtype = [], self.kv_tensor_dtype
        for layer in self.attention_layers:
            shape = layer.kv_cache_shape(num_blocks, block_size)
            is_host = self.device.type == "cpu"
            cache = (
                lazy_zeros(shape, dtype) if is_host else torch.zeros(shape, dtype=dtype, device=self.device)
            )
            caches.append(cache)
            layer.bind_kv_cache(cache)
        return caches


class TorchBuildContext:
    """The BuildContext of one process that runs all layers; see `quire.api.protocols.BuildContext`."""

    def __init__(self, settings: BuildSettings) -> None:
        self.dtype = settings.dtype
        self.device = settings.device
        self.ops: Ops = settings.ops if settings.opaque is None else settings.opaque.ops
        self.max_model_len = settings.max_model_len
        self.attention_layers: list[Attention] = []
        self._settings = settings
        self._torch_dtype = torch_dtype(settings.dtype)
        self._torch_device = torch_device(settings.device)
        if isinstance(settings.attention_backend, TorchPagedAttention):
            settings.attention_backend.copy_op = settings.ops.copy_blocks
        self._multiply = settings.ops.fast("linear") if isinstance(settings.ops, OpTable) else None

    def linear(self, in_features: int, parts: Mapping[str, int], *, bias: bool = False) -> nn.Module:
        """See BuildContext."""
        shape, opaque = self._shape(in_features, parts, bias), self._settings.opaque
        return Linear(shape) if opaque is None else opaque.linear(shape)

    def embedding(self, num_embeddings: int, embedding_dim: int) -> nn.Module:
        """See BuildContext."""
        look_up = self.ops.embedding
        return TokenEmbedding(num_embeddings, embedding_dim, self._torch_dtype, self._torch_device, look_up)

    def lm_head(
        self, in_features: int, vocab_size: int, *, bias: bool = False, tied_to: nn.Module | None = None
    ) -> nn.Module:
        """See BuildContext."""
        return LMHead(self._shape(in_features, {"lm_head": vocab_size}, bias), tied_to)

    def attention(self, params: AttentionParams) -> nn.Module:
        """See BuildContext."""
        params = replace(params, kv_cache_dtype=self._settings.kv_cache_dtype)
        backend, opaque = self._settings.attention_backend, self._settings.opaque
        layer = Attention(params, backend) if opaque is None else opaque.attention(params, backend)
        self.attention_layers.append(layer)
        return layer

    def layers(self, num_layers: int, build: Callable[[int], nn.Module]) -> nn.ModuleList:
        """See BuildContext."""
        return nn.ModuleList(build(index) for index in range(num_layers))

    def _shape(self, in_features: int, parts: Mapping[str, int], has_bias: bool) -> LinearShape:
        return LinearShape(
            in_features,
            tuple(parts.items()),
            has_bias,
            self._torch_dtype,
            self._torch_device,
            multiply=self._multiply,
        )


def build_model(
    factory: ModelFactory, config: ModelConfig, settings: BuildSettings, load: LoadWeights
) -> BuiltModel:
    """Build a model, load it, and bring its weights into the form that they are multiplied in.

    Parameters are created uninitialized on the device; each linear's plain weight is freed as soon
    as its packed form exists, so that the peak is the model and one layer more.

    Args:
        factory: the model's class, as `ModelSpec.factory` names it.
        config: what its `parse_config` gave.
        settings: dtype, device, ops, attention backend and the linears' methods.
        load: fills the parameters in place.

    Raises:
        UnsupportedModelError: the factory made something that is not a model.
        CheckpointError: the checkpoint does not fit (raised by `load`).
    """
    context = TorchBuildContext(settings)
    with torch.inference_mode():
        model = factory(config, context)
        if not isinstance(model, nn.Module) or not isinstance(getattr(model, "layers", None), nn.ModuleList):
            found = type(model).__name__
            raise UnsupportedModelError(f"{factory!r} made a {found}, not an nn.Module with layers")
        model.requires_grad_(False).eval()
        weight_map = factory.weight_map(config)
        settings.assign_linears(model, weight_map)
        load(model, weight_map)
        process_after_loading(model)
    return BuiltModel(
        model=cast(Model, model),
        attention_layers=tuple(context.attention_layers),
        vocab_size=config.vocab_size,
        dtype=torch_dtype(settings.dtype),
        device=torch_device(settings.device),
        kv_cache_dtype=settings.kv_cache_dtype,
    )


def process_after_loading(model: nn.Module) -> None:
    """Make every linear callable that the loader did not: LM heads that are tied to an embedding."""
    for path, module in list(model.named_modules()):
        if isinstance(module, Linear):
            with naming_module(path):
                module.process_after_loading()
