"""The calls of small Triton ops that `triton_aot.py` compiles: all block sizes and flags, each dtype at least once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from quire_kernels.activation import triton as activation
from quire_kernels.copy_blocks.triton import copy_blocks
from quire_kernels.embedding.triton import embedding
from quire_kernels.layer_norm.triton import add_layer_norm, layer_norm
from quire_kernels.rms_norm.triton import add_rms_norm, rms_norm
from quire_kernels.rotary.triton import rotary
from quire_kernels.silu_and_mul.triton import silu_and_mul

ROWS = (1, 2, 16, 17)
"""Of one call after the other: Triton is not to compile anything for a number of rows."""
BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32


def calls() -> Iterator[Callable[[int], object]]:
    """Functions of a number of rows, each of which needs one kernel."""
    for size, dtype in (
        (4096, BFLOAT16),
        (4096, FLOAT16),
        (4096, FLOAT32),
        (576, BFLOAT16),
        (18432, BFLOAT16),
    ):
        yield partial(_norm, size=size, dtype=dtype)
        yield partial(_norm, size=size, dtype=dtype, has_mean=True)
        yield partial(_norm, size=size, dtype=dtype, is_added=True)
        yield partial(_norm, size=size, dtype=dtype, has_mean=True, is_added=True)
    yield partial(_head_norm, dtype=BFLOAT16)
    for size, rotated, dtype in ((128, 128, BFLOAT16), (80, 32, FLOAT16), (64, 64, FLOAT32)):
        for interleaved in (False, True):
            yield partial(_rotary, size=size, rotated=rotated, dtype=dtype, interleaved=interleaved)
    for size, dtype in ((14336, BFLOAT16), (14336, FLOAT16), (14336, FLOAT32), (1001, BFLOAT16)):
        yield partial(_activation, silu_and_mul, size=2 * size, dtype=dtype)
    for op in (activation.silu, activation.gelu, activation.gelu_tanh, activation.relu):
        yield partial(_activation, op, size=3072, dtype=BFLOAT16)
    for size, dtype in (
        (4096, BFLOAT16),
        (4096, FLOAT16),
        (4096, FLOAT32),
        (576, BFLOAT16),
        (1001, BFLOAT16),
    ):
        yield partial(_embedding, size=size, dtype=dtype)
    for shape, dtype in (
        ((16, 16, 128), BFLOAT16),
        ((16, 2200), torch.uint8),
        ((16, 6, 80), FLOAT32),
        ((1, 3), torch.uint8),
    ):
        yield partial(_copy_blocks, shape=shape, dtype=dtype)


def _tensor(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _norm(
    rows: int, size: int, dtype: torch.dtype, *, has_mean: bool = False, is_added: bool = False
) -> None:
    x, weight = _tensor(rows, size, dtype=dtype), _tensor(size, dtype=dtype)
    if has_mean:
        add_layer_norm(x, x, weight, weight, 1e-5) if is_added else layer_norm(x, weight, weight, 1e-5)
    else:
        add_rms_norm(x, x, weight, 1e-5) if is_added else rms_norm(x, weight, 1e-5)


def _embedding(rows: int, size: int, dtype: torch.dtype) -> None:
    embedding(_tensor(rows, dtype=torch.int64), _tensor(128256, size, dtype=dtype))


def _copy_blocks(rows: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Pairs as the runner makes them: columns of one tensor."""
    sources, destinations = _tensor(rows, 2, dtype=torch.int64).unbind(1)
    copy_blocks(_tensor(1000 + rows, *shape, dtype=dtype), sources, destinations)


def _head_norm(rows: int, dtype: torch.dtype) -> None:
    """Of the queries in a fused product, as Qwen3 has it."""
    rms_norm(_tensor(rows, 48, 128, dtype=dtype)[:, :32], _tensor(128, dtype=dtype), 1e-6)


def _rotary(rows: int, size: int, rotated: int, dtype: torch.dtype, interleaved: bool) -> None:
    query, key, _ = _tensor(rows, 48, size, dtype=dtype).split([32, 8, 8], dim=1)
    table = _tensor(rows, rotated // 2, dtype=dtype)
    rotary(query, key, table, table, interleaved)


def _activation(op: Callable[[Tensor], Tensor], rows: int, size: int, dtype: torch.dtype) -> None:
    op(_tensor(rows, size, dtype=dtype))
