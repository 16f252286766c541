"""The loaded library, and whether there is one."""

from __future__ import annotations

import ctypes
import functools
import importlib
import logging
import os
from pathlib import Path

from quire.api.batch import DeviceInfo, DTypeName
from quire_kernels.native.build import NativeBuildError, build_library

DTYPE_CODES: dict[DTypeName, int] = {"bfloat16": 0, "float32": 1}

logger = logging.getLogger("quire.kernels")


def native_refusal(device: DeviceInfo, dtype: DTypeName) -> str | None:
    """None where the native kernels serve, else the reason why not. May compile them: once, some seconds."""
    if device.type != "cpu":
        return f"native kernels run on CPUs, not on {device.type}"
    if dtype not in DTYPE_CODES:
        return f"native kernels serve {' and '.join(DTYPE_CODES)}, not {dtype}"
    loaded = _load()
    return loaded if isinstance(loaded, str) else None


def native_library() -> ctypes.CDLL:
    """The library.

    Raises:
        NativeBuildError: there is none (see `native_refusal`).
    """
    loaded = _load()
    if isinstance(loaded, str):
        raise NativeBuildError(loaded)
    return loaded


@functools.cache
def _load() -> ctypes.CDLL | str:
    """The library, or why there is none; asked once in a process."""
    importlib.import_module("torch")  # its OpenMP runtime comes first, so that both share their threads
    try:
        path = build_library(os.environ, loaded_openmp())
        return ctypes.CDLL(str(path))
    except (NativeBuildError, OSError) as error:
        logger.warning("the CPU kernels are not used, slower ones of torch serve: %s", error)
        return str(error)


def loaded_openmp() -> Path | None:
    """The OpenMP runtime that is mapped into this process (Linux), or None."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        path = line.partition("/")[2]
        if path.rpartition("/")[2].startswith(("libgomp", "libiomp5", "libomp")):
            return Path("/" + path)
    return None
