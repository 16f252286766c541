"""Slots whose elements hold several features, slices of a rank, rows in another order, and stores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from quire.api.errors import CheckpointError, QuantizationError
from quire.api.specs import WeightMap, WeightPart
from quire.loading.checkpoint import open_checkpoint
from quire.loading.weight_map import load_weights
from quire.nn.linear import Linear, LinearShape
from quire.nn.linear_method import TensorSlot, WholeLinear

Slots = Callable[[LinearShape, slice], Sequence[TensorSlot]]


class Weights(nn.Module):
    """Whatever slots a test asks for."""

    def __init__(self, shape: LinearShape, slots: Slots) -> None:
        super().__init__()
        self.shape, self.slots = shape, slots

    def tensor_slots(self, part: str | None) -> Sequence[TensorSlot]:
        return self.slots(self.shape, self.shape.rows(part))

    def process_after_loading(self) -> None:
        pass

    def product(self) -> Callable[[Tensor], Tensor]:
        return lambda x: x


@dataclass(frozen=True)
class Method:
    slots: Slots
    name: ClassVar[str] = "test"
    op: ClassVar[str] = ""
    fuses: ClassVar[bool] = True

    def create(self, shape: LinearShape) -> Weights:
        return Weights(shape, self.slots)


def load(
    folder: Path,
    tensors: dict[str, Tensor],
    slots: Slots,
    parts: dict[str, int],
    *,
    inputs: int = 16,
    whole: WholeLinear | None = None,
    weight_parts: tuple[WeightPart, ...] | None = None,
) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    shape = LinearShape(inputs, tuple(parts.items()), False, torch.float32, torch.device("cpu"), whole)
    model = nn.Module()
    model.layer = Linear(shape)
    model.layer.assign([Method(slots)] * len(parts))
    weight_map = WeightMap(
        {"layer": weight_parts or tuple(WeightPart(part, part) for part in parts)}, num_layers=1
    )
    load_weights(model, weight_map, open_checkpoint(folder), progress=lambda done, total: None)


def integers(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.int32).view(shape)


def test_packed_outputs_and_groups_are_cut_in_their_units(tmp_path: Path) -> None:
    """AWQ's layout: qweight [K, N / 8], scales [K / 4, N]; rank 1 of 2 in both dimensions."""
    stored = {"a.qweight": integers(16, 4), "a.scales": integers(4, 32).float()}
    qweight, scales = torch.zeros(8, 2, dtype=torch.int32), torch.zeros(2, 16)

    def slots(shape: LinearShape, rows: slice) -> list[TensorSlot]:
        return [
            TensorSlot("qweight", qweight, output_dim=1, input_dim=0, outputs_per_element=8),
            TensorSlot("scales", scales, output_dim=1, input_dim=0, inputs_per_element=4),
        ]

    whole = WholeLinear(16, 8, (32,), (16,))
    load(tmp_path, stored, slots, {"a": 16}, inputs=8, whole=whole)
    assert qweight.equal(stored["a.qweight"][8:, 2:])
    assert scales.equal(stored["a.scales"][2:, 16:])


def test_three_bits_are_cut_at_whole_words(tmp_path: Path) -> None:
    stored = {"a.q": integers(6, 2)}
    target = torch.zeros(3, 2, dtype=torch.int32)

    def slots(shape: LinearShape, rows: slice) -> list[TensorSlot]:
        return [TensorSlot("q", target, output_dim=1, input_dim=0, inputs_per_element=Fraction(32, 3))]

    load(tmp_path, stored, slots, {"a": 2}, inputs=32, whole=WholeLinear(64, 32, (2,), (0,)))
    assert target.equal(stored["a.q"][3:])
    with pytest.raises(
        CheckpointError, match="takes 16 features of tensor 'a.q', whose elements hold 32/3 each"
    ):
        load(tmp_path, stored, slots, {"a": 2}, inputs=16, whole=WholeLinear(64, 16, (2,), (0,)))


