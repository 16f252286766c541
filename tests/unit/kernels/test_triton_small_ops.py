"""The small Triton ops: in Triton's interpreter, what is registered, what was compiled, and on a GPU."""

from __future__ import annotations

import inspect
import json

import pytest
from triton_runs import ROOT, run_cases

from quire.api.batch import DeviceInfo
from quire.api.specs import OpImplSpec
from quire.ops.specs import core_op_specs
from quire.plugins import resolve_factory
from quire_kernels.triton_plugin import quire_register_ops, small_op_refusal

pytest.importorskip("triton")

CASES = ["triton_small_op_cases.py", "triton_stream_op_cases.py"]


@pytest.mark.parametrize("cases", CASES)
def test_in_the_interpreter(cases: str) -> None:
    run_cases(cases, "-m", "not gpu and not nightly", interpret=True)


@pytest.mark.nightly
@pytest.mark.parametrize("cases", CASES)
def test_conformance_in_the_interpreter(cases: str) -> None:
    run_cases(cases, "-m", "nightly", interpret=True)


@pytest.mark.nightly
def test_the_engine_in_the_interpreter() -> None:
    run_cases("triton_small_op_engine_cases.py", interpret=True)


@pytest.mark.gpu
@pytest.mark.parametrize("cases", [*CASES, "triton_small_op_engine_cases.py"])
def test_on_a_gpu(cases: str) -> None:
    run_cases(cases, interpret=False)


def test_every_small_op_of_core_has_a_kernel_of_its_signature() -> None:
    small = [spec for spec in core_op_specs() if not spec.name.endswith("linear")]
    references = {spec.name: spec.reference for spec in small}
    kernels = {spec.op: spec for spec in quire_register_ops() if isinstance(spec, OpImplSpec)}
    assert references.keys() <= kernels.keys()
    for op, reference in references.items():
        assert kernels[op].supports is small_op_refusal
        found, expected = resolve_factory(kernels[op].factory), resolve_factory(reference)
        assert inspect.signature(found) == inspect.signature(expected)  # type: ignore[arg-type]  # both functions


@pytest.mark.parametrize(
    ("device", "dtype", "reason"),
    [
        (DeviceInfo("cuda", capabilities=frozenset({"sm_90"})), "bfloat16", None),
        (DeviceInfo("cuda", capabilities=frozenset({"gfx942"})), "float32", None),
        (DeviceInfo("cuda", capabilities=frozenset({"sm_90"})), "float64", "lose the digits of float64"),
        (DeviceInfo("cuda", capabilities=frozenset({"sm_75"})), "float16", "sm_80 or later, not sm_75"),
        (DeviceInfo("cpu"), "float32", "needs a CUDA or ROCm device, not cpu"),
    ],
)
def test_support(device: DeviceInfo, dtype: str, reason: str | None) -> None:
    found = small_op_refusal(device, dtype)  # type: ignore[arg-type]  # parametrized as str
    assert found is None if reason is None else reason in (found or "")


def test_the_record_has_all_kernels_for_all_targets() -> None:
    """`triton_aot.py` compiles them (see test_triton_linears.py) and writes what they take."""
    record = json.loads((ROOT / "benchmarks" / "results" / "triton-aot.json").read_text())
    for target in ("sm_80", "sm_90", "gfx942"):
        kernels = [kernel for kernel in record["kernels"] if kernel["target"] == target]
        for name in ("rms_norm_rows", "layer_norm_rows", "rotate_heads", "activate_rows", "take_rows"):
            found = [kernel for kernel in kernels if kernel["kernel"] == name]
            dtypes = {kernel["dtypes"].removesuffix(" int64") for kernel in found}
            assert dtypes == {"bfloat16", "float16", "float32"}
            assert all(kernel["spilled_bytes"] == 0 for kernel in found)
        assert {kernel["dtypes"] for kernel in kernels if kernel["kernel"] == "copy_words"} == {
            "int32 int64",
            "int64 uint8",
        }
        flags = {flag for kernel in kernels for flag in kernel["constants"].split() if "ACTIVATION" in flag}
        assert flags == {f"ACTIVATION={name}" for name in ("silu", "gelu", "gelu_tanh", "relu")}
