"""What the host side of every Triton kernel needs: the right device, and tensors as rows."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from quire_kernels.triton.plans import Device

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def on_device_of(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device: make it x's."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def check_dtype(x: Tensor) -> None:
    """Refuse what arithmetic in float32 would not serve.

    Raises:
        TypeError: x is neither bfloat16, float16 nor float32.
    """
    if x.dtype not in _DTYPES:
        raise TypeError(f"the Triton kernels take bfloat16, float16 and float32, not {x.dtype}")


def as_rows(x: Tensor) -> Tensor:
    """Give x as [A, B, E], contiguous in E: a view wherever strides allow one, else a copy.

    So kernels read the heads of a fused product where they lie, by two strides. B is 1 for matrices.
    """
    if x.dim() < 2:
        x = x.reshape(1, -1)
    if x.stride(-1) != 1:
        x = x.contiguous()
    return x.unsqueeze(1) if x.dim() == 2 else x.flatten(0, -3)


@functools.cache
def device_traits(device: torch.device) -> Device:
    """What plans ask of a GPU; of a CPU, where Triton's interpreter may run, the least."""
    if device.type != "cuda":
        return Device(processors=1, is_cuda=False)
    return Device(torch.cuda.get_device_properties(device).multi_processor_count, torch.version.hip is None)
