"""Compiles what the Triton kernels launch for real targets, without a GPU: `python triton_aot.py [--output FILE]`.

The host code runs on meta tensors; every launch is compiled by Triton as on the target, and not run. What
the compiler reports (shared memory, registers, spills) is held against the target's limits. TRITON_INTERPRET
must not be set.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
import triton_aot_attention
import triton_aot_sampling
import triton_aot_small_ops
from torch import Tensor
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget

from quire_kernels.paged_attention import triton as paged_attention
from quire_kernels.triton import weight_only
from quire_kernels.triton.plans import Device


@dataclass(frozen=True)
class Target:
    """A GPU to compile for: its processors, and the shared memory that one program may have."""

    gpu: GPUTarget
    processors: int
    shared_bytes: int


TARGETS = {
    "sm_80": Target(GPUTarget("cuda", 80, 32), 108, 163 << 10),
    "sm_90": Target(GPUTarget("cuda", 90, 32), 132, 227 << 10),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), 304, 64 << 10),
}


@dataclass(frozen=True)
class Case:
    """One call."""

    rows: int
    inputs: int = 4096
    outputs: int = 4096
    group: int = 128
    bits: int = 4
    dtype: torch.dtype = torch.bfloat16
    scale_dtype: torch.dtype = torch.float16
    has_zeros: bool = False
    has_order: bool = False
    has_bias: bool = False


def cases() -> Iterator[Case]:
    """All block sizes and kinds of groups that plans choose, and each flag and dtype at least once."""
    half, single = torch.float16, torch.float32
    for rows in (1, 16, 32, 64, 256):
        yield Case(rows)
        yield Case(rows, bits=8, dtype=torch.bfloat16 if rows in (1, 64) else half, has_zeros=True)
    for rows in (1, 16, 32):
        yield Case(rows, outputs=131072, dtype=half, has_zeros=True)
    for group, bits in ((32, 4), (64, 4), (4096, 4), (32, 8), (4096, 8)):
        yield Case(1, group=group, bits=bits, scale_dtype=torch.bfloat16, has_zeros=True)
    for group, bits in ((32, 4), (4096, 4), (32, 8)):
        yield Case(256, group=group, bits=bits, has_zeros=True, has_order=True)
    for bits in (4, 8):
        yield Case(3, 1000, 1001, 1000, bits=bits, scale_dtype=single, has_bias=True)
        yield Case(300, 1000, 1001, 200, bits=bits, has_zeros=True)


@dataclass(frozen=True)
class Compiled:
    """A kernel for one target; dtypes are those of its tensors, spills are local memory of one thread."""

    target: str
    kernel: str
    constants: str
    dtypes: str
    warps: int
    shared_bytes: int
    registers: int
    spilled_bytes: int
    matrix_instructions: int
    binary_bytes: int

    def faults(self) -> Iterator[str]:
        """Why it could not run, or not well."""
        limit = TARGETS[self.target].shared_bytes
        if self.shared_bytes > limit:
            yield f"{self.shared_bytes} bytes of shared memory, {self.target} has {limit}"
        if self.spilled_bytes > 64:
            yield f"{self.spilled_bytes} bytes spilled"
        is_product = self.kernel in ("tiled_product", "attend") and "float16" in self.dtypes
        if is_product and not self.matrix_instructions:
            yield "no matrix instructions"


class FakeDriver:
    """Answers what compiling asks; each target is a device of its own, for Triton caches by device."""

    def __init__(self, name: str) -> None:
        self._index = list(TARGETS).index(name)
        self._target = TARGETS[name].gpu

    def get_current_device(self) -> int:
        return self._index

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self._target


def compile_for(name: str, *, is_thorough: bool) -> list[Compiled]:
    """Compile all launches of all cases for one target; of attention, of all layers only where thorough."""
    target, found = TARGETS[name], dict[int, Compiled]()
    run = triton.JITFunction.run

    def record(function: Any, *args: Any, grid: object, warmup: bool, **kwargs: Any) -> None:
        kernel = run(function, *args, grid=grid, warmup=True, **kwargs)
        if id(kernel) not in found:
            found[id(kernel)] = _describe(name, function.__name__, args, kwargs, kernel)

    device = Device(target.processors, is_cuda=target.gpu.backend == "cuda")
    weight_only.device_traits = paged_attention.device_traits = lambda _: device
    triton.runtime.driver.set_active(FakeDriver(name))
    triton.JITFunction.run = record
    try:
        for case in cases():
            _call(case)
        for call in triton_aot_small_ops.calls():
            before = len(found)
            for rows in triton_aot_small_ops.ROWS:
                call(rows)
            assert len(found) <= before + 1, f"{call} compiled {len(found) - before} kernels"
        for call in triton_aot_sampling.calls():
            before = len(found)
            for rows in triton_aot_small_ops.ROWS:
                call(rows)
            most = triton_aot_sampling.MOST_KERNELS
            assert len(found) <= before + most, f"{call} compiled {len(found) - before} kernels"
        for layer in triton_aot_attention.layers(is_thorough=is_thorough):
            before = len(found)
            for step in triton_aot_attention.STEPS:
                triton_aot_attention.attend(layer, step)
            most = triton_aot_attention.MOST_KERNELS
            assert len(found) <= before + most, f"{layer} compiled {len(found) - before} kernels"
    finally:
        triton.JITFunction.run = run
    return list(found.values())


def _call(case: Case) -> None:
    def tensor(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    tiles, groups = -(-case.outputs // 16), case.inputs // case.group
    weight_only.weight_only_linear(
        tensor(case.rows, case.inputs, dtype=case.dtype),
        tensor(tiles, case.inputs * case.bits // 32, 16, dtype=torch.int32),
        tensor(tiles, groups, 16, dtype=case.scale_dtype),
        tensor(tiles, groups, 16, dtype=torch.uint8) if case.has_zeros else None,
        tensor(case.inputs, dtype=torch.int32) if case.has_order else None,
        tensor(case.outputs, dtype=case.dtype) if case.has_bias else None,
        case.outputs,
        case.bits,
    )


def _describe(
    target: str, name: str, tensors: Sequence[object], constants: dict[str, object], kernel: Any
) -> Compiled:
    text = kernel.asm.get("ptx") or kernel.asm["amdgcn"]
    binary = kernel.asm.get("cubin") or kernel.asm["hsaco"]
    registers, spilled = _cuda_resources(binary) if "cubin" in kernel.asm else _hip_resources(text)
    return Compiled(
        target,
        name,
        " ".join(f"{key}={value}" for key, value in constants.items() if key.isupper()),
        " ".join(sorted({str(value.dtype)[6:] for value in tensors if isinstance(value, Tensor)})),
        kernel.metadata.num_warps,
        kernel.metadata.shared,
        registers,
        spilled,
        len(re.findall(r"mma\.sync|wgmma\.mma_async|v_mfma", text)),
        len(binary),
    )


def _cuda_resources(binary: bytes) -> tuple[int, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        tool = Path(nvidia.__path__[0]) / "bin" / "cuobjdump"
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # for mypy: the tool prints it
    found = {key: int(re.search(rf"{key}:(\d+)", text)[1]) for key in ("REG", "LOCAL", "STACK")}  # type: ignore[index]
    return found["REG"], found["LOCAL"] + found["STACK"]


def _hip_resources(text: str) -> tuple[int, int]:
    registers, spilled = (
        int(re.search(rf"\.{key}:\s+(\d+)", text)[1])  # type: ignore[index]  # the tool prints it
        for key in ("vgpr_count", "vgpr_spill_count")
    )
    return registers, 4 * spilled


def main() -> int:
    """Compile for all targets, print a summary; 1 if a kernel has a fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="write all kernels with their resources as JSON")
    parser.add_argument("--all", action="store_true", help="all kinds of attention layers")
    parser.add_argument("--target", choices=sorted(TARGETS), action="append")
    args = parser.parse_args()
    kernels: list[Compiled] = []
    for name in args.target or TARGETS:
        start = time.perf_counter()
        kernels += compile_for(name, is_thorough=args.all)
        count = collections.Counter(kernel.target for kernel in kernels)[name]
        print(f"{name}: {count} kernels in {time.perf_counter() - start:.1f} s")
    faults = [(kernel, fault) for kernel in kernels for fault in kernel.faults()]
    for kernel, fault in faults:
        print(f"{kernel.target} {kernel.kernel} {kernel.constants}: {fault}")
    if args.output:
        lines = ",\n  ".join(json.dumps(asdict(kernel)) for kernel in kernels)
        args.output.write_text(f'{{"triton": "{triton.__version__}", "kernels": [\n  {lines}\n]}}\n')
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
