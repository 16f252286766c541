"""Writes int8 and int4 checkpoints in the formats of compressed-tensors, a few rows at a time."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from quire.api.errors import CapacityError, CheckpointError, ConfigError, QuantizationError
from quire.api.quantization import StoredTensor
from quire_quantization.quantize.files import copy_companions, write_json
from quire_quantization.quantize.rounding import pack_words, round_to_nearest, symmetric_scales
from quire_quantization.quantize.settings import PER_CHANNEL, QuantizeSettings
from quire_quantization.quantize.shard_file import ShardFile, stored_bytes
from quire_quantization.quantize.source import HEAD, INDEX_NAME, SourceModel, check_linears, refuse_experts

_PACK_BITS = 4
_FORMAT_VERSION = "0.19.0"
"""The version of compressed-tensors whose formats these are."""


@dataclass(slots=True, frozen=True)
class OutputTensor:
    """A tensor of the source and what becomes of it.

    Attributes:
        layout: the tensors of the result, by name.
        module: the linear that is quantized; None where the tensor is copied.
    """

    source: str
    layout: Mapping[str, StoredTensor]
    module: str | None

    @property
    def num_bytes(self) -> int:
        """Of the result."""
        return sum(stored_bytes(tensor) for tensor in self.layout.values())


@dataclass(slots=True, frozen=True)
class Plan:
    """What is to be written.

    Attributes:
        shards: file name to its tensors. ignored: linears that stay in 16 bits.
    """

    shards: Mapping[str, tuple[OutputTensor, ...]]
    ignored: tuple[str, ...]


def make_plan(source: SourceModel, settings: QuantizeSettings) -> Plan:
    """Decide what becomes of each tensor, and which file it goes to.

    Raises:
        QuantizationError: the model, or a weight of it, cannot be quantized so; it is named.
        ConfigError: a pattern of `ignore` is no regular expression, or matches nothing.
    """
    refuse_experts(source)
    if source.is_transposed:
        raise QuantizationError(
            f"{source.folder} stores its linears transposed (model_type {source.config['model_type']!r}), which "
            f"compressed-tensors does not describe: use --method gptq instead of {settings.method}"
        )
    ignored = _ignored(source, settings)
    chosen = [module for module in source.linears() if module not in ignored]
    check_linears(source, chosen, settings.group_size, 32 // _PACK_BITS if settings.bits == _PACK_BITS else 1)
    outputs = [_output(source, name, set(chosen), settings) for name in source.tensors]
    return Plan(_in_shards(outputs, settings.max_shard_bytes), ignored)


def check_space(plan: Plan, folder: Path) -> None:
    """Refuse to start what the disk cannot hold; CapacityError with both figures.

    Args:
        plan: what is to be written.
        folder: where to; finished files in it count as written.
    """
    missing = (entries for name, entries in plan.shards.items() if not (folder / name).is_file())
    needed = sum(entry.num_bytes for entries in missing for entry in entries)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CapacityError(
            f"{folder}: {needed / 1e9:.2f} GB are to be written and {free / 1e9:.2f} GB are free: make room, or "
            "give another --out"
        )


def write_compressed(source: SourceModel, plan: Plan, settings: QuantizeSettings, folder: Path) -> None:
    """Write the checkpoint; files that are there already are complete and stay.

    Raises:
        CapacityError: the disk is full. CheckpointError: a weight is not finite, or a file cannot be read.
    """
    total = sum(len(entries) for entries in plan.shards.values())
    with tqdm(total=total, desc=f"Quantizing ({settings.method})", unit="tensor", dynamic_ncols=True) as bar:
        for name, entries in plan.shards.items():
            if not (folder / name).is_file():
                layout = {key: tensor for entry in entries for key, tensor in entry.layout.items()}
                with ShardFile(folder / name, layout) as file:
                    for entry in entries:
                        _write(file, source, entry, settings)
                        bar.update()
            else:
                bar.update(len(entries))
    if len(plan.shards) > 1:
        _write_index(plan, folder)
    copy_companions(source, folder)
    write_json(folder / "config.json", {**source.config, "quantization_config": _config(settings, plan)})


def _ignored(source: SourceModel, settings: QuantizeSettings) -> tuple[str, ...]:
    linears = source.linears()
    is_tied = source.config.get("tie_word_embeddings") is True or HEAD not in linears
    if settings.quantize_head and is_tied:
        raise QuantizationError(
            "--quantize-head: the head is tied to the embedding, which stays in 16 bits; leave the flag out"
        )
    ignored = [] if settings.quantize_head else [HEAD]
    for pattern in settings.ignore:
        try:
            found = [module for module in linears if re.search(pattern, module)]
        except re.error as error:
            raise ConfigError(f"--ignore {pattern!r} is no regular expression: {error}") from None
        if not found:
            raise ConfigError(f"--ignore {pattern!r} matches none of the linears, e.g. {linears[0]}")
        ignored += found
    return tuple(dict.fromkeys(ignored))


def _output(source: SourceModel, name: str, chosen: set[str], settings: QuantizeSettings) -> OutputTensor:
    stored = source.tensors[name]
    module = name.removesuffix(".weight")
    if module not in chosen or module == name:
        return OutputTensor(name, {name: stored}, None)
    out_features, in_features = stored.shape
    groups = 1 if settings.group_size == PER_CHANNEL else in_features // settings.group_size
    layout = {f"{module}.weight_scale": StoredTensor((out_features, groups), stored.dtype)}
    if settings.bits == _PACK_BITS:
        words = in_features * _PACK_BITS // 32
        layout[f"{module}.weight_packed"] = StoredTensor((out_features, words), "I32")
        layout[f"{module}.weight_shape"] = StoredTensor((2,), "I64")
    else:
        layout[f"{module}.weight"] = StoredTensor(stored.shape, "I8")
    return OutputTensor(name, layout, module)


def _in_shards(outputs: list[OutputTensor], max_bytes: int) -> dict[str, tuple[OutputTensor, ...]]:
    shards: list[list[OutputTensor]] = [[]]
    size = 0
    for output in outputs:
        if shards[-1] and size + output.num_bytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(output)
        size += output.num_bytes
    if len(shards) == 1:
        return {"model.safetensors": tuple(shards[0])}
    count = len(shards)
    return {
        f"model-{number:05d}-of-{count:05d}.safetensors": tuple(entries)
        for number, entries in enumerate(shards, start=1)
    }


def _write(file: ShardFile, source: SourceModel, entry: OutputTensor, settings: QuantizeSettings) -> None:
    for first, rows in source.chunks(entry.source):
        if entry.module is None:
            file.write(entry.source, rows, first)
        else:
            _write_rows(file, entry.module, first, rows, settings)
    if f"{entry.module}.weight_shape" in entry.layout:
        shape = torch.tensor(source.tensors[entry.source].shape, dtype=torch.int64)
        file.write(f"{entry.module}.weight_shape", shape)


def _write_rows(file: ShardFile, module: str, first: int, rows: Tensor, settings: QuantizeSettings) -> None:
    length = rows.shape[1] if settings.group_size == PER_CHANNEL else settings.group_size
    scales = symmetric_scales(rows, settings.bits, length)
    if not bool(torch.isfinite(scales).all()):
        raise CheckpointError(f"{module}.weight holds values that are not finite: fetch or export it again")
    levels = round_to_nearest(rows, scales, settings.bits)
    file.write(f"{module}.weight_scale", scales, first)
    if settings.bits == _PACK_BITS:
        file.write(f"{module}.weight_packed", pack_words(levels, settings.bits), first)
    else:
        file.write(f"{module}.weight", levels, first)


def _write_index(plan: Plan, folder: Path) -> None:
    weight_map = {
        key: name for name, entries in plan.shards.items() for entry in entries for key in entry.layout
    }
    total = sum(entry.num_bytes for entries in plan.shards.values() for entry in entries)
    write_json(folder / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _config(settings: QuantizeSettings, plan: Plan) -> dict[str, object]:
    """The quantization_config, as compressed-tensors writes it."""
    is_packed = settings.bits == _PACK_BITS
    label = "pack-quantized" if is_packed else "int-quantized"
    has_groups = settings.group_size != PER_CHANNEL
    integers: dict[str, object] = {"num_bits": settings.bits, "type": "int", "symmetric": True}
    weights = integers | {
        "dynamic": False,
        "strategy": "group" if has_groups else "channel",
        "group_size": settings.group_size if has_groups else None,
    }
    activations = None if is_packed else integers | {"dynamic": True, "strategy": "token"}
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": activations,
        "output_activations": None,
        "format": label,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": label,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": list(plan.ignored),
        "kv_cache_scheme": None,
        "version": _FORMAT_VERSION,
    }
