"""What the worker asks of an engine, and how its options are read."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from workloads import Job

Options = Mapping[str, str]
"""Of one engine, from the command line."""

MAX_MODEL_LEN = 4352
"""Room for the longest workload: 4096 tokens in, some out."""
MAX_NUM_SEQS = 64


class PeerEngine(Protocol):
    """A loaded model. Decoding is greedy and runs past any end token."""

    def generate(self, jobs: Sequence[Job], shared_prefix: int) -> list[int]:
        """Run jobs that arrive together; the number of tokens that each got.

        Args:
            jobs: their prompts begin with `shared_prefix` common tokens, which engines that find these on
                their own may ignore.
        """
        ...

    def stream(self, job: Job) -> list[float]:
        """Run one job alone; seconds from its submission to each of its tokens."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


class EngineFactory(Protocol):
    """Loads a model; the docstring of each says its options.

    Attributes:
        packages: distributions whose versions belong to the record.
    """

    packages: tuple[str, ...]

    def __call__(self, model: Path, options: Options, num_threads: int) -> PeerEngine:
        """Load the model of a folder; raises ImportError where the engine is not installed."""
        ...


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Versions of those distributions that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
