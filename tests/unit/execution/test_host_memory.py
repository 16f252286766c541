"""Memory of the KV cache: granted at once, brought when it is written."""

from __future__ import annotations

import psutil
import pytest
import torch

from quire.api.errors import CapacityError
from quire.execution.host_memory import lazy_zeros


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64, torch.uint8])
def test_it_is_zero_and_can_be_written(dtype: torch.dtype) -> None:
    zeros = lazy_zeros((3, 5, 7), dtype)
    assert zeros.shape == (3, 5, 7) and zeros.dtype == dtype and not zeros.any()
    zeros[1, 2] = 3
    assert zeros.sum() == 21
    assert lazy_zeros((0, 5), dtype).shape == (0, 5)


def test_pages_come_when_they_are_written() -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    zeros = lazy_zeros((2**30,), torch.uint8)
    assert process.memory_info().rss - before < 2**26
    zeros[: 2**27] = 1
    assert 2**26 < process.memory_info().rss - before < 2**28


@pytest.mark.parametrize("exponent", [15, 20])
def test_too_much_is_refused(exponent: int) -> None:
    with pytest.raises(CapacityError, match="does not grant"):
        lazy_zeros((10**exponent,), torch.float32)
