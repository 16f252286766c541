"""Which instructions for bfloat16 this CPU has."""

from __future__ import annotations

from quire.api.batch import DeviceInfo, DTypeName
from quire_kernels.native.library import native_library, native_refusal

DOT_PRODUCTS = 1
MATRIX_TILES = 2


def bfloat16_refusal(device: DeviceInfo, dtype: DTypeName) -> str | None:
    """As `native_refusal`, for bfloat16 alone, on CPUs that multiply it natively."""
    refusal = native_refusal(device, dtype)
    if refusal is not None:
        return refusal
    if dtype != "bfloat16":
        return f"the kernel serves bfloat16, not {dtype}"
    if instructions() < DOT_PRODUCTS:
        return "this CPU (or the compiler) has no bfloat16 dot products (AVX512_BF16)"
    return None


def instructions() -> int:
    """The best that the library was compiled for and the kernel permits: 0, DOT_PRODUCTS or MATRIX_TILES."""
    return int(native_library().quire_bfloat16_instructions())
