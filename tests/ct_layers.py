"""Random layers as compressed-tensors stores them, packed with numpy, and products in float64 to compare with."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gptq_layers import Layer

TOKEN = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
TENSOR = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "tensor", "dynamic": False}


def float_inputs(inputs: dict[str, object]) -> dict[str, object]:
    """The same scheme of inputs with 8-bit floats."""
    return inputs | {"type": "float"}


def pack_bits(values: np.ndarray, bits: int) -> Tensor:
    """int32 [R, ceil(n * bits / 32)] of integers [R, n]: each row a stream of bits, the lowest first."""
    stream = ((values[:, :, None] >> np.arange(bits)) & 1).reshape(len(values), -1)
    stream = np.pad(stream, ((0, 0), (0, -stream.shape[1] % 32))).astype(np.uint8)
    return torch.from_numpy(np.packbits(stream, axis=1, bitorder="little").view(np.int32).copy())


def unpack_bits(words: Tensor, bits: int, count: int) -> np.ndarray:
    """The inverse: integers [R, count]."""
    stream = np.unpackbits(words.contiguous().numpy().view(np.uint8), axis=1, bitorder="little")
    digits = stream[:, : count * bits].reshape(len(words), count, bits).astype(np.int64)
    return (digits << np.arange(bits)).sum(axis=2)


def pack_with_gaps(values: np.ndarray, bits: int) -> Tensor:
    """int32 [R, ceil(n / (32 // bits))] of integers [R, n]: 32 // bits in a word, the lowest bits first."""
    per_word = 32 // bits
    padded = np.pad(values, ((0, 0), (0, -values.shape[1] % per_word))).reshape(len(values), -1, per_word)
    words = (padded.astype(np.uint64) << (np.arange(per_word, dtype=np.uint64) * np.uint64(bits))).sum(axis=2)
    return torch.from_numpy(words.astype(np.uint32).view(np.int32).copy())


@dataclass(frozen=True)
class Scheme:
    """How a layer is quantized, in the words of the config."""

    bits: int = 4
    strategy: str = "group"
    symmetric: bool = True
    format: str = "pack-quantized"
    type: str = "int"
    group_size: int = 32
    block: tuple[int, int] = (64, 32)
    actorder: str | None = None
    inputs: int = 128
    outputs: int = 96
    input_activations: dict[str, object] | None = None
    scales_dtype: torch.dtype = torch.float16

    @property
    def has_order(self) -> bool:
        """Whether inputs are in groups in an order of their own."""
        return self.actorder in ("group", "dynamic")

    @property
    def weights(self) -> dict[str, object]:
        """The group's `weights`."""
        return {
            "num_bits": self.bits,
            "type": self.type,
            "symmetric": self.symmetric,
            "strategy": self.strategy,
            "group_size": self.group_size if self.strategy == "group" else None,
            "block_structure": list(self.block) if self.strategy == "block" else None,
            "actorder": self.actorder,
            "dynamic": False,
            "observer": "memoryless_minmax",
            "observer_kwargs": {},
        }

    def group(self, *targets: str) -> dict[str, object]:
        """One of config_groups."""
        return {
            "targets": list(targets or ("Linear",)),
            "weights": self.weights,
            "input_activations": self.input_activations,
            "output_activations": None,
            "format": self.format,
        }

    def config(self, **changes: object) -> dict[str, object]:
        """The quantization_config."""
        return {
            "quant_method": "compressed-tensors",
            "format": self.format,
            "config_groups": {"group_0": self.group()},
            "ignore": ["lm_head"],
            "kv_cache_scheme": None,
            "sparsity_config": {},
            "transform_config": {},
            "quantization_status": "compressed",
        } | changes


def make_ct_layer(scheme: Scheme, seed: int = 0) -> Layer:
    """A random layer."""
    rng = np.random.default_rng(seed)
    made = _float_layer(scheme, rng) if scheme.type == "float" else _int_layer(scheme, rng)
    if scheme.input_activations is not None and not scheme.input_activations["dynamic"]:
        made.tensors["input_scale"] = torch.tensor([rng.uniform(0.01, 0.04)], dtype=scheme.scales_dtype)
    return made


def round_weight(scheme: Scheme, weight: Tensor, seed: int = 0) -> Layer:
    """A weight [N, K], rounded to the nearest; `seed` is of the order of inputs with act-order."""
    sized = replace(scheme, outputs=weight.shape[0], inputs=weight.shape[1])
    exact = weight.double().numpy()
    return (
        _round_to_floats(sized, exact) if scheme.type == "float" else _round_to_integers(sized, exact, seed)
    )


def _round_to_floats(scheme: Scheme, exact: np.ndarray) -> Layer:
    rows, columns = _block(scheme)
    padded = np.pad(np.abs(exact), ((0, -scheme.outputs % rows), (0, -scheme.inputs % columns)))
    largest = padded.reshape(padded.shape[0] // rows, rows, -1, columns).max(axis=(1, 3))
    scales = torch.from_numpy(largest / 448).to(scheme.scales_dtype)
    quotients = torch.from_numpy(exact) / _spread(scheme, scales)
    return _pack_floats(scheme, quotients.clamp(-448, 448).to(torch.float8_e4m3fn), scales)


def _round_to_integers(scheme: Scheme, exact: np.ndarray, seed: int) -> Layer:
    groups, top, half = (
        _groups(scheme, np.random.default_rng(seed)),
        (1 << scheme.bits) - 1,
        1 << (scheme.bits - 1),
    )
    members = [exact[:, groups == group] for group in range(groups.max() + 1)]
    low, high = (np.stack([f(m) for m in members], 1) for f in (lambda m: m.min(1), lambda m: m.max(1)))
    if scheme.symmetric:
        high = np.maximum(high, -low)
        low = -high
    scales = torch.from_numpy((high - low) / top).to(scheme.scales_dtype)
    steps = scales.double().numpy()
    zeros = np.full(low.shape, half) if scheme.symmetric else np.rint(-low / steps).astype(np.int64)
    integers = np.rint(exact / steps[:, groups]).astype(np.int64) + zeros[:, groups]
    return _pack_integers(scheme, groups, np.clip(integers, 0, top), zeros, scales)


def _groups(scheme: Scheme, rng: np.random.Generator) -> np.ndarray:
    groups = np.arange(scheme.inputs) // (scheme.group_size if scheme.strategy == "group" else scheme.inputs)
    return groups[rng.permutation(scheme.inputs)] if scheme.has_order else groups


def _int_layer(scheme: Scheme, rng: np.random.Generator) -> Layer:
    groups = _groups(scheme, rng)
    size = (1,) if scheme.strategy == "tensor" else (scheme.outputs, int(groups.max()) + 1)
    top, half = (1 << scheme.bits) - 1, 1 << (scheme.bits - 1)
    zeros = np.full(size, half) if scheme.symmetric else rng.integers(0, top + 1, size)
    integers = rng.integers(0, top + 1, (scheme.outputs, scheme.inputs))
    scales = torch.from_numpy(rng.uniform(0.01, 0.1, size)).to(scheme.scales_dtype)
    return _pack_integers(scheme, groups, integers, zeros, scales)


def _pack_integers(
    scheme: Scheme, groups: np.ndarray, integers: np.ndarray, zeros: np.ndarray, scales: Tensor
) -> Layer:
    outputs, inputs, bits = scheme.outputs, scheme.inputs, scheme.bits
    size, half = (outputs, int(groups.max()) + 1), 1 << (bits - 1)
    full = np.broadcast_to(zeros, size)[:, groups]
    weight = torch.from_numpy((integers - full).astype(np.float64))
    weight *= scales.double().expand(*size)[:, groups]
    tensors = {"weight_scale": scales}
    if scheme.format == "pack-quantized":
        tensors["weight_packed"] = pack_bits(integers, bits)
        tensors["weight_shape"] = torch.tensor([outputs, inputs])
    else:
        tensors["weight"] = torch.from_numpy((integers - half).astype(np.int8))
    if not scheme.symmetric:
        is_packed = scheme.format == "pack-quantized" and scheme.strategy != "tensor"
        stored = (
            pack_bits(zeros.T, bits).t() if is_packed else torch.from_numpy((zeros - half).astype(np.int8))
        )
        tensors["weight_zero_point"] = stored.contiguous()
    if scheme.has_order:
        tensors["weight_g_idx"] = torch.from_numpy(groups.astype(np.int32))
    return Layer(tensors, integers, weight)


def _block(scheme: Scheme) -> tuple[int, int]:
    """The outputs and inputs that share a scale."""
    whole = {"tensor": (scheme.outputs, scheme.inputs), "channel": (1, scheme.inputs)}
    return whole.get(scheme.strategy, scheme.block)


def _spread(scheme: Scheme, scales: Tensor) -> Tensor:
    """The scale of each weight, float64 [N, K]."""
    rows, columns = _block(scheme)
    return scales.double()[np.arange(scheme.outputs) // rows][:, np.arange(scheme.inputs) // columns]


def _float_layer(scheme: Scheme, rng: np.random.Generator) -> Layer:
    outputs, inputs = scheme.outputs, scheme.inputs
    weight = torch.from_numpy(rng.normal(0, 40, (outputs, inputs))).to(torch.float8_e4m3fn)
    rows, columns = _block(scheme)
    size = (-(-outputs // rows), -(-inputs // columns))
    scales = torch.from_numpy(rng.uniform(0.001, 0.01, size)).to(scheme.scales_dtype)
    return _pack_floats(scheme, weight, scales)


def _pack_floats(scheme: Scheme, weight: Tensor, scales: Tensor) -> Layer:
    stored = scales.reshape(1) if scheme.strategy == "tensor" else scales
    tensors = {"weight": weight, "weight_scale": stored}
    return Layer(tensors, np.empty(0), weight.double() * _spread(scheme, scales))


def round_inputs(x: Tensor, scheme: Scheme, input_scale: Tensor | None = None) -> Tensor:
    """What a product sees of inputs [T, K], float64: rounded to 8 bits by row, by group, or by `input_scale`."""
    how = scheme.input_activations
    if how is None:
        return x
    limit = 448.0 if how["type"] == "float" else 127.5
    width = int(str(how.get("group_size") or x.shape[1]))
    parts = []
    for part in x.split(width, dim=1):
        scale = part.abs().amax(1, keepdim=True) / limit if input_scale is None else input_scale.double()
        divided = part / scale
        if how["type"] == "float":
            rounded = divided.clamp(-448, 448).to(torch.float8_e4m3fn).double()
        else:
            rounded = torch.from_numpy(np.clip(np.rint(divided.numpy()), -128, 127))
        parts.append(rounded * scale)
    return torch.cat(parts, dim=1)
