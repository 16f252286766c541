"""The native kernel that writes keys and values to a paged KV cache, and rotates them and the queries on the way."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from quire.api.batch import KVCacheDTypeName
from quire.api.protocols import AttentionParams
from quire_kernels.native.kernel import Kernel
from quire_kernels.native.tensors import C_INT32, C_LONG, C_POINTER, dtype_code

_CODES: dict[KVCacheDTypeName, int] = {"int8": 2, "fp8_e4m3": 3}


class _WriteKv(ctypes.Structure):
    """`WriteKv` of native.c."""

    _fields_ = [
        *((name, C_POINTER) for name in ("query", "key", "value", "cache", "slots", "cos", "sin")),
        *((name, C_LONG) for name in ("rows", "query_stride", "key_stride", "value_stride")),
        *((name, C_LONG) for name in ("num_heads", "num_kv_heads", "head_size", "half")),
        *((name, C_INT32) for name in ("interleaved", "dtype", "kept", "threads")),
    ]


_write_kv = Kernel("write_kv", _WriteKv)


def kept_code(params: AttentionParams, dtype: torch.dtype) -> int:
    """How the C sources number the dtype of a layer's cache; `dtype` is the model's."""
    return dtype_code(dtype) if params.kv_cache_dtype == "auto" else _CODES[params.kv_cache_dtype]


def write_tokens(
    inputs: tuple[Tensor, Tensor, Tensor],
    rows: tuple[Tensor, Tensor] | None,
    interleaved: bool,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    params: AttentionParams,
) -> None:
    """Write a step's keys and values, rotated where `rows` are given; queries and keys are rotated in place then.

    Args:
        inputs: query, key and value, [T, heads, D], heads contiguous; bfloat16 or float32 on a CPU.
        rows: cos and sin, as the op `rotary` takes them.
        interleaved: likewise.
        kv_cache: of the layer, as `TorchPagedAttention` lays it out.
        slot_mapping: int64 [T].
        params: the layer's constants.
    """
    query, key, value = inputs
    arguments = _WriteKv(
        key=key.data_ptr(),
        value=value.data_ptr(),
        cache=kv_cache.data_ptr(),
        slots=slot_mapping.data_ptr(),
        rows=query.shape[0],
        key_stride=key.stride(0),
        value_stride=value.stride(0),
        num_heads=params.num_heads,
        num_kv_heads=params.num_kv_heads,
        head_size=params.head_size,
        dtype=dtype_code(query.dtype),
        kept=kept_code(params, query.dtype),
        threads=torch.get_num_threads(),
    )
    if rows is not None:
        cos, sin = rows[0].contiguous(), rows[1].contiguous()
        arguments.query, arguments.query_stride = query.data_ptr(), query.stride(0)
        arguments.cos, arguments.sin, arguments.half = cos.data_ptr(), sin.data_ptr(), cos.shape[1]
        arguments.interleaved = interleaved
    _write_kv(arguments)
