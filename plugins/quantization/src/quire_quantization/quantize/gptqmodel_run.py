"""Quantizes with GPTQModel, in a process of its own: its threads, its output and its memory stay there."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tqdm import tqdm

from quire.api.errors import CapacityError, ConfigError, QuantizationError
from quire_quantization.quantize.files import copy_companions, write_json
from quire_quantization.quantize.settings import PER_CHANNEL, QuantizeSettings
from quire_quantization.quantize.source import SourceModel

VERIFIED_VERSION = "7.6.0"
LOG_NAME = "gptqmodel.log"

_WORKERS = "GPTQMODEL_CPU_WORKERS"
_MIN_WORKERS = 2
_SPACE_FACTOR = 2
"""Its state and its result together, as a bound: in the size of the 16-bit checkpoint."""


def require_gptqmodel() -> str:
    """GPTQModel's version.

    Raises:
        ConfigError: it is not installed.
    """
    if importlib.util.find_spec("gptqmodel") is None:
        raise ConfigError(
            "--method awq and gptq need GPTQModel, which is not installed: "
            'pip install "quire-quantization[quantize]" (int8 and int4 do without)'
        )
    try:
        return importlib.metadata.version("gptqmodel")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def run_gptqmodel(
    source: SourceModel, calibration: list[list[int]], settings: QuantizeSettings, folder: Path, work: Path
) -> None:
    """Quantize a model and write the checkpoint; what an interrupted run has done is not done again.

    Args:
        source: the model.
        calibration: token ids.
        settings: of the run.
        folder: where the checkpoint goes to.
        work: for state and intermediate files.

    Raises:
        QuantizationError: GPTQModel failed; its log is named.
    """
    work = work.resolve()
    saved = work / "saved"
    shutil.rmtree(saved, ignore_errors=True)
    task = work / "task.json"
    write_json(
        task,
        {
            "model": str(source.folder.resolve()),
            "config": quantize_config(settings),
            "device": settings.device,
            "samples": calibration,
            "state": str(work / "state"),
            "offload": str(work / "offload"),
            "out": str(saved),
        },
    )
    with (folder / LOG_NAME).open("ab") as log, _worker(task, log) as process:
        error = _follow(process, settings.method)
        status = process.wait()
    if status != 0 or error is not None:
        raise QuantizationError(
            f"GPTQModel {_installed()} failed: {error or f'exit status {status}'}; its output is in "
            f"{folder / LOG_NAME}. Verified is version {VERIFIED_VERSION}"
        )
    for path in saved.iterdir():
        path.replace(folder / path.name)
    copy_companions(source, folder)
    (folder / LOG_NAME).unlink()


def quantize_config(settings: QuantizeSettings) -> dict[str, object]:
    """The keywords of GPTQModel's QuantizeConfig."""
    config: dict[str, object] = {
        "bits": settings.bits,
        "group_size": settings.group_size,
        "sym": settings.is_symmetric,
        "desc_act": settings.desc_act,
        "method": settings.method,
    }
    if settings.method == "awq":
        return {**config, "format": "gemm"}
    has_groups = settings.group_size != PER_CHANNEL
    return {**config, "format": "gptq", "act_group_aware": has_groups and not settings.desc_act}


def worker_environment(environment: Mapping[str, str], num_cpus: int | None) -> dict[str, str]:
    """The environment of the worker: GPTQModel's pool of two threads does not start on two cores by itself."""
    values = dict(environment)
    if (num_cpus or 1) <= _MIN_WORKERS:
        values.setdefault(_WORKERS, str(_MIN_WORKERS))
    return values


def _installed() -> str:
    return require_gptqmodel()


def check_space(source: SourceModel, folder: Path) -> None:
    """Refuse to start what the disk may not hold; CapacityError with both figures."""
    needed, free = _SPACE_FACTOR * source.num_bytes, shutil.disk_usage(folder).free
    if needed > free:
        raise CapacityError(
            f"{folder}: GPTQModel's state and result may take {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free: "
            "make room, or give another --out"
        )


@contextmanager
def _worker(task: Path, log: IO[bytes]) -> Iterator[subprocess.Popen[str]]:
    """The worker, which ends when this process does, or closes its standard input.

    It runs beside its task, since GPTQModel writes logs into the folder that it is started in.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "quire_quantization.quantize.gptqmodel_worker", str(task)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        cwd=task.parent,
        env=worker_environment(os.environ, os.cpu_count()),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


def _follow(process: subprocess.Popen[str], method: str) -> str | None:
    """Show what the worker reports; returns its error, if it had one."""
    error: str | None = None
    with tqdm(total=None, desc=f"Quantizing ({method})", unit="layer", dynamic_ncols=True) as bar:
        for line in process.stdout or ():
            message = json.loads(line)
            if message["event"] == "start":
                bar.total = message["num_layers"]
            elif message["event"] == "layer":
                bar.n = message["index"] + 1
            elif message["event"] == "saving":
                bar.set_postfix_str("saving")
            elif message["event"] == "error":
                error = str(message["text"])
            bar.refresh()
    return error
