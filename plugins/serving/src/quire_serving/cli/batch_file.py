"""OpenAI's batch files: a request a line in, an answer a line out."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO
from uuid import uuid4

import orjson

from quire.api.errors import ConfigError

STANDARD = Path("-")
URLS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")


@dataclass(slots=True, frozen=True)
class BatchRequest:
    """A line of the input.

    Attributes:
        error: why it cannot be sent; "" where it can.
    """

    custom_id: str
    url: str = ""
    body: Mapping[str, object] | None = None
    error: str = ""


def read_requests(path: Path) -> list[BatchRequest]:
    """Every line that is not blank; a malformed one carries its error. "-" is standard input.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        lines = (sys.stdin.buffer.read() if path == STANDARD else path.read_bytes()).splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    requests = []
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        if line.strip():
            request = _parse(line, number)
            if request.custom_id in seen:
                request = BatchRequest(
                    request.custom_id, error=f"line {number}: the custom_id is taken already"
                )
            seen.add(request.custom_id)
            requests.append(request)
    return requests


def _parse(line: bytes, number: int) -> BatchRequest:
    try:
        entry = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return BatchRequest(f"line-{number}", error=f"line {number} is not JSON: {error}")
    if not isinstance(entry, dict) or not isinstance(entry.get("custom_id"), str):
        return BatchRequest(f"line-{number}", error=f"line {number} is no object with a custom_id (a string)")
    custom_id, url, body = entry["custom_id"], entry.get("url"), entry.get("body")
    if entry.get("method", "POST") != "POST" or url not in URLS:
        wanted = f"POST to one of {', '.join(URLS)}"
        return BatchRequest(custom_id, error=f"line {number}: {entry.get('method')} {url!r}: give {wanted}")
    if not isinstance(body, dict) or body.get("stream"):
        return BatchRequest(custom_id, error=f"line {number}: the body must be an object, without stream")
    return BatchRequest(custom_id, url, body)


def answer_line(custom_id: str, status: int, request_id: str, body: object) -> dict[str, object]:
    """A line of the output for what a server answered."""
    response = {"status_code": status, "request_id": request_id, "body": body}
    return {"id": f"batch_req_{uuid4().hex}", "custom_id": custom_id, "response": response, "error": None}


def error_line(custom_id: str, code: str, message: str) -> dict[str, object]:
    """A line of the output for a request that got no answer."""
    error = {"code": code, "message": message}
    return {"id": f"batch_req_{uuid4().hex}", "custom_id": custom_id, "response": None, "error": error}


def is_success(line: Mapping[str, object]) -> bool:
    """Whether a line of the output holds an answer that is no error."""
    response = line.get("response")
    return line.get("error") is None and isinstance(response, dict) and response.get("status_code") == 200


class BatchOutput:
    """The output file. Whole lines are appended; a run that was killed loses none that it had written.

    Attributes:
        done: custom_ids that were answered by earlier runs.
        num_good, num_failed: lines of this run.
    """

    def __init__(self, path: Path) -> None:
        self.done: set[str] = set()
        self.num_good = 0
        self.num_failed = 0
        self._is_file = path != STANDARD
        try:
            self._file = self._resumed(path) if self._is_file else sys.stdout.buffer
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}") from None

    def __enter__(self) -> BatchOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_file:
            self._file.close()

    def append(self, line: Mapping[str, object]) -> None:
        """Write a line, to the disk."""
        self._file.write(orjson.dumps(line) + b"\n")
        self._file.flush()
        if self._is_file:
            os.fsync(self._file.fileno())
        if is_success(line):
            self.num_good += 1
        else:
            self.num_failed += 1

    def _resumed(self, path: Path) -> BinaryIO:
        """The file with what earlier runs have to keep: errors and a torn last line make way."""
        kept = []
        for text in _whole_lines(path) if path.exists() else ():
            line = _parsed(text)
            if line is None or "custom_id" not in line:
                raise ConfigError(f"{path} holds more than answers of a batch: give another --output-file")
            if is_success(line):
                kept.append(text)
                self.done.add(str(line["custom_id"]))
        scratch = path.with_name(f"{path.name}.tmp")
        scratch.write_bytes(b"".join(text + b"\n" for text in kept))
        os.replace(scratch, path)
        return path.open("ab")


def _whole_lines(path: Path) -> list[bytes]:
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and lines[-1].startswith(b"{") and _parsed(lines[-1]) is None:
        lines.pop()
    return [line.rstrip(b"\r\n") for line in lines]


def _parsed(text: bytes) -> dict[str, object] | None:
    try:
        line = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return line if isinstance(line, dict) else None
