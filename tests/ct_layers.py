"""Random layers as compressed-tensors stores them, packed with numpy, and products in float64 to compare with."""

from __future__ import annotations

from dataclasses import dataclass

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


def _int_layer(scheme: Scheme, rng: np.random.Generator) -> Layer:
    outputs, inputs, bits = scheme.outputs, scheme.inputs, scheme.bits
    groups = np.arange(inputs) // (scheme.group_size if scheme.strategy == "group" else inputs)
    count = groups[-1] + 1
    if scheme.actorder in ("group", "dynamic"):
        groups = groups[rng.permutation(inputs)]
    size = (1,) if scheme.strategy == "tensor" else (outputs, count)
    top, half = (1 << bits) - 1, 1 << (bits - 1)
    zeros = np.full(size, half) if scheme.symmetric else rng.integers(0, top + 1, size)
    integers = rng.integers(0, top + 1, (outputs, inputs))
    scales = torch.from_numpy(rng.uniform(0.01, 0.1, size)).to(scheme.scales_dtype)
    full = np.broadcast_to(zeros, (outputs, count))[:, groups]
    weight = torch.from_numpy((integers - full).astype(np.float64))
    weight *= scales.double().expand(outputs, count)[:, groups]
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
    if scheme.actorder in ("group", "dynamic"):
        tensors["weight_g_idx"] = torch.from_numpy(groups.astype(np.int32))
    return Layer(tensors, integers, weight)


def _float_layer(scheme: Scheme, rng: np.random.Generator) -> Layer:
    outputs, inputs = scheme.outputs, scheme.inputs
    weight = torch.from_numpy(rng.normal(0, 40, (outputs, inputs))).to(torch.float8_e4m3fn)
    rows, columns = {"tensor": (outputs, inputs), "channel": (1, inputs), "block": scheme.block}[
        scheme.strategy
    ]
    size = (-(-outputs // rows), -(-inputs // columns))
    scales = torch.from_numpy(rng.uniform(0.001, 0.01, size)).to(scheme.scales_dtype)
    spread = scales.double()[np.arange(outputs) // rows][:, np.arange(inputs) // columns]
    stored = scales.reshape(1) if scheme.strategy == "tensor" else scales
    tensors = {"weight": weight, "weight_scale": stored}
    return Layer(tensors, np.empty(0), weight.double() * spread)


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
