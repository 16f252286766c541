"""Kernels of the library, and who writes down their calls."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import cast

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from quire_kernels.native.library import native_library

OUT_OF_RANGE = 2
"""A kernel's status, as in team.h; 1: memory is short."""


@dataclass(slots=True)
class SharedArguments:
    """Arguments that all layers of a step share, by a pointer to them; `batch.attention` may be such.

    Attributes:
        arguments: their number of bytes is the same in every step.
    """

    arguments: ctypes.Structure


class Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types for it
    """What notes the native calls of a model while it runs; a mode of torch, so that it sees torch's calls too."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch asks: if so, it would import its compiler to switch it off, which takes a second."""
        return False

    def add(self, kernel: Kernel, arguments: ctypes.Structure) -> None:
        """Note a call, before it is made."""
        raise NotImplementedError

    def refuse(self, what: str) -> None:
        """Something cannot be replayed; raises."""
        raise NotImplementedError


class Kernel:
    """A kernel of the library; see team.h.

    Its arguments are a C structure: pointers are `c_void_p`, `rows` (int64) is a multiple of the step's tokens, and
    nothing else in it depends on their number.

    Attributes:
        team: the address of the function that each thread of a team calls.
    """

    def __init__(self, name: str, arguments: type[ctypes.Structure]) -> None:
        """Find `quire_NAME` and `quire_NAME_team`."""
        library = native_library()
        self.name = name
        self._function = library[f"quire_{name}"]
        self._function.argtypes = [ctypes.POINTER(arguments)]
        self.team = cast(int, ctypes.cast(library[f"quire_{name}_team"], ctypes.c_void_p).value)

    def __call__(self, arguments: ctypes.Structure) -> None:
        """Run it by a team of its own; MemoryError where there is no memory for its copies."""
        note = recording()
        if note is not None:
            note.add(self, arguments)
        raise_failure(self._function(arguments), f"the native kernel {self.name}")


def raise_failure(status: int, what: str) -> None:
    """Raise what a kernel's status stands for, if it is not 0."""
    if status & OUT_OF_RANGE:
        raise IndexError(f"{what}: an index is out of range")
    if status:
        raise MemoryError(f"no memory for {what}")


def recording() -> Recording | None:
    """What notes calls now, if anything does."""
    if not torch._C._len_torch_dispatch_stack():
        return None
    modes = _get_current_dispatch_mode_stack()
    return next((mode for mode in reversed(modes) if isinstance(mode, Recording)), None)


def refuse_recording(what: str) -> None:
    """Called by what makes native calls other than by kernels: they cannot be written down."""
    note = recording()
    if note is not None:
        note.refuse(what)
