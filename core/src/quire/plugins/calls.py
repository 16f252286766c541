"""How often and how long plugins were called, and what they answered."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from quire.api.errors import PluginError
from quire.api.outputs import Metric

T = TypeVar("T")

logger = logging.getLogger("quire.plugins")

MAX_TRACED_CHARS = 300
"""Of an answer that is logged."""


@dataclass(slots=True)
class CallCount:
    """Calls of one extension point of one plugin."""

    calls: int = 0
    errors: int = 0
    seconds: float = 0.0


def show_trace() -> None:
    """Let what is logged of plugins' calls be seen on standard error, unless logging is configured."""
    package = logging.getLogger("quire")
    if package.handlers or logging.getLogger().handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("quire: %(message)s"))
    package.addHandler(handler)
    if package.level == logging.NOTSET:
        package.setLevel(logging.INFO)


class PluginCalls:
    """Times every call of plugin code that the engine makes, by plugin and extension point.

    Attributes:
        is_traced: whether each call is logged with its answer (`--trace-plugins`).
    """

    def __init__(self) -> None:
        self.is_traced = False
        self._counts: dict[tuple[str, str], CallCount] = {}

    def call(
        self, plugin: str, point: str, function: Callable[..., T], *args: object, **keywords: object
    ) -> T:
        """Call plugin code; whatever it raises, SystemExit included, is counted and raised on.

        Raises:
            PluginError: in the place of an exception that cannot be turned into text, so that those who
                report it, and go on, can.
        """
        begin = time.perf_counter()
        try:
            result = function(*args, **keywords)
        except BaseException as error:
            seconds = time.perf_counter() - begin
            text = _text_of(error)
            if text is None:
                name = type(error).__name__
                self._add(plugin, point, seconds, f"raised {name}", True)
                raise PluginError(f"it raised {name}, whose str() fails") from error
            self._add(plugin, point, seconds, f"raised {type(error).__name__}: {text}", True)
            raise
        self._add(plugin, point, time.perf_counter() - begin, result, False)
        return result

    @contextmanager
    def watch(self, plugin: str, point: str) -> Iterator[None]:
        """Count and time a block that runs plugin code, waiting included; what it raises is raised on.

        Being cancelled is no fault of the plugin.
        """
        begin = time.perf_counter()
        try:
            yield
        except BaseException as error:
            is_fault = isinstance(error, Exception | SystemExit)
            answer = f"raised {type(error).__name__}"
            self._add(plugin, point, time.perf_counter() - begin, answer, is_fault)
            raise
        self._add(plugin, point, time.perf_counter() - begin, None, False)

    def count(self, plugin: str, point: str) -> CallCount:
        """The calls so far; zeros where there was none."""
        return self._counts.get((plugin, point), CallCount())

    def metrics(self) -> list[Metric]:
        """Counters with the labels `plugin` and `point`."""
        listed: list[Metric] = []
        for (plugin, point), count in sorted(self._counts.items()):
            labels = {"plugin": plugin, "point": point}
            listed += [
                Metric("quire:plugin_calls", count.calls, "counter", "calls of a plugin's code", labels),
                Metric("quire:plugin_errors", count.errors, "counter", "of these, calls that failed", labels),
                Metric("quire:plugin_seconds", count.seconds, "counter", "time in a plugin's code", labels),
            ]
        return listed

    def _add(self, plugin: str, point: str, seconds: float, answer: object, is_error: bool) -> None:
        count = self._counts.get((plugin, point))
        if count is None:
            count = self._counts[plugin, point] = CallCount()
        count.calls += 1
        count.errors += is_error
        count.seconds += seconds
        if self.is_traced:
            text = str(answer) if is_error else _shown(answer)
            text = text if len(text) <= MAX_TRACED_CHARS else f"{text[:MAX_TRACED_CHARS]}..."
            logger.info("%s: %s in %.3f ms: %s", plugin, point, seconds * 1e3, text)


def _text_of(error: BaseException) -> str | None:
    try:
        return str(error)
    except Exception:
        return None


def _shown(answer: object) -> str:
    try:
        return repr(answer)
    except Exception as error:
        return f"a {type(answer).__name__} whose repr raises {type(error).__name__}"
