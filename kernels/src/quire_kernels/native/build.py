"""Compiles the C sources into one shared library, once for each compiler, CPU and version of the sources."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

FLAGS = ("-O3", "-march=native", "-std=gnu17", "-fopenmp", "-fPIC", "-fno-math-errno")
COMPILERS = ("cc", "gcc", "clang")
TIMEOUT_S = 300

_PACKAGE = Path(__file__).parents[1]

logger = logging.getLogger("quire.kernels")


class NativeBuildError(RuntimeError):
    """The library could not be made; the message says why and what would help."""


@dataclass(slots=True, frozen=True)
class Compiler:
    """A C compiler.

    Attributes:
        command: the words that call it. flags: that follow ours, and win. version: what `--version` says.
    """

    command: tuple[str, ...]
    flags: tuple[str, ...]
    version: str


def build_library(environment: Mapping[str, str], openmp: Path | None) -> Path:
    """The compiled library, from the cache or made now.

    Args:
        environment: CC names the compiler and may add flags (`gcc -march=haswell`: no AVX-512, whatever the CPU has);
            QUIRE_CACHE_DIR or XDG_CACHE_HOME name the cache's place.
        openmp: the OpenMP runtime that this process has loaded, to share its threads; None: the compiler's own.

    Raises:
        NativeBuildError: there is no compiler, or it fails.
    """
    compiler = find_compiler(environment)
    sources = sorted(_PACKAGE.glob("*/*.c"))
    folder = cache_folder(environment)
    path = folder / f"kernels-{_key(compiler, sources, openmp)}.so"
    if path.is_file():
        return path
    logger.info("compiling the CPU kernels with %s; they are kept in %s", compiler.command[0], folder)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            made = _compile(compiler, sources, openmp, Path(work))
            made.replace(path)
    except OSError as error:
        raise NativeBuildError(f"{folder} cannot be written ({error}); set QUIRE_CACHE_DIR") from error
    return path


def find_compiler(environment: Mapping[str, str]) -> Compiler:
    """The compiler that CC names, else the first of COMPILERS that is installed.

    Raises:
        NativeBuildError: there is none.
    """
    named = shlex.split(environment.get("CC", ""))
    for words in [named] if named else [[name] for name in COMPILERS]:
        program = shutil.which(words[0], path=environment.get("PATH"))
        if program is None:
            continue
        first = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
        command = (program, *words[1:first])
        return Compiler(command, tuple(words[first:]), _run([*command, "--version"], Path.cwd()))
    looked_for = " ".join(named) if named else ", ".join(COMPILERS)
    raise NativeBuildError(f"no C compiler was found (looked for {looked_for}): install one, or set CC")


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Where compiled libraries are kept."""
    own = environment.get("QUIRE_CACHE_DIR")
    if own:
        return Path(own) / "native"
    base = environment.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "quire" / "native"


def _key(compiler: Compiler, sources: Sequence[Path], openmp: Path | None) -> str:
    digest = hashlib.sha256()
    for path in [*sources, *sorted(_PACKAGE.glob("*/*.h"))]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update(repr((compiler, FLAGS, str(openmp), platform.machine(), _cpu_flags())).encode())
    return digest.hexdigest()[:24]


def _cpu_flags() -> str:
    """The CPU's model and instruction sets: the library runs on equal ones only."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    kept = ("flags", "features", "model", "cpu family", "cpu implementer", "cpu part")
    lines = text.partition("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.partition(":")[0].strip().lower() in kept)


def _compile(compiler: Compiler, sources: Sequence[Path], openmp: Path | None, work: Path) -> Path:
    def compile_one(source: Path) -> str:
        made = f"{source.parent.name}-{source.stem}.o"
        include = f"-I{_PACKAGE / 'native'}"
        _run([*compiler.command, *FLAGS, *compiler.flags, include, "-c", str(source), "-o", made], work)
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the longest first, which takes half of the time
        objects = list(pool.map(compile_one, sorted(sources, key=lambda path: -_size(path))))
    runtime = ["-fopenmp"] if openmp is None else [str(openmp)]
    _run([*compiler.command, *compiler.flags, "-shared", "-o", "kernels.so", *objects, *runtime, "-lm"], work)
    return work / "kernels.so"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0  # the compiler tells of a missing one


def _run(command: Sequence[str], folder: Path) -> str:
    try:
        result = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeBuildError(f"{command[0]} could not be run: {error}") from error
    if result.returncode != 0:
        lines = (result.stderr or result.stdout).strip().splitlines()
        reason = next((line for line in lines if "error" in line), lines[-1] if lines else "no message")
        raise NativeBuildError(f"`{shlex.join(command)}` failed: {reason}")
    return result.stdout
