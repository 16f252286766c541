"""The folder of a run: what was asked for, what is done, and how to go on after an interruption."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from quire.api.errors import ConfigError
from quire_quantization.quantize.files import write_json

JOB_NAME = "quantize_job.json"
REPORT_NAME = "quantize_report.json"
WORK_NAME = "quantize_work"

Arguments = Mapping[str, object]


@dataclass(slots=True)
class Job:
    """A run and its state, written down after every stage.

    Attributes:
        out: the folder of the result. folder: where the result is now: `out` itself once the checkpoint is
            complete, else beside it with ".partial".
        arguments: what decides the result.
        done: stage to its result.
    """

    out: Path
    folder: Path
    arguments: Arguments
    done: dict[str, object] = field(default_factory=dict)

    @property
    def is_quantized(self) -> bool:
        """Whether the checkpoint is complete."""
        return self.folder == self.out

    @property
    def work(self) -> Path:
        """A folder for what is of no use after the run; made when asked for."""
        path = self.folder / WORK_NAME
        path.mkdir(exist_ok=True)
        return path

    def once(self, stage: str, compute: Callable[[], object]) -> object:
        """A stage's result: the one written down, else computed and written down. Plain data."""
        if stage not in self.done:
            self.done[stage] = compute()
            self.save()
        return self.done[stage]

    def save(self) -> None:
        """Write the state down."""
        write_json(self.folder / JOB_NAME, {"arguments": dict(self.arguments), "done": self.done})

    def publish(self) -> None:
        """Give the complete checkpoint its name."""
        shutil.rmtree(self.folder / WORK_NAME, ignore_errors=True)
        self.folder.rename(self.out)
        self.folder = self.out

    def finish(self, report: Mapping[str, object]) -> None:
        """Write the report; the job is done."""
        write_json(self.folder / REPORT_NAME, {**report, "arguments": dict(self.arguments)})
        (self.folder / JOB_NAME).unlink(missing_ok=True)


def partial_folder(out: Path) -> Path:
    """Where a result is made."""
    return out.with_name(out.name + ".partial")


def finished_report(out: Path, arguments: Arguments) -> dict[str, object] | None:
    """The report of the same run, finished earlier; None where there is none."""
    report = _read(out / REPORT_NAME)
    return report if report.get("arguments") == _plain(arguments) else None


@contextmanager
def open_job(out: Path, arguments: Arguments, *, is_overwriting: bool) -> Iterator[Job]:
    """Start a run, or go on with one of the same arguments.

    Args:
        out: the folder of the result.
        arguments: what decides it, as plain data.
        is_overwriting: remove what an earlier run left, finished or not.

    Raises:
        ConfigError: the folder holds something else, a run with other arguments was interrupted there, or
            another process is at it.
    """
    partial = partial_folder(out)
    if is_overwriting:
        for folder in (out, partial):
            _remove(folder)
    is_published = (out / JOB_NAME).is_file() or finished_report(out, arguments) is not None
    folder = out if is_published else partial
    for place in (partial,) if is_published else (out, partial):
        _refuse_foreign(place, _plain(arguments))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: the folder cannot be made: {error.strerror}") from None
    with _locked(folder):
        state = _read(folder / JOB_NAME)
        if state:
            _check_same(folder, state.get("arguments"), _plain(arguments))
        done = state.get("done")
        job = Job(out, folder, arguments, done if isinstance(done, dict) else {})
        job.save()
        yield job


def _refuse_foreign(folder: Path, asked: Arguments) -> None:
    if (folder / JOB_NAME).is_file() or not (folder.exists() or folder.is_symlink()):
        return
    if (folder / REPORT_NAME).is_file():
        differences = _differences(_read(folder / REPORT_NAME).get("arguments"), asked)
        raise ConfigError(
            f"{folder} holds a result of other arguments ({differences}): give another --out, or --overwrite to "
            "replace it"
        )
    if not _is_empty_folder(folder):
        raise ConfigError(f"{folder} exists and was not written by `quire quantize`: give another --out")


def _remove(folder: Path) -> None:
    """Remove a folder that a run has written, and no other."""
    if not folder.exists() or _is_empty_folder(folder):
        return
    if not any((folder / name).is_file() for name in (JOB_NAME, REPORT_NAME)) or folder.is_symlink():
        raise ConfigError(
            f"--overwrite: {folder} was not written by `quire quantize` and is left alone: remove it yourself, or "
            "give another --out"
        )
    with _locked(folder):
        shutil.rmtree(folder)


def _check_same(folder: Path, recorded: object, asked: Arguments) -> None:
    differences = _differences(recorded, asked)
    if differences:
        raise ConfigError(
            f"{folder} holds an interrupted run with other arguments ({differences}): repeat those to go on, or give "
            "--overwrite to start anew"
        )


def _differences(recorded: object, asked: Arguments) -> str:
    old = recorded if isinstance(recorded, dict) else {}
    return "; ".join(
        f"{name}: {old.get(name)!r} there, {asked.get(name)!r} here"
        for name in sorted({*old, *asked})
        if old.get(name) != asked.get(name)
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another process is writing {folder}: wait for it, or give another --out"
            ) from None
        yield
    finally:
        os.close(handle)


def _is_empty_folder(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _plain(arguments: Arguments) -> dict[str, object]:
    """As it comes back from a file: lists for tuples."""
    plain: dict[str, object] = json.loads(json.dumps(dict(arguments)))
    return plain


def _read(path: Path) -> dict[str, object]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; give --overwrite to start anew") from None
    return value if isinstance(value, dict) else {}
