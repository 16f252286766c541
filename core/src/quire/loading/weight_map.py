"""Executes a WeightMap: every checkpoint tensor to its one place, every parameter from its tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import nn
from tqdm import tqdm

from quire.api.errors import CheckpointError, QuantizationError
from quire.api.specs import WeightMap, WeightPart
from quire.loading.freed_memory import release_freed_memory
from quire.loading.tensor_copy import TensorCopy, TensorSource
from quire.nn.linear import Linear
from quire.nn.linear_method import TensorSlot

ProgressHook = Callable[[int, int], None]
"""Called after each tensor with the bytes loaded and the bytes to load."""

_BAR_DELAY_S = 2.0
_MAX_NAMES = 5


@runtime_checkable
class HasTensorSlots(Protocol):
    """A module that says itself where its checkpoint tensors go: linears, whatever their method."""

    def tensor_slots(self, part: str | None) -> Sequence[TensorSlot]:
        """The checkpoint tensors that fill a part (None: the only part)."""
        ...


def load_weights(
    model: nn.Module, weight_map: WeightMap, checkpoint: TensorSource, progress: ProgressHook | None = None
) -> None:
    """Fill a model's parameters from a checkpoint, tensor by tensor, in place.

    Nothing is copied before the names, shapes and kinds of all tensors were found to fit. Values are
    converted to the parameters' dtype on the way; there is never a second copy of more than one tensor.
    Linears are processed as soon as their tensors are there, so that what they are loaded as and what
    they are multiplied as exist together for one layer only.

    Args:
        model: built, its linears with their methods, and not yet processed.
        weight_map: the model's.
        checkpoint: an open checkpoint.
        progress: called after each tensor; None shows a progress bar when loading takes long.

    Raises:
        CheckpointError: tensors are missing, unexpected, of another shape or kind than the model's,
            or overflow its dtype; or the map leaves a parameter unfilled.
    """
    copies = _resolve(model, weight_map, checkpoint)
    _check_kinds(copies, checkpoint)
    _check_shapes(copies, checkpoint)
    _check_filled(model, copies)
    if progress is not None:
        _copy_all(model, copies, checkpoint, progress)
        return
    with tqdm(desc="loading weights", unit="B", unit_scale=True, delay=_BAR_DELAY_S, leave=False) as bar:
        _copy_all(model, copies, checkpoint, lambda done, total: _move_bar(bar, done, total))


def _move_bar(bar: tqdm[None], done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)


def _copy_all(
    model: nn.Module, copies: list[TensorCopy], checkpoint: TensorSource, progress: ProgressHook
) -> None:
    """Empties the list: a copy still in it would hold what its linear frees."""
    done, total = 0, sum(_stored_bytes(copy, checkpoint) for copy in copies)
    copies.reverse()
    while copies:
        path = copies[-1].path
        while copies and copies[-1].path == path:
            done += _stored_bytes(copies[-1], checkpoint)
            _copy_one(copies.pop(), checkpoint)
            progress(done, total)
        module = model.get_submodule(path)
        if isinstance(module, Linear):
            with naming_module(path):
                module.process_after_loading()
            release_freed_memory()


def _stored_bytes(copy: TensorCopy, checkpoint: TensorSource) -> int:
    return copy.slot.target.numel() * checkpoint.element_bytes(copy.tensor)


@contextmanager
def naming_module(path: str) -> Iterator[None]:
    """Put the module's path before what its method complains of."""
    try:
        yield
    except QuantizationError as error:
        raise QuantizationError(f"{path}: {error}") from error


def _copy_one(copy: TensorCopy, checkpoint: TensorSource) -> None:
    slot = copy.slot
    source = copy.read(checkpoint)
    if slot.store is not None:
        with naming_module(copy.tensor):
            slot.store(source)
        return
    target = slot.target
    target.copy_(source)
    if target.dtype == torch.float16 and source.dtype != torch.float16 and not target.isfinite().all():
        raise CheckpointError(
            f"{checkpoint.file_of(copy.tensor)}: tensor {copy.tensor!r} ({source.dtype}) holds values that "
            "float16 cannot; load the model in bfloat16 or float32"
        )


