"""Fixtures of the Triton kernels' cases, which run on a GPU or, where TRITON_INTERPRET=1 is set, interpreted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils import deterministic


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fresh memory is NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def mended_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter multiply and round bfloat16 as GPUs do, and refuse addresses beyond the arguments.

    It multiplies bit patterns, cuts bits off instead of rounding, and reads anywhere. It also puts its own functions
    into `triton.language` at each call of a device function, which took most of its time: once a launch is enough.
    """
    import triton
    import triton.language as tl

    if not triton.knobs.runtime.interpret:
        return
    from triton.runtime import interpreter

    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    multiply, load, store = builder.create_dot, builder.create_masked_load, builder.create_masked_store
    convert, prepare = interpreter._convert_float, executor._init_args_hst
    patch_language = interpreter._patch_lang
    memory: list[tuple[int, int]] = []
    patched: set[int] = set()

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        bits = handle.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    def rounded(values: Any, source: Any, target: Any, mode: Any) -> Any:
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(values, source, target, mode)
        flat = torch.from_numpy(np.ascontiguousarray(values).view(np.float32).reshape(-1).copy())
        return flat.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16).reshape(values.shape)

    def remember(self: Any, arguments: Any, keywords: Any) -> Any:
        found = prepare(self, arguments, keywords)
        memory[:] = [span(value) for value in found[0] if isinstance(value, Tensor)]
        patched.clear()  # the end of a launch takes them out again
        return found

    def patch_once(function: Any) -> Any:
        modules = {id(value) for value in function.__globals__.values() if value is tl or value is tl.core}
        if modules <= patched:
            return interpreter._LangPatchScope()
        patched.update(modules)
        return patch_language(function)

    def check(pointers: Any, mask: Any) -> None:
        places = pointers.data[mask.data.astype(bool)].astype(np.int64)
        if not places.size or any(start <= places.min() and places.max() < end for start, end in memory):
            return  # in one of the arguments, as nearly always
        inside = np.zeros(places.shape, dtype=bool)
        for start, end in memory:
            inside |= (places >= start) & (places < end)
        assert inside.all(), "memory beyond the arguments"

    def checked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        check(pointers, mask)
        return load(self, pointers, mask, *rest)

    def checked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        check(pointers, mask)
        return store(self, pointers, value, mask, *rest)

    monkeypatch.setattr(interpreter, "_patch_lang", patch_once)
    monkeypatch.setattr(executor, "_init_args_hst", remember)
    monkeypatch.setattr(interpreter, "_convert_float", rounded)
    monkeypatch.setattr(builder, "create_masked_load", checked_load)
    monkeypatch.setattr(builder, "create_masked_store", checked_store)
    monkeypatch.setattr(
        builder, "create_dot", lambda self, a, b, *rest: multiply(self, widened(a), widened(b), *rest)
    )


def span(tensor: Tensor) -> tuple[int, int]:
    """The addresses of its first element and past its last one."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
