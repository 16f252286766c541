"""Which device this is, in the words of the contract."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil
import torch

from quire.api.batch import DeviceInfo
from quire.api.errors import DeviceError

_CGROUP = Path("/sys/fs/cgroup")
_CPUINFO = Path("/proc/cpuinfo")


def detect_device(name: str = "auto") -> DeviceInfo:
    """Describe a device.

    Args:
        name: "auto" (the first CUDA device if there is one, else the CPU), "cpu", "cuda" or "cuda:N".

    Raises:
        DeviceError: the name is malformed, or there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return _describe_cpu()
    kind, _, index = name.partition(":")
    if kind != "cuda" or (":" in name and not index.isdecimal()):
        raise DeviceError(f"device {name!r} is unknown: give auto, cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        version = torch.__version__
        raise DeviceError(f"device {name!r} was asked for, but torch {version} sees no GPU: use cpu")
    count = torch.cuda.device_count()
    number = int(index) if index else torch.cuda.current_device()
    if number >= count:
        raise DeviceError(f"device {name!r} was asked for, but there are {count}: cuda:0 to cuda:{count - 1}")
    return _describe_cuda(number)


def _describe_cuda(index: int) -> DeviceInfo:
    free, total = torch.cuda.mem_get_info(index)
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        capability = str(properties.gcnArchName).partition(":")[0]
    else:
        capability = f"sm_{properties.major}{properties.minor}"
    return DeviceInfo(
        type="cuda",
        index=index,
        name=str(properties.name),
        capabilities=frozenset({capability}),
        total_memory_bytes=total,
        free_memory_bytes=free,
        num_threads=torch.get_num_threads(),
    )


def _describe_cpu() -> DeviceInfo:
    model, capabilities = _cpu_model()
    total, free = host_memory_bytes()
    return DeviceInfo(
        type="cpu",
        name=model,
        capabilities=capabilities,
        total_memory_bytes=total,
        free_memory_bytes=free,
        num_threads=torch.get_num_threads(),
    )


def host_memory_bytes() -> tuple[int, int]:
    """The host's memory, all and free now; no more than the control group allows."""
    memory = psutil.virtual_memory()
    total, free = int(memory.total), int(memory.available)
    limit = _cgroup_limit(_CGROUP)
    if limit is not None:
        total, free = min(total, limit[0]), min(free, limit[0] - limit[1])
    return total, max(0, free)


def _cpu_model() -> tuple[str, frozenset[str]]:
    """The CPU's name, and its instruction sets as Linux spells them (elsewhere only what torch uses)."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    flags = fields.get("flags") or fields.get("features") or torch.backends.cpu.get_cpu_capability().lower()
    return fields.get("model name") or platform.processor() or platform.machine(), frozenset(flags.split())


def _cgroup_limit(root: Path) -> tuple[int, int] | None:
    """Bytes allowed and bytes in use of the control group (v2, then v1); None without a limit."""
    for limit_name, usage_name, folder in (
        ("memory.max", "memory.current", root),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", root / "memory"),
    ):
        limit, usage = _read_int(folder / limit_name), _read_int(folder / usage_name)
        if limit is not None and usage is not None and limit < 1 << 60:
            return limit, max(0, usage - _reclaimable(folder / "memory.stat"))
    return None


def _reclaimable(path: Path) -> int:
    """Bytes of file cache that the kernel drops when memory is short."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    pairs = dict(line.split(" ", 1) for line in lines if " " in line)
    return int(pairs.get("total_inactive_file") or pairs.get("inactive_file") or 0)


def _read_int(path: Path) -> int | None:
    """The number in a file; None when there is no such file or no number in it ("max")."""
    if not os.access(path, os.R_OK):
        return None
    text = path.read_text(encoding="ascii").strip()
    return int(text) if text.isdecimal() else None
