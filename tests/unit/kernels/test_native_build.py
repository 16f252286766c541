"""Compiling the library: cached by what it depends on, and refused with a reason where it cannot be made."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from quire.api.batch import DeviceInfo
from quire_kernels.native import build
from quire_kernels.native.build import NativeBuildError, build_library, cache_folder, find_compiler
from quire_kernels.native.library import loaded_openmp, native_refusal


def environment(folder: Path, **settings: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "QUIRE_CACHE_DIR": str(folder), **settings}


def test_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of the sources, that is; of all of them whatever calls a kernel makes a library."""
    package = tmp_path / "package"
    for name in ("native", "rms_norm"):
        shutil.copytree(build._PACKAGE / name, package / name)
    monkeypatch.setattr(build, "_PACKAGE", package)
    first = build_library(environment(tmp_path), None)
    library = ctypes.CDLL(str(first))
    assert library.quire_rms_norm and library.quire_bfloat16_instructions
    assert [path.name for path in first.parent.iterdir()] == [first.name], "no leftovers"

    def refuse(*_: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(build, "_compile", refuse)
    assert build_library(environment(tmp_path), None) == first
    with monkeypatch.context() as patch, pytest.raises(AssertionError, match="compiled again"):
        patch.setattr(build, "FLAGS", (*build.FLAGS, "-g"))
        build_library(environment(tmp_path), None)
    (package / "native" / "team.h").write_text("/* other threads */")
    with pytest.raises(AssertionError, match="compiled again"):
        build_library(environment(tmp_path), None)


def test_no_compiler(tmp_path: Path) -> None:
    with pytest.raises(NativeBuildError, match="no C compiler.*cc, gcc, clang.*set CC"):
        find_compiler({"PATH": str(tmp_path)})
    with pytest.raises(NativeBuildError, match="looked for missing-cc"):
        find_compiler({"PATH": os.environ["PATH"], "CC": "missing-cc"})


def test_flags_of_the_compiler_come_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = find_compiler(os.environ).command[0]
    compiler = find_compiler(environment(tmp_path, CC=f"{program} -O0 -march=haswell"))
    assert compiler.command == (program,) and compiler.flags == ("-O0", "-march=haswell")
    commands: list[Sequence[str]] = []
    monkeypatch.setattr(build, "_run", lambda command, folder: commands.append(command) or "")
    build._compile(compiler, [tmp_path / "op" / "native.c"], None, tmp_path)
    flags = (*build.FLAGS, *compiler.flags)
    assert tuple(commands[0][1 : 1 + len(flags)]) == flags
    plain = build._key(replace(compiler, flags=()), [], None)
    assert build._key(compiler, [], None) != plain


def test_a_compiler_that_fails(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "x.c:1: error: no luck" >&2\nexit 1\n')
    broken.chmod(0o755)
    with pytest.raises(NativeBuildError, match="error: no luck"):
        build_library(environment(tmp_path / "cache", CC=str(broken)), None)
    assert not list((tmp_path / "cache" / "native").iterdir()), "no leftovers"


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NativeBuildError, match="set QUIRE_CACHE_DIR"):
        build_library(environment(tmp_path / "file"), None)


def test_where_libraries_are_kept(tmp_path: Path) -> None:
    assert cache_folder({"QUIRE_CACHE_DIR": "/a"}) == Path("/a/native")
    assert cache_folder({"XDG_CACHE_HOME": "/b"}) == Path("/b/quire/native")
    assert cache_folder({}) == Path.home() / ".cache/quire/native"


def test_what_is_served() -> None:
    assert native_refusal(DeviceInfo("cpu"), "bfloat16") is None
    assert native_refusal(DeviceInfo("cpu"), "float32") is None
    assert "not float64" in str(native_refusal(DeviceInfo("cpu"), "float64"))
    assert "not on cuda" in str(native_refusal(DeviceInfo("cuda"), "bfloat16"))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux says what is mapped")
def test_threads_are_shared_with_torch() -> None:
    assert native_refusal(DeviceInfo("cpu"), "float32") is None
    assert loaded_openmp() is not None
    lines = Path("/proc/self/maps").read_text().splitlines()
    runtimes = {
        line.split()[-1] for line in lines if "libgomp" in line or "libomp" in line or "libiomp" in line
    }
    assert len(runtimes) == 1, "two OpenMP runtimes would fight for the cores"


def test_without_a_compiler_torch_serves_and_one_message_says_so(tmp_path: Path) -> None:
    script = (
        "from quire import LLM, SamplingParams\n"
        "llm = LLM('tiny', max_model_len=64, max_num_seqs=2)\n"
        "print(llm.generate('12 + 34 =', SamplingParams(temperature=0, max_tokens=4))[0].outputs[0].text)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "CC": "missing-cc", "QUIRE_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "46" in result.stdout
    assert result.stderr.count("CPU kernels are not used") == 1 and "missing-cc" in result.stderr
    assert logging.getLogger("quire.kernels").name in result.stderr or "quire:" in result.stderr
