"""Which instructions for bfloat16 this CPU has."""

from __future__ import annotations

from quire.api.batch import DeviceInfo, DTypeName
from quire_kernels.native.library import native_library, native_refusal

VECTORS = 0
"""Of float32, which bfloat16 is widened to."""
DOT_PRODUCTS = 1
MATRIX_TILES = 2

NO_VECTORS = 0
_VECTOR_NAMES = ("a CPU without AVX2 and FMA", "AVX2 and FMA", "AVX-512")


def bfloat16_refusal(device: DeviceInfo, dtype: DTypeName) -> str | None:
    """As `native_refusal`, for bfloat16 alone, on CPUs that multiply it natively."""
    refusal = _dtype_refusal(device, dtype)
    if refusal is None and instructions() < DOT_PRODUCTS:
        return f"compiled for {vector_name()}, without bfloat16 dot products (AVX512_BF16)"
    return refusal


def vectors_refusal(device: DeviceInfo, dtype: DTypeName) -> str | None:
    """As `native_refusal`, for bfloat16 alone, on CPUs that multiply float32 in vectors of 8 or 16."""
    refusal = _dtype_refusal(device, dtype)
    if refusal is None and vector_instructions() == NO_VECTORS:
        return f"compiled for {vector_name()}"
    return refusal


def _dtype_refusal(device: DeviceInfo, dtype: DTypeName) -> str | None:
    refusal = native_refusal(device, dtype)
    if refusal is None and dtype != "bfloat16":
        return f"the kernel serves bfloat16, not {dtype}"
    return refusal


def instructions() -> int:
    """The best that the library was compiled for and the kernel permits: VECTORS, DOT_PRODUCTS or MATRIX_TILES."""
    return int(native_library().quire_bfloat16_instructions())


def vector_instructions() -> int:
    """What the library was compiled for: NO_VECTORS, 1 (AVX2 and FMA) or 2 (AVX-512)."""
    return int(native_library().quire_vector_instructions())


def vector_name() -> str:
    """The same in words."""
    return _VECTOR_NAMES[vector_instructions()]
