"""Whether this CPU serves `fp8_linear` natively."""

from __future__ import annotations

from quire.api.batch import DeviceInfo, DTypeName
from quire_kernels.native.library import native_library, native_refusal


def fp8_refusal(device: DeviceInfo, dtype: DTypeName) -> str | None:
    """As `native_refusal`, for bfloat16 alone, on CPUs with its dot products and byte tables."""
    refusal = native_refusal(device, dtype)
    if refusal is not None:
        return refusal
    if dtype != "bfloat16":
        return f"the kernel serves bfloat16, not {dtype}"
    if not native_library().quire_fp8_is_supported():
        return "this CPU (or the compiler) lacks AVX512_BF16 or AVX512_VBMI"
    return None
