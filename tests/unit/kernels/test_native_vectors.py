"""The native kernels as a CPU without AVX-512 has them: the library is compiled for one, in a process of its own."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from quire.api.batch import DeviceInfo
from quire_kernels.native.bfloat16 import vectors_refusal
from quire_kernels.native.build import find_compiler

REFUSAL = vectors_refusal(DeviceInfo("cpu"), "bfloat16")
if REFUSAL is not None:
    pytest.skip(REFUSAL, allow_module_level=True)

HERE = Path(__file__).parent
FLAGS = ("-march=haswell", "-O1")
"""AVX2 and FMA; compiled in a third of the time."""
CASES = (
    "vector_cases.py",
    "test_native_linear.py",
    "test_native_prefill_generic.py",
    "test_native_attention.py::test_equals_the_oracle",
    "test_native_attention.py::test_window_alibi_and_cap",
    "test_native_attention.py::test_a_row_of_nan_leaves_its_neighbours_alone",
    "test_native_ops.py",
    "test_native_sampling.py::test_special_rows",
    "test_native_sampling.py::test_penalties",
    "test_native_weight_only.py::test_equals_exact_integers",
    "test_native_weight_only.py::test_small_groups_are_exact_for_few_rows",
    "test_native_weight_only.py::test_extreme_integers_zeros_and_cancelling_sums",
    "test_native_weight_only.py::test_a_row_that_is_not_finite_leaves_the_others_alone",
    "test_replay_fusion.py",
)


def test_without_avx512() -> None:
    compiler = find_compiler(os.environ)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment["CC"] = shlex.join([*compiler.command, *compiler.flags, *FLAGS])
    options = ("-q", "-x", "-p", "no:cacheprovider")
    found = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(str(HERE / case) for case in CASES)],
        cwd=HERE.parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, f"{found.stdout[-6000:]}\n{found.stderr[-3000:]}"
    assert "skipped" not in found.stdout, found.stdout[-6000:]
