"""`quire collect-env`: versions, machine and plugins, for bug reports and benchmark records."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
from pathlib import Path

from quire.cli.plugin_flags import add_plugin_flags, plugin_settings
from quire.plugins import PluginHost

PACKAGES = (
    "quire-core",
    "torch",
    "triton",
    "numpy",
    "pydantic",
    "pluggy",
    "safetensors",
    "tokenizers",
    "transformers",
    "huggingface_hub",
)
CPU_FLAGS = (
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "asimd",
    "sve",
)


class CollectEnvCommand:
    """Print what a bug report needs."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The output's form."""
        parser.add_argument("--json", action="store_true", help="print one JSON document")
        add_plugin_flags(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Collect and print."""
        host = PluginHost.discover(plugin_settings(args), strict=False)
        facts: dict[str, object] = {
            **environment(),
            "plugins": {
                f"{entry.name} ({entry.candidate.origin})": entry.status.value for entry in host.records
            },
        }
        print(json.dumps(facts, indent=2) if args.json else _as_text(facts))
        return 0


def environment() -> dict[str, object]:
    """Facts about this process's Python, packages, CPU, memory and GPUs; imports torch."""
    import psutil

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "cpu_flags": _cpu_flags(),
        "memory_bytes": psutil.virtual_memory().total,
        "available_memory_bytes": psutil.virtual_memory().available,
        **_torch_facts(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpuinfo(key: str) -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith(key)), "")


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpu_flags() -> list[str]:
    present = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    return [flag for flag in CPU_FLAGS if flag in present]


def _torch_facts() -> dict[str, object]:
    try:
        import torch
    except ImportError as error:
        return {"torch": f"cannot be imported: {error}"}
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return {
        "torch_threads": torch.get_num_threads(),
        "torch_cuda": torch.version.cuda,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "onednn": torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]  # torch has no types there
        "gpus": [
            {
                "name": torch.cuda.get_device_name(index),
                "memory_bytes": torch.cuda.get_device_properties(index).total_memory,
            }
            for index in devices
        ],
    }


def _as_text(facts: dict[str, object], indent: str = "") -> str:
    lines: list[str] = []
    for key, value in facts.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", _as_text(value, indent + "  ")]
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            lines.append(f"{indent}{key}: {shown}")
    return "\n".join(lines)
