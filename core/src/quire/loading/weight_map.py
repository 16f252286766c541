"""Executes a WeightMap: every checkpoint tensor to its one place, every parameter from its tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from quire.api.errors import CheckpointError
from quire.api.specs import WeightMap, WeightPart
from quire.loading.checkpoint import Checkpoint
from quire.loading.reader_checkpoint import ReaderCheckpoint
from quire.nn.linear import TensorSlot

ProgressHook = Callable[[int, int], None]
"""Called after each tensor with the bytes loaded and the bytes to load."""

TensorSource = Checkpoint | ReaderCheckpoint

_BAR_DELAY_S = 2.0
_MAX_NAMES = 5


@runtime_checkable
class HasTensorSlots(Protocol):
    """A module that says itself where its checkpoint tensors go: linears, whatever their method."""

    def tensor_slots(self, part: str | None) -> Sequence[TensorSlot]:
        """The checkpoint tensors that fill a part (None: the only part)."""
        ...


@dataclass(slots=True, frozen=True)
class _Copy:
    """One checkpoint tensor, or some of its rows, into one slot."""

    tensor: str
    slot: TensorSlot
    part: WeightPart
    destination: str

    @property
    def rows(self) -> tuple[int, ...] | None:
        """The checkpoint's rows that are taken; None for all, or for tensors without output rows."""
        return None if self.slot.output_dim is None else self.part.row_permutation

    @property
    def is_swapped(self) -> bool:
        """Whether the checkpoint stores this matrix transposed."""
        return self.part.transposed and self.slot.output_dim is not None and self.slot.input_dim is not None

    @property
    def row_dim(self) -> int | None:
        """The checkpoint's dimension of output features, or None."""
        return self.slot.input_dim if self.is_swapped else self.slot.output_dim


def load_weights(
    model: nn.Module, weight_map: WeightMap, checkpoint: TensorSource, progress: ProgressHook | None = None
) -> None:
    """Fill a model's parameters from a checkpoint, tensor by tensor, in place.

    Nothing is copied before the names, shapes and kinds of all tensors were found to fit. Values are
    converted to the parameters' dtype on the way; there is never a second copy of more than one tensor.

    Args:
        model: built, its linears not yet processed.
        weight_map: the model's.
        checkpoint: an open checkpoint.
        progress: called after each tensor; None shows a progress bar when loading takes long.

    Raises:
        CheckpointError: tensors are missing, unexpected, of another shape or kind than the model's,
            or overflow its dtype; or the map leaves a parameter unfilled.
    """
    copies = _resolve(model, weight_map, checkpoint)
    for copy in copies:
        _check_kind(copy, checkpoint)
    _check_shapes(copies, checkpoint)
    _check_filled(model, copies)
    if progress is not None:
        _copy_all(copies, checkpoint, progress)
        return
    with tqdm(desc="loading weights", unit="B", unit_scale=True, delay=_BAR_DELAY_S, leave=False) as bar:
        _copy_all(copies, checkpoint, lambda done, total: _move_bar(bar, done, total))


def _move_bar(bar: tqdm[None], done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)


def _copy_all(copies: Sequence[_Copy], checkpoint: TensorSource, progress: ProgressHook) -> None:
    sizes = [copy.slot.target.numel() * checkpoint.element_bytes(copy.tensor) for copy in copies]
    done, total = 0, sum(sizes)
    for copy, size in zip(copies, sizes, strict=True):
        _copy_one(copy, checkpoint)
        done += size
        progress(done, total)


def _copy_one(copy: _Copy, checkpoint: TensorSource) -> None:
    slot, rows = copy.slot, copy.rows
    source = checkpoint.get(copy.tensor)
    if copy.is_swapped:
        source = source.t()
    if rows is not None and slot.output_dim is not None:
        source = _take_rows(source, slot.output_dim, rows)
    target = slot.target
    target.copy_(source)
    if target.dtype == torch.float16 and source.dtype != torch.float16 and not target.isfinite().all():
        raise CheckpointError(
            f"{checkpoint.file_of(copy.tensor)}: tensor {copy.tensor!r} ({source.dtype}) holds values that "
            "float16 cannot; load the model in bfloat16 or float32"
        )


def _take_rows(source: Tensor, dim: int, rows: tuple[int, ...]) -> Tensor:
    if rows == tuple(range(rows[0], rows[0] + len(rows))):
        return source.narrow(dim, rows[0], len(rows))
    return source.index_select(dim, torch.tensor(rows))


