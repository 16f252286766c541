"""What keeps pages of KV caches from being brought ahead, and starts that fail."""

from __future__ import annotations

import logging
import mmap
import os
import sys
import threading
from pathlib import Path

import pytest
import torch

from quire import LLM
from quire.api.errors import TokenizerError
from quire.execution import host_memory
from quire.execution.host_memory import BackgroundPages, lazy_zeros
from quire.testing.tiny_models import write_tiny_llama

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux brings pages on demand")


def bring(caplog: pytest.LogCaptureFixture, num_pages: int = 100) -> str:
    """Bring the pages of a cache, and what was told."""
    cache = lazy_zeros((num_pages * mmap.PAGESIZE,), torch.uint8)
    with caplog.at_level(logging.DEBUG, logger="quire"):
        assert BackgroundPages([cache], delay_s=0).join(60)
    return caplog.text


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_system_without_idle_priority_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    assert "no idle priority: Operation not permitted" in bring(caplog)


def test_memory_that_becomes_short_is_left_to_others(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Half of it comes: the kernel refuses nothing, and ends a process where there is no more."""
    looks: list[int] = []

    def memory() -> tuple[int, int]:
        looks.append(len(looks))
        return 100, 11 - 2 * len(looks) // 2

    monkeypatch.setattr(host_memory, "host_memory_bytes", memory)
    monkeypatch.setattr(host_memory, "_SLICE_BYTES", mmap.PAGESIZE)
    assert "less than 10% of the memory is free" in bring(caplog)
    assert len(looks) == 2, "it looked again after a while"


def test_a_start_that_fails_leaves_no_thread(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path)
    with pytest.raises(TokenizerError, match="neither a template nor a readable file"):
        LLM(folder, device="cpu", skip_tokenizer_init=True, max_model_len=32, chat_template="/no.jinja")
    assert not [thread for thread in threading.enumerate() if thread.name == "quire-kv-pages"]


@pytest.mark.parametrize("is_asked", [True, False])
def test_a_start_that_succeeds_brings_them_until_the_end(tmp_path: Path, *, is_asked: bool) -> None:
    folder = write_tiny_llama(tmp_path)
    with LLM(folder, device="cpu", skip_tokenizer_init=True, max_model_len=32, prefault_kv_cache=is_asked):
        found = [thread for thread in threading.enumerate() if thread.name == "quire-kv-pages"]
    assert len(found) == is_asked and not any(thread.is_alive() for thread in found)
