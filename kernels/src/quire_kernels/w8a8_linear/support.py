"""Which instructions for 8-bit integers this CPU has."""

from __future__ import annotations

from quire.api.batch import DeviceInfo, DTypeName
from quire_kernels.native.library import native_library, native_refusal

DOT_PRODUCTS = 1
MATRIX_TILES = 2


def int8_refusal(device: DeviceInfo, dtype: DTypeName) -> str | None:
    """As `native_refusal`, on CPUs that multiply 8-bit integers natively."""
    refusal = native_refusal(device, dtype)
    if refusal is None and instructions() < DOT_PRODUCTS:
        return "this CPU (or the compiler) has no 8-bit dot products (AVX-512 VNNI)"
    return refusal


def instructions() -> int:
    """The best that the library was compiled for and the kernel permits: 0, DOT_PRODUCTS or MATRIX_TILES."""
    return int(native_library().quire_int8_instructions())