def _resolve(model: nn.Module, weight_map: WeightMap, checkpoint: TensorSource) -> list[_Copy]:
    """The copies of a load; raises CheckpointError for missing and for unexpected tensors."""
    copies, missing = [], []
    for path, part in _expand(weight_map):
        for slot in _slots(model, path, part):
            wanted = f"{part.source}.{slot.suffix}"
            found = next((p + wanted for p in weight_map.prefixes if p + wanted in checkpoint), None)
            destination = path if part.part is None else f"{path} (part {part.part})"
            if found is None:
                missing.append(f"{wanted!r} for {destination}")
            else:
                copies.append(_Copy(found, slot, part, destination))
    used = {copy.tensor for copy in copies}
    unexpected = [
        name for name in checkpoint.names() if name not in used and not _is_ignored(name, weight_map)
    ]
    problems = []
    if missing:
        problems.append(f"it lacks {_listed(missing)}")
    if unexpected:
        problems.append(f"the model has no place for {_listed([repr(name) for name in unexpected])}")
    if problems:
        raise CheckpointError(
            f"{checkpoint.folder} does not hold this model's tensors: {'; '.join(problems)}. "
            "Check that config.json belongs to these weights and that all shards are there"
        )
    return copies


def _expand(weight_map: WeightMap) -> Iterator[tuple[str, WeightPart]]:
    """Each module path and part, with "{i}" replaced by the layers' indices."""
    for path, parts in weight_map.modules.items():
        indices = range(weight_map.num_layers) if "{i}" in path else range(1)
        for index in indices:
            for part in parts:
                source = part.source.replace("{i}", str(index))
                yield (
                    path.replace("{i}", str(index)),
                    WeightPart(source, part.part, part.transposed, part.row_permutation),
                )


def _slots(model: nn.Module, path: str, part: WeightPart) -> Sequence[TensorSlot]:
    try:
        module = model.get_submodule(path)
    except AttributeError as error:
        raise CheckpointError(
            f"the weight map names module {path!r}, which the model does not have"
        ) from error
    if isinstance(module, HasTensorSlots):
        return module.tensor_slots(part.part)
    return [
        TensorSlot(name, value.data, output_dim=0, input_dim=1 if value.dim() == 2 else None)
        for name, value in module.named_parameters(recurse=False)
    ]


def _is_ignored(name: str, weight_map: WeightMap) -> bool:
    spellings = [name, *(name.removeprefix(prefix) for prefix in weight_map.prefixes)]
    return any(re.fullmatch(pattern, spelling) for pattern in weight_map.ignored for spelling in spellings)


def _check_kind(copy: _Copy, checkpoint: TensorSource) -> None:
    """Float8 and integers are quantized weights: never silently converted to the model's dtype."""
    source, target = checkpoint.dtype(copy.tensor), copy.slot.target.dtype
    plain = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    if source != target and not (source in plain and target in plain):
        raise CheckpointError(
            f"{checkpoint.file_of(copy.tensor)}: tensor {copy.tensor!r} is {source}, {copy.destination} "
            f"needs {target}; if the checkpoint is quantized, its quantization method is not in use"
        )


def _check_shapes(copies: Sequence[_Copy], checkpoint: TensorSource) -> None:
    """Compare shapes as the checkpoint stores them; every output row must go to exactly one place."""
    taken: dict[str, list[int]] = {}
    for copy in copies:
        if copy.slot.output_dim is not None:
            rows = copy.rows or range(copy.slot.target.shape[copy.slot.output_dim])
            taken.setdefault(copy.tensor, []).extend(rows)
    for copy in copies:
        expected, row_dim = list(copy.slot.target.shape), copy.row_dim
        if copy.is_swapped:
            expected.reverse()
        if row_dim is not None:
            if copy.rows is not None and len(copy.rows) != expected[row_dim]:
                raise CheckpointError(
                    f"the weight map takes {len(copy.rows)} rows of {copy.tensor!r}; "
                    f"{copy.destination} has {expected[row_dim]}"
                )
            expected[row_dim] = len(taken[copy.tensor])
        found = list(checkpoint.shape(copy.tensor))
        if found != expected:
            raise CheckpointError(
                f"{checkpoint.file_of(copy.tensor)}: tensor {copy.tensor!r} has shape {found}; "
                f"{copy.destination} needs {expected}; check that config.json belongs to these weights"
            )
        if row_dim is not None and sorted(taken[copy.tensor]) != list(range(found[row_dim])):
            raise CheckpointError(f"the weight map does not use each row of {copy.tensor!r} exactly once")


def _check_filled(model: nn.Module, copies: Sequence[_Copy]) -> None:
    """Every parameter must be covered by the copies into its memory."""
    filled: dict[int, int] = {}
    for copy in copies:
        memory = copy.slot.target.untyped_storage().data_ptr()
        filled[memory] = filled.get(memory, 0) + copy.slot.target.numel()
    for name, parameter in model.named_parameters():
        count = filled.get(parameter.data.untyped_storage().data_ptr(), 0)
        if count != parameter.numel() and parameter.numel() > 0:
            raise CheckpointError(
                f"the weight map fills {count} of the {parameter.numel()} values of parameter {name}"
            )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MAX_NAMES])
    return shown if len(names) <= _MAX_NAMES else f"{shown} and {len(names) - _MAX_NAMES} more"
