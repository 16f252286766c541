"""What the checks of a quantization method share: packed weights, layers made of them, and what they stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from quire.api.batch import DTypeName
from quire.api.errors import QuireError
from quire.api.quantization import (
    QuantizationContext,
    QuantizationMethod,
    QuantizationRequest,
    StoredModule,
    StoredTensor,
)
from quire.api.specs import OpImplSpec, OpSpec, QuantizationSpec, WeightMap, WeightPart
from quire.execution.device import detect_device
from quire.loading.linear_assignment import LinearAssignment
from quire.loading.reader_checkpoint import ReaderCheckpoint
from quire.loading.weight_map import load_weights
from quire.nn.linear import Linear, LinearShape
from quire.nn.linear_method import WholeLinear
from quire.ops.table import OpTable
from quire.plugins import PluginHost, resolve_factory
from quire.testing.conformance import Conformance, ConformanceError, require
from quire.testing.served_model import ServedModel
from quire.testing.toy_model import ARCHITECTURE, VOCAB_SIZE, toy_tensors, write_toy_checkpoint

Config = Mapping[str, object] | None


@dataclass(frozen=True)
class PackedLinear:
    """A linear's weight as a checkpoint of the method stores it.

    Attributes:
        tensors: by suffix ("qweight"). weight: float64 [N, K], what they stand for.
    """

    tensors: Mapping[str, Tensor]
    weight: Tensor


class MemoryReader:
    """A CheckpointReader over tensors at hand."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def names(self) -> Sequence[str]:
        """See CheckpointReader."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """See CheckpointReader."""
        return tuple(self._tensors[name].shape)

    def read(self, name: str) -> Tensor:
        """See CheckpointReader."""
        return self._tensors[name].clone()

    def metadata(self) -> Mapping[str, str]:
        """See CheckpointReader."""
        return {}


class QuantizationBase(Conformance):
    """Base of the suite: what an author gives, and layers made of it."""

    spec: ClassVar[QuantizationSpec]
    configs: ClassVar[Mapping[str, Config]]
    ops: ClassVar[tuple[OpSpec | OpImplSpec, ...]] = ()
    options: ClassVar[object] = None
    dtypes: ClassVar[Sequence[DTypeName]] = ("float64", "float32", "bfloat16")
    tolerances: ClassVar[Mapping[str, float]] = {
        "float64": 1e-6,
        "float32": 1e-5,
        "float16": 5e-3,
        "bfloat16": 2e-2,
    }
    hidden_size: ClassVar[int] = 256
    optional_tensors: ClassVar[tuple[str, ...]] = ()

    def pack(self, weight: Tensor, config: Config) -> PackedLinear:
        """Quantize a weight [N, K], float32, as a checkpoint with this quantization_config holds it."""
        raise NotImplementedError("the suite needs `pack`: how the method's checkpoints store a weight")

    def multiply(self, x: Tensor, packed: PackedLinear, config: Config) -> Tensor:
        """The right product [T, N] of x [T, K], float64; override it where inputs are rounded too."""
        return x @ packed.weight.t()

    def host(self) -> PluginHost:
        """A host with core, the toy model and this method."""
        return self.shared("host", lambda: self.served().host())

    def served(self) -> ServedModel:
        """The toy model, with the method registered."""
        return ServedModel(
            ARCHITECTURE,
            "quire.testing.toy_model:ToyModel",
            ops=self.ops,
            quantizations=(self.with_options(),),
        )

    def with_options(self) -> QuantizationSpec:
        """The spec, its factory given the suite's options."""
        make, options = resolve_factory(self.spec.factory), self.options

        def factory(context: QuantizationContext) -> object:
            return cast("Callable[[QuantizationContext], object]", make)(replace(context, options=options))

        return replace(self.spec, factory=factory)

    def method(self, config: Config, dtype: DTypeName) -> QuantizationMethod:
        """The method for a config."""
        device = detect_device("cpu")
        host = self.host()
        registrations = [*host.ops.registrations(), *host.op_impls.registrations()]
        ops = OpTable(registrations, device, dtype, resolve_factory)
        context = QuantizationContext(QuantizationRequest(config, device, dtype), ops, self.options)
        made = cast("Callable[[QuantizationContext], object]", resolve_factory(self.spec.factory))(context)
        require(
            isinstance(made, QuantizationMethod),
            f"the factory gave {made!r}, which is no QuantizationMethod: it has no choose()",
        )
        return cast(QuantizationMethod, made)

    def packed(self, name: str, rows: int, columns: int, config: Config, seed: int = 0) -> PackedLinear:
        """A random weight, packed once for all checks."""
        random = torch.Generator().manual_seed(seed)
        weight = torch.randn(rows, columns, generator=random) * 0.1
        return self.shared(("packed", name, rows, columns, seed), lambda: self.pack(weight, config))

    def build(
        self,
        config: Config,
        dtype: DTypeName,
        modules: Mapping[str, Mapping[str, Tensor]],
        shape: tuple[int, Mapping[str, int]],
        *,
        whole: WholeLinear | None = None,
    ) -> Linear:
        """A loaded layer.

        Args:
            config: the quantization_config.
            dtype: of activations.
            modules: the checkpoint's tensors, by part and suffix.
            shape: inputs, and the parts' widths.
            whole: the layer of which this is a slice.
        """
        has_bias = any("bias" in tensors for tensors in modules.values())
        torch_dtype = getattr(torch, dtype)
        full = LinearShape(
            shape[0], tuple(shape[1].items()), has_bias, torch_dtype, torch.device("cpu"), whole
        )
        model = nn.Module()
        model.layer = Linear(full)
        parts = tuple(WeightPart(part, part) for part in shape[1])
        weight_map = WeightMap({"layer": parts}, num_layers=1)
        tensors = {f"{part}.{suffix}": tensor for part in modules for suffix, tensor in modules[part].items()}
        checkpoint = ReaderCheckpoint(Path("memory"), MemoryReader(tensors))
        with torch.inference_mode():
            LinearAssignment(self.method(config, dtype), checkpoint)(model, weight_map)
            load_weights(model, weight_map, checkpoint, progress=lambda done, total: None)
            model.layer.process_after_loading()
        return model.layer

    def load(
        self,
        config: Config,
        dtype: DTypeName,
        modules: Mapping[str, Mapping[str, Tensor]],
        shape: tuple[int, Mapping[str, int]],
        *,
        whole: WholeLinear | None = None,
    ) -> Linear:
        """The same for tensors that belong there: what loading refuses is a defect of the method."""
        try:
            return self.build(config, dtype, modules, shape, whole=whole)
        except QuireError as error:
            what = "a layer" if whole is None else "a slice of a layer"
            raise ConformanceError(f"{what} with tensors that belong to it does not load: {error}") from error

    def inputs(self, rows: int, columns: int, dtype: DTypeName, seed: int = 1) -> Tensor:
        """Random activations."""
        random = torch.Generator().manual_seed(seed)
        return torch.randn(rows, columns, generator=random, dtype=torch.float64).to(getattr(torch, dtype))

    def check_close(self, found: Tensor, expected: Tensor, dtype: DTypeName, what: str) -> None:
        """Compare by relative L2 error."""
        require(
            found.shape == expected.shape and found.dtype == getattr(torch, dtype),
            f"{what}: the product is {found.dtype} {tuple(found.shape)}, "
            f"expected {dtype} {tuple(expected.shape)}",
        )
        if expected.numel() == 0:
            return
        error = float((found.double() - expected).norm() / expected.norm())
        limit = self.tolerances[dtype]
        require(
            error <= limit,
            f"{what}: the product differs from that of the weights that the tensors stand for by a relative "
            f"{error:.2g}, more than {limit:.0e}",
        )

    def checkpoints(self, name: str, config: Config) -> tuple[Path, Path]:
        """Folders of a toy model: quantized, and with the weights that its tensors stand for."""
        return self.shared(("folders", name), lambda: self._write(name, config))

    def _write(self, name: str, config: Config) -> tuple[Path, Path]:
        root = Path(self.shared("root", TemporaryDirectory).name)
        plain = toy_tensors(hidden_size=self.hidden_size)
        quantized = {key: value for key, value in plain.items() if not self._is_quantized(key, value, config)}
        dequantized = {key: value.double() for key, value in quantized.items()}
        for key, value in plain.items():
            if key in quantized:
                continue
            packed = self.pack(value * 0.1, config)
            module = key.removesuffix(".weight")
            quantized |= {f"{module}.{suffix}": tensor for suffix, tensor in packed.tensors.items()}
            dequantized[key] = packed.weight.contiguous()
        size: dict[str, object] = {"hidden_size": self.hidden_size, "vocab_size": VOCAB_SIZE}
        label = {} if config is None else {"quantization_config": dict(config)}
        folders = (root / f"{name}-quantized", root / f"{name}-plain")
        stored = {key: value.contiguous() for key, value in quantized.items()}
        write_toy_checkpoint(folders[0], tensors=stored, config={**size, **label})
        write_toy_checkpoint(folders[1], tensors=dequantized, config=size)
        return folders

    def _is_quantized(self, key: str, tensor: Tensor, config: Config) -> bool:
        """Whether a tensor of the toy model is packed: layers, and on the fly the head, if the method takes it."""
        if key != "lm_head.weight" or config is not None:
            return key.startswith("layers.")
        stored = {"weight": StoredTensor(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))}
        head = StoredModule("lm_head", stored, tensor.shape[1], tensor.shape[0], is_head=True)
        return self.method(config, "float64").choose(head).method is not None
