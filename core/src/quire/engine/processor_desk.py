"""Which logits processors a new request gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pydantic import ValidationError

from quire.api.errors import ExtensionError, SamplingParamsError
from quire.api.request import SamplingParams
from quire.execution.processors import LoadedProcessor, ProcessorFaultError, make_processor
from quire.plugins.calls import PluginCalls
from quire.plugins.registry import nearest


@dataclass(slots=True, frozen=True)
class ProcessorChoice:
    """What was settled for a request.

    Attributes:
        params: the request's, with `extra_args` copied.
        names: of the processors that change its logits, in the order of their names.
        error: a plugin's failure, which the request has to end with.
    """

    params: SamplingParams
    names: tuple[str, ...] = ()
    error: Exception | None = None


@dataclass(slots=True)
class ProcessorDesk:
    """Checks `extra_args` when a request is added; what it settles holds until the request ends.

    Attributes:
        loaded: the engine's logits processors by name.
        unavailable: names that cannot be had, and why: those of plugins that are disabled.
    """

    loaded: Mapping[str, LoadedProcessor] = field(default_factory=dict)
    calls: PluginCalls = field(default_factory=PluginCalls)
    unavailable: Mapping[str, str] = field(default_factory=dict)
    _always_on: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.set_unavailable(self.unavailable)

    def set_unavailable(self, unavailable: Mapping[str, str]) -> None:
        """Refuse new requests that name one of these."""
        self.unavailable = unavailable
        self._always_on = tuple(
            name
            for name, processor in self.loaded.items()
            if processor.is_always_on and name not in unavailable
        )

    def choose(self, params: SamplingParams) -> ProcessorChoice:
        """The processors of a request with these parameters.

        Raises:
            SamplingParamsError: `extra_args` names a processor that there is not or that is disabled, or
                its arguments are wrong.
        """
        if not params.extra_args and not self._always_on:
            return ProcessorChoice(params)
        arguments = params.extra_args_copy()
        for name in arguments:
            self._check_name(name)
        params = replace(params, extra_args=arguments or None)
        names = []
        for name in sorted({*arguments, *self._always_on}):
            processor = self.loaded[name]
            own = params.extra_args_copy().get(name)
            try:
                made = make_processor(processor, own, params, self.calls.call)
            except ProcessorFaultError as error:
                return ProcessorChoice(params, error=ExtensionError(str(error)))
            except ValueError as error:
                raise SamplingParamsError(
                    f"{processor.describe()} refuses {own!r}: {_reason(error)}"
                ) from error
            if made is not None:
                names.append(name)
        return ProcessorChoice(params, tuple(names))

    def _check_name(self, name: str) -> None:
        if name in self.unavailable:
            raise SamplingParamsError(
                f"extra_args names the logits processor {name!r}: {self.unavailable[name]}"
            )
        if name not in self.loaded:
            raise SamplingParamsError(
                f"extra_args names {name!r}, no logits processor is called so; {nearest(name, self.loaded)}"
            )


def _reason(error: ValueError) -> str:
    """What a processor says against its arguments; pydantic's complaints in one line."""
    if not isinstance(error, ValidationError):
        return str(error)
    problems = error.errors(include_url=False, include_context=False)
    return "; ".join(f"{'.'.join(str(part) for part in entry['loc'])}: {entry['msg']}" for entry in problems)
