"""Logits processors of plugins: bound to the requests that use them, called on their own row alone."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quire.api.extensions import LogitsProcessorFactory
from quire.api.request import SamplingParams
from quire.api.step import SlotAssignment

FOR_REQUEST = "LogitsProcessorFactory.for_request"
CALL = "LogitsProcessor.__call__"

PluginCall = Callable[..., object]
"""`(plugin, point, function, *args)`: calls plugin code and counts it; what it raises is raised on."""

logger = logging.getLogger("quire.plugins")


@dataclass(slots=True, frozen=True)
class LoadedProcessor:
    """A logits processor of an engine.

    Attributes:
        name: as requests call it. plugin: who brought it.
        origin: plugin, distribution and version, for messages.
        factory: what the spec's factory made, once.
        is_always_on: whether requests that do not name it get it too.
    """

    name: str
    plugin: str
    origin: str
    factory: LogitsProcessorFactory
    is_always_on: bool = False

    def describe(self) -> str:
        """For messages."""
        return f"logits processor {self.name!r} of {self.origin}"


@dataclass(slots=True, frozen=True)
class RowFault:
    """Why a plugin's processor gave no logits for a row."""

    text: str
    plugin: str


class ProcessorFaultError(Exception):
    """A plugin's code failed; the text says whose and how."""

    def __init__(self, text: str, plugin: str) -> None:
        super().__init__(text)
        self.plugin = plugin


class RowProcessors:
    """The processors of one request in its slot, and the tokens that they are shown."""

    def __init__(self, bound: Sequence[tuple[LoadedProcessor, object]], call: PluginCall) -> None:
        self.fault: RowFault | None = None
        self.prompt_token_ids: tuple[int, ...] = ()
        self.output_token_ids: list[int] = []
        self._bound = bound
        self._call = call

    def apply(self, row: Tensor) -> RowFault | None:
        """Let the processors change a row, in place.

        Args:
            row: [V], float32 or float64; processors see a float32 copy, so that they reach nothing else.

        Returns:
            None, or what went wrong; the row is to be dropped then.
        """
        if self.fault is not None:
            return self.fault
        output = tuple(self.output_token_ids)
        values = row.to(torch.float32, copy=True)
        for processor, function in self._bound:
            try:
                result = self._call(processor.plugin, CALL, function, self.prompt_token_ids, output, values)
                checked = _checked(result, row)
                if checked is not values:
                    values.copy_(checked)  # it may be the processor's own, and others must not change it
            except (Exception, SystemExit) as error:
                return log_fault(processor, "was called", error)
        row.copy_(values)
        return None


class ProcessorTable:
    """The logits processors that a runner can bind, by name; those of disabled plugins too, to finish with.

    Args:
        loaded: the engine's processors.
        call: counts calls of plugin code.
    """

    def __init__(self, loaded: Mapping[str, LoadedProcessor], call: PluginCall) -> None:
        self._loaded = loaded
        self._call = call

    def bind(self, assignment: SlotAssignment) -> RowProcessors:
        """The processors of a request that takes a slot; a failure is kept for its first row."""
        arguments = assignment.params.extra_args_copy()
        bound: list[tuple[LoadedProcessor, object]] = []
        fault = None
        for name in assignment.logits_processors:
            processor = self._loaded[name]
            try:
                function = make_processor(processor, arguments.get(name), assignment.params, self._call)
            except ValueError as error:
                fault = log_fault(processor, "was made again", error)
            except ProcessorFaultError as error:
                fault = RowFault(str(error), error.plugin)
            else:
                if function is not None:
                    bound.append((processor, function))
        row = RowProcessors(bound, self._call)
        row.fault = fault
        row.prompt_token_ids = tuple(assignment.token_ids[: assignment.num_prompt_tokens])
        row.output_token_ids = assignment.token_ids[assignment.num_prompt_tokens :]
        return row


def make_processor(
    processor: LoadedProcessor, arguments: object, params: SamplingParams, call: PluginCall
) -> object | None:
    """Ask a factory for the processor of a request; None when it leaves the request alone.

    Raises:
        ValueError: the factory refuses the arguments.
        ProcessorFaultError: it failed otherwise, or gave something that cannot be called.
    """
    try:
        made = call(
            processor.plugin, FOR_REQUEST, processor.factory.for_request, arguments, params.read_only_copy()
        )
        if made is not None and not callable(made):
            raise TypeError(f"for_request gave a {type(made).__name__}, expected a LogitsProcessor or None")
    except ValueError:
        raise
    except (Exception, SystemExit) as error:
        fault = log_fault(processor, "was asked for", error)
        raise ProcessorFaultError(fault.text, fault.plugin) from error
    return made


def log_fault(processor: LoadedProcessor, when: str, error: BaseException) -> RowFault:
    """Say in the log, and in the result, what a processor did."""
    text = f"{processor.describe()} failed when it {when}: {type(error).__name__}: {error}"
    logger.warning("%s; its request ends with this error", text, exc_info=error)
    return RowFault(text, processor.plugin)


def _checked(result: object, row: Tensor) -> Tensor:
    if not isinstance(result, Tensor):
        raise TypeError(f"it returned a {type(result).__name__}, expected a float32 tensor [{row.shape[0]}]")
    if result.shape != row.shape or result.dtype != torch.float32 or result.device != row.device:
        raise TypeError(
            f"it returned {result.dtype} {list(result.shape)} on {result.device}, "
            f"expected torch.float32 {list(row.shape)} on {row.device}"
        )
    best = float(result.max())
    if not math.isfinite(best):
        what = "NaN" if math.isnan(best) else "infinity" if best > 0 else "no token that can be sampled"
        raise ValueError(f"its logits hold {what}")
    return result
