"""Shared by all tests."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tiny models: a second thread only waits, and on a busy machine it spins.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def has_gpu() -> bool:
    """Whether torch can use a GPU here."""
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `gpu` tests where there is none, with the reason."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="torch sees no GPU"))


def pytest_report_header() -> str:
    """Say which Python runs, and whether asserts of the code under test are on."""
    return f"python {sys.version.split()[0]}, optimize={sys.flags.optimize}"


@pytest.fixture(scope="session")
def quantized_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The model folder of a tool-made checkpoint of tests/checkpoints, by name."""
    from quantized_checkpoints import assemble

    root = tmp_path_factory.mktemp("checkpoints")
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = assemble(name, root)
        return made[name]

    return folder
