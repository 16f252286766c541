"""The Triton linears: in Triton's interpreter, compiled for real targets without a GPU, and on a GPU."""

from __future__ import annotations

import itertools
import re
import struct
import sys
from collections.abc import Sequence

import pytest
from triton_runs import HERE, run_cases, run_python

from quire.api.batch import DeviceInfo
from quire_kernels.triton.plans import Device, make_plan
from quire_kernels.triton_plugin import triton_refusal

H200 = Device(processors=132, is_cuda=True)

pytest.importorskip("triton")


def test_in_the_interpreter() -> None:
    run_cases("triton_cases.py", "-m", "not gpu", interpret=True)


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    run_cases("triton_cases.py", interpret=False)


def test_compiled_for_real_targets() -> None:
    """All kernels that the plans choose, for sm_80, sm_90 and gfx942, within their limits."""
    run_python(str(HERE / "triton_aot.py"))


class TestAssembly:
    """The PTX that unpacks two values at a time, executed by the few lines of an emulator below."""

    @pytest.mark.parametrize("zero", [0, 1, 7, 8, 15])
    def test_four_bits(self, zero: int) -> None:
        for is_bfloat16, field in itertools.product((True, False), range(4)):
            for word in range(0, 1 << 16, 37):
                halves = word | (word * 7 + 3) % (1 << 16) << 16
                expected = [(half >> 4 * field & 15) - zero for half in (halves & 0xFFFF, halves >> 16)]
                assert unpacked(halves, zero, field, 4, is_bfloat16) == expected

    @pytest.mark.parametrize("zero", [0, 1, 127, 128, 255])
    def test_eight_bits(self, zero: int) -> None:
        for is_bfloat16, field in itertools.product((True, False), range(2)):
            for word in range(0, 1 << 16, 37):
                halves = word | (word * 7 + 3) % (1 << 16) << 16
                expected = [(half >> 8 * field & 255) - zero for half in (halves & 0xFFFF, halves >> 16)]
                assert unpacked(halves, zero, field, 8, is_bfloat16) == expected


def unpacked(halves: int, zero: int, field: int, bits: int, is_bfloat16: bool) -> list[float]:
    """What the assembly gives for two halves."""
    from quire_kernels.triton.weight_only_kernels import magic_number, unpack_assembly

    offset = encode(-(zero + magic_number(bits, is_bfloat16)), is_bfloat16)
    text = unpack_assembly(field, bits, is_bfloat16)
    registers = {"$1": halves, "$2": offset | offset << 16}
    for line in text.strip("{} ").split(";"):
        name, _, operands = line.strip().partition(" ")
        if name and name != ".reg":
            target, *sources = (operand.strip() for operand in operands.split(","))
            values = [registers[s] if s in registers else int(s, 0) for s in sources]
            registers[target] = execute(name, values, is_bfloat16)
    return [decode(registers["$0"] >> shift & 0xFFFF, is_bfloat16) for shift in (0, 16)]


def execute(name: str, values: Sequence[int], is_bfloat16: bool) -> int:
    if name == "lop3.b32":
        a, b, c, table = values
        assert table == (0xF0 & 0xCC | 0xAA)  # PTX's way to write (a & b) | c
        return a & b | c
    if name.startswith("fma.rn"):
        assert name == ("fma.rn.bf16x2" if is_bfloat16 else "fma.rn.f16x2")
        a, b, c = ([decode(value >> shift & 0xFFFF, is_bfloat16) for shift in (0, 16)] for value in values)
        low, high = (encode(x * y + z, is_bfloat16) for x, y, z in zip(a, b, c, strict=True))
        return low | high << 16
    operations = {
        "mov.b32": lambda a: a,
        "shr.b32": lambda a, b: a >> b,
        "and.b32": lambda a, b: a & b,
        "mul.lo.u32": lambda a, b: a * b & 0xFFFFFFFF,
    }
    return operations[name](*values)


def decode(bits: int, is_bfloat16: bool) -> float:
    if is_bfloat16:
        return float(struct.unpack("<f", struct.pack("<I", bits << 16))[0])
    return float(struct.unpack("<e", struct.pack("<H", bits))[0])


def encode(value: float, is_bfloat16: bool) -> int:
    """The bits of a number that the format can hold."""
    pattern = struct.pack("<f", value)[2:] if is_bfloat16 else struct.pack("<e", value)
    bits = int(struct.unpack("<H", pattern)[0])
    assert decode(bits, is_bfloat16) == value, f"{value} is not exact"
    return bits


class TestPlans:
    @pytest.mark.parametrize("rows", [1, 2, 8, 9, 16, 17, 64, 100, 256])
    @pytest.mark.parametrize("group", [32, 64, 128, 4096])
    @pytest.mark.parametrize("bits", [4, 8])
    def test_groups_fit_steps(self, rows: int, group: int, bits: int) -> None:
        per_word = 32 // bits
        plan = make_plan(rows, 4096, 4096 // per_word, group // per_word, H200)
        assert plan.grouping == {32: "words" if bits == 4 else "steps", 4096: "one"}.get(group, "steps")
        if plan.grouping == "steps":
            assert group % (plan.block_words * per_word) == 0
        assert plan.block_words >= 8  # a product of 16 inputs
        assert plan.block_rows >= min(rows, 128)
        assert plan.block_rows < 2 * max(rows, 8)

    def test_few_outputs_are_split_until_the_processors_are_busy(self) -> None:
        for outputs, inputs in ((4096, 4096), (4096, 14336), (6144, 4096), (28672, 4096)):
            plan = make_plan(1, outputs, inputs // 8, 16, H200)
            programs = -(-outputs // plan.block_outputs) * plan.splits
            assert programs >= 1.9 * H200.processors
            assert inputs // (8 * plan.block_words) >= 4 * plan.splits
        assert make_plan(1, 28672, 512, 16, H200).splits == 1

    def test_rows_of_one_bucket_share_a_plan(self) -> None:
        """Then they share a compiled kernel, too."""
        plans = {make_plan(rows, 4096, 512, 16, H200) for rows in range(9, 17)}
        assert len(plans) == 1


@pytest.mark.parametrize(
    ("device", "dtype", "reason"),
    [
        (DeviceInfo("cuda", capabilities=frozenset({"sm_90"})), "bfloat16", None),
        (DeviceInfo("cuda", capabilities=frozenset({"sm_80"})), "float16", None),
        (DeviceInfo("cuda", capabilities=frozenset({"gfx942"})), "bfloat16", None),
        (DeviceInfo("cuda", capabilities=frozenset({"sm_75"})), "float16", "sm_80 or later, not sm_75"),
        (DeviceInfo("cuda", capabilities=frozenset({"sm_90"})), "float32", "not float32"),
        (DeviceInfo("cpu"), "bfloat16", "needs a CUDA or ROCm device, not cpu"),
    ],
)
def test_support(device: DeviceInfo, dtype: str, reason: str | None) -> None:
    found = triton_refusal(device, dtype)  # type: ignore[arg-type]  # a name of a dtype
    assert found is None if reason is None else reason in (found or "")


def test_without_triton_there_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    device = DeviceInfo("cuda", capabilities=frozenset({"sm_90"}))
    assert re.search("pip install triton", triton_refusal(device, "bfloat16") or "")


def test_the_plugin_imports_neither_torch_nor_triton() -> None:
    code = "import sys, quire_kernels.triton_plugin; assert not {'torch', 'triton'} & set(sys.modules)"
    run_python("-c", code)
