"""Whether memory was asked to lie on large pages."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import pytest

NEEDS_LARGE_PAGES = pytest.mark.skipif(
    not Path("/proc/self/smaps").exists() or not hasattr(mmap, "MADV_HUGEPAGE"),
    reason="what pages there are is read from Linux's /proc",
)


def flags_at(address: int) -> list[str]:
    """VmFlags of the mapping that an address is in: `hg` where large pages were asked for."""
    is_found = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            is_found = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif is_found and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError("no mapping holds the address")
