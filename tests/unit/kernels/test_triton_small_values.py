"""Triton's attention over quantized caches of small and large values, in the interpreter."""

from __future__ import annotations

import pytest
from triton_runs import run_cases

pytest.importorskip("triton")


def test_in_the_interpreter() -> None:
    run_cases("triton_small_values_cases.py", interpret=True)