def test_rows_of_one_source_go_to_parts_in_units(tmp_path: Path) -> None:
    """A fused source [K, 32 / 8] split over two parts, one of them with its blocks of 8 in reverse."""
    stored = {"ab.q": integers(2, 4)}
    target = torch.zeros(2, 4, dtype=torch.int32)

    def slots(shape: LinearShape, rows: slice) -> list[TensorSlot]:
        part = target[:, rows.start // 8 : rows.stop // 8]
        return [TensorSlot("q", part, output_dim=1, outputs_per_element=8)]

    reverse = (*range(24, 32), *range(16, 24))
    parts = (WeightPart("ab", "a", row_permutation=tuple(range(16))), WeightPart("ab", "b", False, reverse))
    load(tmp_path, stored, slots, {"a": 16, "b": 16}, weight_parts=parts)
    assert target.equal(stored["ab.q"][:, [0, 1, 3, 2]])
    broken = (parts[0], WeightPart("ab", "b", row_permutation=tuple(reversed(range(16, 32)))))
    with pytest.raises(CheckpointError, match="packed 8 together"):
        load(tmp_path, stored, slots, {"a": 16, "b": 16}, weight_parts=broken)


def test_a_store_is_given_the_tensor_and_optional_tensors_may_be_absent(tmp_path: Path) -> None:
    stored = {"a.weight": torch.randn(16, 4)}
    seen: list[Tensor] = []

    def slots(shape: LinearShape, rows: slice) -> list[TensorSlot]:
        meta = torch.empty(4, 16, device="meta")
        return [
            TensorSlot("weight", meta, output_dim=0, input_dim=1, store=lambda x: seen.append(x.clone())),
            TensorSlot("order", torch.zeros(16, dtype=torch.int32), input_dim=0, is_optional=True),
        ]

    load(tmp_path, stored, slots, {"a": 4}, weight_parts=(WeightPart("a", "a", transposed=True),))
    assert len(seen) == 1 and seen[0].equal(stored["a.weight"].t())


def test_only_weights_are_stored_transposed(tmp_path: Path) -> None:
    """GPT-2's checkpoints hold weights [in, out]; packed tensors keep their own layout."""
    stored = {"a.q": integers(16, 4)}
    target = torch.zeros(16, 4, dtype=torch.int32)

    def slots(shape: LinearShape, rows: slice) -> list[TensorSlot]:
        return [TensorSlot("q", target, output_dim=1, input_dim=0)]

    load(tmp_path, stored, slots, {"a": 4}, weight_parts=(WeightPart("a", "a", transposed=True),))
    assert target.equal(stored["a.q"])


def test_what_a_store_refuses_is_named(tmp_path: Path) -> None:
    def refuse(tensor: Tensor) -> None:
        raise QuantizationError("it holds NaN")

    def slots(shape: LinearShape, rows: slice) -> list[TensorSlot]:
        return [TensorSlot("weight", torch.empty(4, 16, device="meta"), 0, 1, store=refuse)]

    with pytest.raises(QuantizationError, match=r"a\.weight: it holds NaN"):
        load(tmp_path, {"a.weight": torch.randn(4, 16)}, slots, {"a": 4})


@pytest.mark.parametrize(("shape", "dtype"), [((15, 4), torch.int32), ((16, 4), torch.int64)])
def test_wrong_shapes_and_kinds_are_named(tmp_path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    def slots(layer: LinearShape, rows: slice) -> list[TensorSlot]:
        return [TensorSlot("q", torch.zeros(16, 4, dtype=torch.int32), output_dim=1, input_dim=0)]

    with pytest.raises(CheckpointError, match=r"tensor 'a\.q'"):
        load(tmp_path, {"a.q": torch.zeros(shape, dtype=dtype)}, slots, {"a": 4})


def test_a_part_that_nothing_fills_is_named(tmp_path: Path) -> None:
    """Buffers that no tensor fills would be whatever the memory held."""

    def slots(layer: LinearShape, rows: slice) -> list[TensorSlot]:
        return [TensorSlot("q", torch.zeros(4, 16), output_dim=0, input_dim=1)]

    with pytest.raises(CheckpointError, match="does not say what fills part 'b' of layer"):
        parts = (WeightPart("a", "a"),)
        load(tmp_path, {"a.q": torch.zeros(4, 16)}, slots, {"a": 4, "b": 4}, weight_parts=parts)
