"""A 16-bit checkpoint that is to be quantized: its tensors, unread, and which of them are linears."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from quire.api.errors import CheckpointError, QuantizationError
from quire.api.quantization import StoredTensor

if TYPE_CHECKING:
    from torch import Tensor

INDEX_NAME = "model.safetensors.index.json"
HEAD = "lm_head"

_CHUNK_ELEMENTS = 1 << 22
"""How many elements are read at a time: 8 MB of 16-bit ones."""

_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
_QUANTIZED_FILES = ("quantize_config.json", "quant_config.json")
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len")
_EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts")
_TRANSPOSED_TYPES = ("gpt2", "openai-gpt")
_IN_A_LAYER = re.compile(r"\.\d+\.")


@dataclass(slots=True, frozen=True)
class SourceModel:
    """A model folder.

    Attributes:
        config: its config.json.
        tensors: by name, in the order of the files; dtypes are the format's ("BF16").
        files: by tensor.
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    files: Mapping[str, Path]

    @property
    def vocab_size(self) -> int | None:
        """V; None where config.json does not say."""
        value = self.config.get("vocab_size")
        return value if isinstance(value, int) else None

    @property
    def context_length(self) -> int | None:
        """Longest context; None where config.json does not say."""
        values = (self.config.get(key) for key in _CONTEXT_KEYS)
        return next((value for value in values if isinstance(value, int)), None)

    @property
    def is_transposed(self) -> bool:
        """Whether linears are stored [in, out] (transformers' Conv1D)."""
        return self.config.get("model_type") in _TRANSPOSED_TYPES

    @property
    def num_bytes(self) -> int:
        """Of all weight files."""
        return sum(path.stat().st_size for path in set(self.files.values()))

    def linears(self) -> list[str]:
        """Module names of the linears: two-dimensional weights inside numbered layers, and the head."""
        modules = [name.removesuffix(".weight") for name in self.tensors if name.endswith(".weight")]
        return [
            module
            for module in modules
            if len(self.tensors[f"{module}.weight"].shape) == 2
            and (module == HEAD or _IN_A_LAYER.search(f".{module}.weight"))
        ]

    def fingerprint(self) -> dict[str, object]:
        """The folder and its weight files' sizes and times: what tells that the model is still the same."""
        files = {path.name: path.stat() for path in sorted(set(self.files.values()))}
        return {
            "model": str(self.folder.resolve()),
            "weights": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in files.items()},
        }

    def chunks(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """A tensor in pieces of whole rows, each with the index of its first row.

        Raises:
            CheckpointError: the file cannot be read.
        """
        with _reading(self.files[name]), safe_open(self.files[name], "pt") as file:
            shape = self.tensors[name].shape
            if not shape:
                yield 0, file.get_tensor(name)
                return
            row_elements = max(1, self._num_elements(name) // max(1, shape[0]))
            step = max(1, _CHUNK_ELEMENTS // row_elements)
            rows = file.get_slice(name)
            for first in range(0, shape[0], step):
                yield first, rows[first : first + step]

    def _num_elements(self, name: str) -> int:
        count = 1
        for size in self.tensors[name].shape:
            count *= size
        return count


def open_source(folder: Path) -> SourceModel:
    """Read a model folder's config and the headers of its weights.

    Raises:
        QuantizationError: it is quantized already.
        CheckpointError: it has no safetensors, or a file of it is broken.
    """
    config = _read_json(folder / "config.json")
    _refuse_quantized(folder, config)
    tensors: dict[str, StoredTensor] = {}
    files: dict[str, Path] = {}
    for path in _weight_files(folder):
        with _reading(path), safe_open(path, "pt") as file:
            for name in file.offset_keys():
                entry = file.get_slice(name)
                tensors[name] = StoredTensor(tuple(entry.get_shape()), entry.get_dtype())
                files[name] = path
    return SourceModel(folder, config, tensors, files)


def check_linears(source: SourceModel, modules: list[str], group_size: int, multiple: int) -> None:
    """Refuse what a method cannot quantize, before anything is computed.

    Args:
        source: the model.
        modules: to be quantized.
        group_size: inputs that share a scale; not positive: all of a row.
        multiple: that a row's length must have (what fills a packed word).

    Raises:
        QuantizationError: there is nothing to quantize, or a weight has a dtype or shape that the method
            does not take; it is named.
    """
    if not modules:
        raise QuantizationError(f"{source.folder} has no linears in numbered layers to quantize")
    for module in modules:
        tensor = source.tensors[f"{module}.weight"]
        if tensor.dtype not in _DTYPES:
            raise QuantizationError(
                f"{module}.weight is stored as {tensor.dtype}, expected one of {', '.join(_DTYPES)}: "
                "give the 16-bit checkpoint"
            )
        in_features = tensor.shape[0 if source.is_transposed and module != HEAD else 1]
        has_groups = group_size > 0
        if in_features % (group_size if has_groups else multiple):
            what = f"the group size {group_size}" if has_groups else f"{multiple}, which fill a word"
            remedy = (
                "give a --group-size that divides it" if has_groups else "leave the module out (--ignore)"
            )
            raise QuantizationError(
                f"{module}.weight has {in_features} inputs, which is no multiple of {what}: {remedy}"
            )


def torch_dtype_name(tensor: StoredTensor) -> str:
    """Torch's name of a floating tensor's dtype."""
    return _DTYPES[tensor.dtype]


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX_NAME
    if index.is_file():
        names = _read_json(index).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise CheckpointError(f"{index} has no weight_map from tensors to files; fetch the file again")
        paths = [folder / str(name) for name in dict.fromkeys(names.values())]
    else:
        paths = sorted(folder.glob("*.safetensors"))
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise CheckpointError(f"{folder}: {', '.join(missing)} of {INDEX_NAME} is missing; fetch it")
    if not paths:
        raise CheckpointError(
            f"{folder} has no .safetensors files; convert the weights with transformers' save_pretrained"
        )
    return paths


def _refuse_quantized(folder: Path, config: Mapping[str, Any]) -> None:
    value = config.get("quantization_config") or config.get("compression_config")
    label = value.get("quant_method", "unknown method") if isinstance(value, dict) else None
    name = next((name for name in _QUANTIZED_FILES if (folder / name).is_file()), None)
    if label is not None or name is not None:
        raise QuantizationError(
            f"{folder} is quantized already ({label or name}): give the 16-bit checkpoint that it was made from"
        )


def refuse_experts(source: SourceModel) -> None:
    """Refuse mixtures of experts, whose routers and fused experts need names that are not known here.

    Raises:
        QuantizationError: the model is one.
    """
    found = next((key for key in _EXPERT_KEYS if source.config.get(key)), None)
    if found is not None:
        raise QuantizationError(
            f"{source.folder} is a mixture of experts ({found}={source.config[found]}), which int8 and int4 do "
            "not write; use --method gptq, whose tool knows such models"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; fetch the file again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is a {type(value).__name__}; it must be a JSON object")
    return value


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a valid safetensors file: {error}; fetch it again") from error
