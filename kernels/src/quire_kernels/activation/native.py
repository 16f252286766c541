"""The native implementations of the activations."""

from __future__ import annotations

import ctypes
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor

from quire_kernels.native.kernel import Kernel
from quire_kernels.native.tensors import C_INT32, C_LONG, C_POINTER, dtype_code


class _Activation(ctypes.Structure):
    """`Activation` of native.c."""

    _fields_ = [
        *((name, C_POINTER) for name in ("x", "out")),
        *((name, C_LONG) for name in ("rows", "size", "row_stride")),
        *((name, C_INT32) for name in ("activation", "dtype", "threads")),
    ]


_activation = Kernel("activation", _Activation)
_SILU, _GELU, _GELU_TANH, _RELU = range(4)

ACCURACY: Final = MappingProxyType({"silu": 1e-6, "gelu": 1e-6, "gelu_tanh": 2e-5, "relu": 0.0})
"""The largest relative error in float32, where the result is at least 2e-36 in magnitude: smaller ones may be 0 where
there is no AVX-512. That of gelu_tanh is below 2e-6 from -3 on; left of that it grows with the exponent. Bfloat16 is
this, rounded once."""


def silu(x: Tensor) -> Tensor:
    """See `quire.ops.activation.silu`; bfloat16 and float32 on a CPU, see ACCURACY."""
    return _activated(x, _SILU)


def gelu(x: Tensor) -> Tensor:
    """See `quire.ops.activation.gelu`; bfloat16 and float32 on a CPU, see ACCURACY."""
    return _activated(x, _GELU)


def gelu_tanh(x: Tensor) -> Tensor:
    """See `quire.ops.activation.gelu_tanh`; bfloat16 and float32 on a CPU, see ACCURACY."""
    return _activated(x, _GELU_TANH)


def relu(x: Tensor) -> Tensor:
    """See `quire.ops.activation.relu`; bfloat16 and float32 on a CPU."""
    return _activated(x, _RELU)


gelu_new = gelu_fast = gelu_pytorch_tanh = gelu_tanh


def _activated(x: Tensor, activation: int) -> Tensor:
    code = dtype_code(x.dtype)
    out = torch.empty(x.shape, dtype=x.dtype)
    if not out.numel():
        return out
    size = x.shape[-1] if x.dim() else 1
    rows = x if x.dim() == 2 and x.stride(1) == 1 else x.contiguous().view(-1, size)
    _activation(
        _Activation(
            rows.data_ptr(),
            out.data_ptr(),
            *rows.shape,
            rows.stride(0),
            activation,
            code,
            torch.get_num_threads(),
        )
    )
    return out
