"""Sampling in Triton: in Triton's interpreter, what was compiled, and on a GPU."""

from __future__ import annotations

import json

import pytest
from triton_runs import ROOT, run_cases

pytest.importorskip("triton")

CASES = "triton_sampling_cases.py"


def test_in_the_interpreter() -> None:
    run_cases(CASES, "-m", "not gpu and not nightly", interpret=True)


@pytest.mark.nightly
def test_conformance_in_the_interpreter() -> None:
    run_cases(CASES, "-m", "nightly", interpret=True)


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    run_cases(CASES, interpret=False)


def test_the_record_has_all_kernels_for_all_targets() -> None:
    """`triton_aot.py` compiles them (see test_triton_linears.py) and writes what they take."""
    record = json.loads((ROOT / "benchmarks" / "results" / "triton-aot.json").read_text())
    for target in ("sm_80", "sm_90", "gfx942"):
        kernels = [kernel for kernel in record["kernels"] if kernel["target"] == target]
        for name, num_dtypes in (
            ("greedy_rows", 3),
            ("gather_candidates", 3),
            ("draw_tokens", 3),
            ("penalise_rows", 1),
        ):
            found = [kernel for kernel in kernels if kernel["kernel"] == name]
            assert len({kernel["dtypes"] for kernel in found}) == num_dtypes
            assert all(kernel["spilled_bytes"] == 0 for kernel in found)