def _resolve(model: nn.Module, weight_map: WeightMap, checkpoint: TensorSource) -> list[TensorCopy]:
    """The copies of a load; raises CheckpointError for missing and for unexpected tensors."""
    copies, missing = [], []
    for path, part in expand(weight_map):
        module = _module(model, path)
        shape = module.shape if isinstance(module, Linear) else None
        destination = path if part.part is None else f"{path} (part {part.part})"
        for slot in _slots(module, part):
            wanted = f"{part.source}.{slot.suffix}"
            found = next((p + wanted for p in weight_map.prefixes if p + wanted in checkpoint), None)
            if found is not None:
                copies.append(TensorCopy(found, slot, part, path, destination, shape))
            elif not slot.is_optional:
                missing.append(f"{wanted!r} for {destination}")
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


def expand(weight_map: WeightMap) -> Iterator[tuple[str, WeightPart]]:
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


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise CheckpointError(
            f"the weight map names module {path!r}, which the model does not have"
        ) from error


def _slots(module: nn.Module, part: WeightPart) -> Sequence[TensorSlot]:
    if isinstance(module, HasTensorSlots):
        return module.tensor_slots(part.part)
    return [
        TensorSlot(name, value.data, output_dim=0, input_dim=1 if value.dim() == 2 else None)
        for name, value in module.named_parameters(recurse=False)
    ]


def _is_ignored(name: str, weight_map: WeightMap) -> bool:
    spellings = [name, *(name.removeprefix(prefix) for prefix in weight_map.prefixes)]
    return any(re.fullmatch(pattern, spelling) for pattern in weight_map.ignored for spelling in spellings)


def _check_kinds(copies: Sequence[TensorCopy], checkpoint: TensorSource) -> None:
    """Float8 and integers are quantized weights: never silently converted to the model's dtype."""
    plain = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    for copy in copies:
        source, target = checkpoint.dtype(copy.tensor), copy.slot.target.dtype
        if source != target and not (source in plain and target in plain):
            raise CheckpointError(
                f"{checkpoint.file_of(copy.tensor)}: tensor {copy.tensor!r} is {source}, {copy.destination} "
                f"needs {target}; if the checkpoint is quantized, its quantization method is not in use"
            )


def _check_shapes(copies: Sequence[TensorCopy], checkpoint: TensorSource) -> None:
    """Compare shapes as the checkpoint stores them; every output row must go to exactly one place."""
    taken: dict[str, list[int]] = {}
    for copy in copies:
        if copy.row_dim is not None:
            taken.setdefault(copy.tensor, []).extend(copy.whole_rows())
    for copy in copies:
        slot, row_dim = copy.slot, copy.row_dim
        expected = list(slot.target.shape)
        if slot.input_dim is not None:
            expected[slot.input_dim] = copy.whole_inputs()
        if slot.output_dim is not None:
            _check_rows(copy)
            expected[slot.output_dim] = copy.elements(len(taken[copy.tensor]), slot.outputs_per_element)
        if copy.is_swapped:
            expected.reverse()
        found = list(checkpoint.shape(copy.tensor))
        if found != expected:
            raise CheckpointError(
                f"{checkpoint.file_of(copy.tensor)}: tensor {copy.tensor!r} has shape {found}; "
                f"{copy.destination} needs {expected}; check that config.json belongs to these weights"
            )
        if row_dim is not None and sorted(taken[copy.tensor]) != list(range(len(taken[copy.tensor]))):
            raise CheckpointError(f"the weight map does not use each row of {copy.tensor!r} exactly once")


def _check_rows(copy: TensorCopy) -> None:
    rows, target = len(copy.rows()), copy.slot.target.shape[copy.slot.output_dim or 0]
    if copy.elements(rows, copy.slot.outputs_per_element) != target:
        raise CheckpointError(
            f"the weight map takes {rows} rows of {copy.tensor!r}; "
            f"{copy.destination} has {target * copy.slot.outputs_per_element}"
        )


def _check_filled(model: nn.Module, copies: Sequence[TensorCopy]) -> None:
    """Every parameter must be covered by the copies into its memory, every linear's part by a copy."""
    named = {(copy.path, copy.part.part) for copy in copies}
    for path, module in model.named_modules():
        if not isinstance(module, Linear) or not module.tensor_slots(module.shape.parts[0][0]):
            continue
        for part, _ in module.shape.parts:
            if not {(path, part), (path, None)} & named:
                raise CheckpointError(f"the weight map does not say what fills part {part!r} of {path}")
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
