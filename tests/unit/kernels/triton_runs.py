"""Running Python in processes of their own: Triton reads TRITON_INTERPRET when kernels are defined."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def run_python(*arguments: str, interpret: bool = False) -> None:
    """Run Python at the root of the repository, interpreting Triton kernels or not; it must succeed."""
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("TRITON_", "PYTEST_"))
    }
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    found = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, f"{found.stdout[-6000:]}\n{found.stderr[-3000:]}"


def run_cases(file: str, *selection: str, interpret: bool) -> None:
    """Run the pytest cases of a file beside this one."""
    options = ("-q", "-p", "no:cacheprovider", *selection)
    run_python("-m", "pytest", *options, str(HERE / file), interpret=interpret)
