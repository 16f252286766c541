"""Random GPTQ layers packed bit by bit with numpy, and linears loaded from them: nothing of the code under test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from quire.api.plugin_settings import PluginSettings
from quire.api.quantization import QuantizationMethod, QuantizationRequest
from quire.api.specs import WeightMap, WeightPart
from quire.engine.quantization import choose_method
from quire.execution.device import detect_device
from quire.loading.checkpoint import open_checkpoint
from quire.loading.linear_assignment import AssignedModule, LinearAssignment
from quire.loading.weight_map import load_weights
from quire.nn.linear import Linear
from quire.nn.linear_method import LinearShape, WholeLinear
from quire.ops.table import OpTable
from quire.plugins import PluginHost, resolve_factory

BOTH = ("gptq", "gptq-marlin")
CPU = torch.device("cpu")


def pack_stream(values: np.ndarray, bits: int) -> Tensor:
    """int32 [n * bits / 32, m] of integers [n, m]: a stream of bits down each column, the lowest first."""
    stream = (values[:, None, :] >> np.arange(bits)[None, :, None]) & 1
    words = stream.reshape(-1, 32, values.shape[1]).astype(np.uint64)
    packed = (words << np.arange(32, dtype=np.uint64)[None, :, None]).sum(axis=1)
    return torch.from_numpy(packed.astype(np.uint32).view(np.int32).copy())


def unpack_stream(words: Tensor, bits: int) -> np.ndarray:
    """The inverse: integers [n, m] of int32 [n * bits / 32, m]."""
    unsigned = words.numpy().view(np.uint32)
    stream = (unsigned[:, None, :] >> np.arange(32, dtype=np.uint32)[None, :, None]) & 1
    digits = stream.reshape(-1, bits, words.shape[1]).astype(np.int64)
    return (digits << np.arange(bits)[None, :, None]).sum(axis=1)


@dataclass(frozen=True)
class Layout:
    """How a layer is quantized; group_size -1 and zero_offset 1 (v1) or 0 (v2) as in checkpoints.

    With by_word the offset was subtracted from whole words, as by GPTQModel.
    """

    bits: int = 4
    group_size: int = 32
    sym: bool = True
    desc_act: bool = False
    zero_offset: int = 1
    inputs: int = 128
    outputs: int = 96
    scales_dtype: torch.dtype = torch.float16
    by_word: bool = False

    def config(self, **changes: object) -> dict[str, object]:
        """The quantization_config; it does not say which tool it is of."""
        label = "gptq" if self.zero_offset else "gptq_v2"
        return {
            "quant_method": "gptq",
            "bits": self.bits,
            "group_size": self.group_size,
            "sym": self.sym,
            "desc_act": self.desc_act,
            "checkpoint_format": label,
        } | changes


@dataclass(frozen=True)
class Layer:
    """A layer's tensors by suffix, its integers [K, N], and its weights [N, K] in float64."""

    tensors: dict[str, Tensor]
    integers: np.ndarray
    weight: Tensor = field(repr=False)


def make_layer(layout: Layout, seed: int = 0) -> Layer:
    """A layer of random integers; zero points of all values, the extremes among them, unless symmetric."""
    rng = np.random.default_rng(seed)
    groups, half, top = _groups(layout, rng), 1 << (layout.bits - 1), (1 << layout.bits) - 1
    shape = (int(groups.max()) + 1, layout.outputs)
    zeros = np.full(shape, half) if layout.sym else rng.integers(0, top + 1, shape)
    if not layout.sym:
        zeros[0, :2] = (0, top)
    integers = rng.integers(0, top + 1, (layout.inputs, layout.outputs))
    return _pack(layout, groups, integers, zeros, rng.uniform(0.01, 0.1, shape))


def round_to_nearest(layout: Layout, seed: int = 0) -> Layer:
    """Normally distributed weights, rounded group by group between the least, the largest and 0."""
    rng = np.random.default_rng(seed)
    groups = _groups(layout, rng)
    return _round(layout, rng.normal(0, 0.05, (layout.inputs, layout.outputs)), groups)


def round_weight(layout: Layout, weight: Tensor, seed: int = 0) -> Layer:
    """The same of a weight [N, K]; `seed` is of the order of inputs with act-order."""
    sized = replace(layout, inputs=weight.shape[1], outputs=weight.shape[0])
    return _round(sized, weight.double().numpy().T, _groups(sized, np.random.default_rng(seed)))


def _round(layout: Layout, weights: np.ndarray, groups: np.ndarray) -> Layer:
    half, top = 1 << (layout.bits - 1), (1 << layout.bits) - 1
    members = [weights[groups == group] for group in range(int(groups.max()) + 1)]
    low, high = (np.stack([f(m) for m in members]) for f in (lambda m: m.min(0), lambda m: m.max(0)))
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    if layout.sym:
        high = np.maximum(high, -low)
        low = -high
    scales = (high - low) / top
    zeros = np.full(low.shape, half) if layout.sym else np.round(-low / scales).astype(np.int64)
    integers = np.clip(np.round(weights / scales[groups]).astype(np.int64) + zeros[groups], 0, top)
    return _pack(layout, groups, integers, zeros, scales)


