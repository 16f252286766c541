"""Where a plugin's module is, without importing it, and how long it takes to import."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec

HEAVY_MODULES = ("torch", "transformers", "triton", "numpy")
"""What a plugin's module must not import: commands that only list plugins would become slow."""

_TIMEOUT_S = 120.0

_MEASURE = """
import importlib, json, sys, time
import quire.api.extensions, quire.api.hookspecs, quire.api.specs
heavy, modules = json.loads(sys.argv[1])
out, sys.stdout = sys.stdout, sys.stderr
for name in modules:
    before = set(sys.modules)
    begin, error = time.perf_counter(), ""
    try:
        importlib.import_module(name)
    except BaseException as problem:
        error = f"{type(problem).__name__}: {problem}"
    seconds = time.perf_counter() - begin
    found = [module for module in heavy if module in sys.modules and module not in before]
    print(json.dumps([name, seconds, found, error]), file=out, flush=True)
"""


@dataclass(slots=True, frozen=True)
class ImportCost:
    """What importing a plugin's module in a fresh process took.

    Attributes:
        seconds: None where the process ended before.
        heavy: heavy modules that it imported first.
        error: what the import raised; empty when it went well.
    """

    seconds: float | None
    heavy: tuple[str, ...] = ()
    error: str = ""


def measure_imports(modules: Sequence[str]) -> dict[str, ImportCost]:
    """Import the modules in their order in one fresh process, in which `quire.api` is there already."""
    import subprocess

    if not modules:
        return {}
    arguments = json.dumps([HEAVY_MODULES, list(modules)])
    end = "the process ended"
    try:
        result = subprocess.run(
            [sys.executable, "-c", _MEASURE, arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        lines = result.stdout.splitlines()
        end = f"the process ended with status {result.returncode}"
    except subprocess.TimeoutExpired as error:
        text = error.stdout or b""
        lines = (text.decode() if isinstance(text, bytes) else text).splitlines()
        end = f"it took more than {_TIMEOUT_S:g} s"
    costs = {}
    for line in lines:
        name, seconds, heavy, problem = json.loads(line)
        costs[name] = ImportCost(seconds, tuple(heavy), problem)
    for name in modules:
        costs.setdefault(name, ImportCost(None, error=f"{end}, here or in an earlier import"))
    return costs


def find_module(name: str) -> ModuleSpec | None:
    """The spec of a module, found without importing it or its packages; None when there is none."""
    spec = None
    path: Sequence[str] | None = None
    whole = ""
    for part in name.split("."):
        whole = f"{whole}.{part}" if whole else part
        spec = _find(whole, path)
        if spec is None:
            return None
        path = spec.submodule_search_locations or []
    return spec


def source_file(name: str) -> str | None:
    """The file of a module, found without importing it; None when there is none."""
    spec = find_module(name)
    return spec.origin if spec is not None and spec.has_location else None


def _find(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    if path is None:
        try:
            return importlib.util.find_spec(name)
        except (ImportError, ValueError):
            return None
    for finder in sys.meta_path:
        spec = finder.find_spec(name, path, None)
        if spec is not None:
            return spec
    return None
