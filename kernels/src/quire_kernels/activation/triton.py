"""The activations in Triton, for CUDA and ROCm."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from quire.api.errors import ShapeError
from quire_kernels.activation.triton_kernel import activate_rows
from quire_kernels.triton.launch import as_rows, check_dtype, on_device_of

_BLOCK = 1024


def silu(x: Tensor) -> Tensor:
    """See `quire.ops.activation.silu`; bfloat16, float16 and float32, whatever the strides."""
    return activated(x, "silu")


def gelu(x: Tensor) -> Tensor:
    """See `quire.ops.activation.gelu`; as `silu`."""
    return activated(x, "gelu")


def gelu_tanh(x: Tensor) -> Tensor:
    """See `quire.ops.activation.gelu_tanh`; as `silu`."""
    return activated(x, "gelu_tanh")


def relu(x: Tensor) -> Tensor:
    """See `quire.ops.activation.relu`; as `silu`."""
    return activated(x, "relu")


gelu_new = gelu_fast = gelu_pytorch_tanh = gelu_tanh


def activated(
    x: Tensor, activation: Literal["silu", "gelu", "gelu_tanh", "relu"], *, is_gated: bool = False
) -> Tensor:
    """A new tensor of x's activated values.

    Args:
        x: any shape; bfloat16, float16 or float32.
        activation: computed in float32.
        is_gated: x is [..., 2 * I]; its activated first half, rounded, times its second: [..., I].

    Raises:
        TypeError: another dtype.
        ShapeError: a gated x of an odd width.
    """
    check_dtype(x)
    if is_gated and x.shape[-1] % 2:
        raise ShapeError(f"x is {list(x.shape)}: a gate and its factor are an even number of values")
    out = x.new_empty((*x.shape[:-1], x.shape[-1] // 2) if is_gated else x.shape)
    if out.numel() == 0:
        return out
    rows = as_rows(x)
    size = rows.shape[2] // 2 if is_gated else rows.shape[2]
    with on_device_of(x):
        activate_rows[(rows.shape[0] * rows.shape[1] * -(-size // _BLOCK),)](
            rows,
            out,
            size,
            rows.shape[1],
            rows.stride(0),
            rows.stride(1),
            ACTIVATION=activation,
            IS_GATED=is_gated,
            BLOCK=_BLOCK,
        )
    return out