def _groups(layout: Layout, rng: np.random.Generator) -> np.ndarray:
    groups = np.arange(layout.inputs) // (layout.inputs if layout.group_size == -1 else layout.group_size)
    return groups[rng.permutation(layout.inputs)] if layout.desc_act else groups


def _pack(
    layout: Layout, groups: np.ndarray, integers: np.ndarray, zeros: np.ndarray, scales: np.ndarray
) -> Layer:
    stored_scales = torch.from_numpy(scales).to(layout.scales_dtype)
    tensors = {
        "qweight": pack_stream(integers, layout.bits),
        "qzeros": _pack_zeros(layout, zeros),
        "scales": stored_scales,
        "g_idx": torch.from_numpy(groups.astype(np.int32)),
    }
    differences = torch.from_numpy((integers - zeros[groups]).astype(np.float64))
    return Layer(tensors, integers, (differences * stored_scales.double()[groups]).t())


def _pack_zeros(layout: Layout, zeros: np.ndarray) -> Tensor:
    """int32 [G, N * bits / 32]."""
    if not layout.by_word:
        fields = (zeros - layout.zero_offset) & ((1 << layout.bits) - 1)
        return pack_stream(fields.T, layout.bits).t().contiguous()
    ones = sum(layout.zero_offset << shift for shift in range(0, 32, layout.bits))
    words = pack_stream(zeros.T, layout.bits).t().contiguous().numpy().view(np.uint32)
    return torch.from_numpy((words - np.uint32(ones)).view(np.int32))


@cache
def host_of(names: tuple[str, ...]) -> PluginHost:
    """The plugins named, and core's own."""
    return PluginHost.discover(PluginSettings(autoload=False, allow=names))


def method_of(
    config: Mapping[str, object], *, plugins: tuple[str, ...] = BOTH, setting: str | None = None
) -> QuantizationMethod:
    """The method that serves a config among some plugins."""
    host, device = host_of(plugins), detect_device("cpu")
    registrations = [*host.ops.registrations(), *host.op_impls.registrations()]
    ops = OpTable(registrations, device, "float32", resolve_factory)
    chosen = choose_method(setting, host, QuantizationRequest(config, device, "float32"), ops)
    assert chosen is not None
    return chosen.method


@dataclass(frozen=True)
class Slice:
    """What a rank holds of each part: some outputs, some inputs."""

    outputs: slice
    inputs: slice


class Net(nn.Module):
    """One linear."""

    def __init__(self, shape: LinearShape) -> None:
        super().__init__()
        self.linear = Linear(shape)


@dataclass(frozen=True)
class Loaded:
    """A linear that was loaded, and how its modules are kept."""

    linear: Linear
    modules: list[AssignedModule]

    @property
    def resident_bytes(self) -> int:
        """Of what it keeps."""
        return sum(tensor.nbytes for tensor in [*self.linear.parameters(), *self.linear.buffers()])


def load_linear(
    folder: Path,
    method: QuantizationMethod,
    parts: Mapping[str, Layer | dict[str, Tensor]],
    *,
    dtype: torch.dtype = torch.float64,
    has_bias: bool = False,
    part_of: Slice | None = None,
    size: tuple[int, int] | None = None,
    rows: Mapping[str, tuple[int, ...]] | None = None,
) -> Loaded:
    """A linear with one part per layer, loaded by core from a checkpoint in `folder`.

    `size` gives inputs and outputs where the tensors do not; `rows` takes the parts from one layer.
    """
    stored = {name: part.tensors if isinstance(part, Layer) else part for name, part in parts.items()}
    tensors = {f"model.{name}.{key}": t for name, part in stored.items() for key, t in part.items()}
    save_file(tensors, folder / "model.safetensors")
    widths, inputs = {}, 0
    for name, part in parts.items():
        outputs, inputs = part.weight.shape if isinstance(part, Layer) else (size or (0, 0))[::-1]
        widths[name] = outputs
    sources = tuple(WeightPart(f"model.{name}", name) for name in parts)
    if rows is not None:
        source = sources[0].source
        sources = tuple(WeightPart(source, name, row_permutation=taken) for name, taken in rows.items())
        widths = {name: len(taken) for name, taken in rows.items()}
    shape = LinearShape(inputs, tuple(widths.items()), has_bias, dtype, CPU)
    if part_of is not None:
        start, stop = part_of.outputs.start, part_of.outputs.stop
        whole = WholeLinear(
            inputs, part_of.inputs.start, tuple(widths.values()), tuple(start for _ in widths)
        )
        held = tuple((name, stop - start) for name in widths)
        shape = LinearShape(part_of.inputs.stop - part_of.inputs.start, held, has_bias, dtype, CPU, whole)
    net = Net(shape)
    weight_map = WeightMap({"linear": sources}, 1)
    checkpoint = open_checkpoint(folder)
    assignment = LinearAssignment(method, checkpoint)
    assignment(net, weight_map)
    load_weights(net, weight_map, checkpoint, lambda done, total: None)
    return Loaded(net.linear, assignment.modules)
