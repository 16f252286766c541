"""One buffer for a step's arrays: places, copies, halves."""

from __future__ import annotations

import pytest
import torch
from slow_device import SlowDevice

from quire.execution.step_buffers import StepBuffer, transfers_of

FIELDS = {"lengths": ((3,), torch.int32), "ids": ((5,), torch.int64), "tables": ((3, 4), torch.int32)}


def fill(buffer: StepBuffer, value: int) -> None:
    arrays = buffer.begin()
    for array in arrays.values():
        array[...] = value


def test_on_a_cpu_arrays_and_tensors_are_the_same_memory() -> None:
    assert transfers_of(torch.device("cpu")) is None
    buffer = StepBuffer(FIELDS, None)
    for value in (1, 2, 3):
        fill(buffer, value)
        buffer.send(1)
        assert all(bool((tensor == value).all()) for tensor in buffer.tensors.values())


def test_arrays_lie_apart_and_aligned() -> None:
    buffer = StepBuffer(FIELDS, None)
    for name, (shape, dtype) in FIELDS.items():
        tensor = buffer.tensors[name]
        assert (tuple(tensor.shape), tensor.dtype, tensor.is_contiguous()) == (shape, dtype, True)
        assert tensor.storage_offset() * tensor.itemsize % 64 == 0
    for number, array in enumerate(buffer.begin().values()):
        array[...] = number
    for number, tensor in enumerate(buffer.tensors.values()):
        assert (tensor == number).all()


def test_one_copy_with_the_rows_that_are_asked_for() -> None:
    device = SlowDevice()
    buffer = StepBuffer(FIELDS, device)
    fill(buffer, 4)
    buffer.send(2)
    assert device.to_device_bytes == [64 + 64 + 2 * 4 * 4]
    assert buffer.tensors["tables"].tolist() == [[4] * 4, [4] * 4, [0] * 4]
    assert buffer.tensors["ids"].tolist() == [4] * 5


def test_a_half_is_written_again_when_its_copy_is_done() -> None:
    """The next step's arrays need not wait for this step's copy; those of the one after it do."""
    device = SlowDevice()
    buffer = StepBuffer(FIELDS, device)
    addresses = [tensor.data_ptr() for tensor in buffer.tensors.values()]
    waits = []
    for value in range(5):
        fill(buffer, value)
        buffer.send(3)
        waits.append(list(device.waits))
        assert (buffer.tensors["ids"] == value).all()
    assert waits == [[], [], [1], [1, 2], [1, 2, 3]]
    assert [tensor.data_ptr() for tensor in buffer.tensors.values()] == addresses


def test_writing_too_early_is_noticed_here() -> None:
    """The check of these tests works: a copy that still reads is seen."""
    device = SlowDevice()
    buffer = StepBuffer(FIELDS, device)
    arrays = buffer.begin()
    buffer.send(3)
    arrays["ids"][0] = 9
    with pytest.raises(AssertionError, match="still read"):
        device.wait(1)
