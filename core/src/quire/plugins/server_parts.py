"""What plugins bring for a server; every call of their parsers is timed, and its failure named."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import cast

from quire.api.errors import ExtensionError
from quire.api.serving import (
    ParsedText,
    ParserContext,
    ParserFactory,
    PluginRoute,
    PluginSummary,
    RouteContext,
    ServerExtensions,
    TextParser,
    ToolCallDelta,
)
from quire.api.specs import ReasoningParserSpec, Registration, RouteSpec, ToolParserSpec
from quire.plugins.calls import PluginCalls
from quire.plugins.host import PluginHost
from quire.plugins.registry import Registry, describe_origin, resolve_factory

logger = logging.getLogger("quire.plugins")


def server_extensions(host: PluginHost) -> ServerExtensions:
    """What the enabled plugins of a host bring for one server, its factories imported.

    Raises:
        PluginError: a factory cannot be imported.
    """
    calls = PluginCalls()
    calls.is_traced = host.calls.is_traced
    return ServerExtensions(
        routes=tuple(_route(host, entry) for entry in host.routes.registrations()),
        tool_parsers=_parsers(host, host.tool_parsers, calls),
        reasoning_parsers=_parsers(host, host.reasoning_parsers, calls),
        plugins=tuple(
            PluginSummary(
                name=record.name,
                distribution=record.candidate.distribution,
                version=record.candidate.version,
                description="" if record.info is None else record.info.description,
                is_enabled=record.is_enabled,
                reason=record.reason,
            )
            for record in host.records
        ),
        watch=calls.watch,
        metrics=calls.metrics,
    )


class WatchedParsers:
    """The parsers that one spec makes.

    Args:
        registration: of a ToolParserSpec or a ReasoningParserSpec.
        calls: where calls are counted.
    """

    def __init__(self, registration: Registration, calls: PluginCalls) -> None:
        spec = cast(ToolParserSpec | ReasoningParserSpec, registration.spec)
        self._factory = cast(ParserFactory, resolve_factory(spec.factory, registration))
        self._plugin = registration.plugin
        self._kind = type(spec).__name__
        self._title = f"{describe_origin(registration)}: its parser {spec.name!r}"
        self._calls = calls

    def make(self, context: ParserContext) -> TextParser:
        """A parser of one choice, whose calls go through `call`."""
        return _WatchedParser(self, self.call(f"{self._kind}.factory", partial(self._factory, context)))

    def call(self, point: str, function: Callable[..., object], *arguments: object) -> object:
        """Call plugin code.

        Raises:
            ExtensionError: it failed; the log has the traceback.
        """
        try:
            return self._calls.call(self._plugin, point, function, *arguments)
        except (Exception, SystemExit) as error:
            logger.exception("%s failed in %s; the request fails alone", self._title, point)
            raise ExtensionError(f"{self._title} failed in {point}", self._plugin) from error


class _WatchedParser:
    """A TextParser around a plugin's."""

    def __init__(self, parsers: WatchedParsers, parser: object) -> None:
        self._call = parsers.call
        self._parser = cast(TextParser, parser)

    def push(self, text: str) -> ParsedText:
        """See TextParser."""
        return cast(ParsedText, self._call("TextParser.push", self._push, text))

    def flush(self) -> ParsedText:
        """See TextParser."""
        return cast(ParsedText, self._call("TextParser.flush", self._flush))

    def _push(self, text: str) -> ParsedText:
        return _checked(self._parser.push(text))

    def _flush(self) -> ParsedText:
        return _checked(self._parser.flush())


def _checked(parsed: ParsedText) -> ParsedText:
    """Refuse, while it is still the plugin's fault, what could not be sent."""
    if not (
        isinstance(parsed, ParsedText)
        and isinstance(parsed.content, str)
        and isinstance(parsed.reasoning, str)
        and all(isinstance(delta, ToolCallDelta) for delta in parsed.tool_calls)
    ):
        raise TypeError(f"it gave {type(parsed).__name__}, expected a ParsedText of texts and ToolCallDeltas")
    return parsed


def _parsers(
    host: PluginHost, registry: Registry[ToolParserSpec] | Registry[ReasoningParserSpec], calls: PluginCalls
) -> dict[str, ParserFactory]:
    return {name: _parser(host, registry.registration(name), calls) for name in registry}


def _parser(host: PluginHost, entry: Registration, calls: PluginCalls) -> ParserFactory:
    parsers, options = WatchedParsers(entry, calls), host.options(entry.plugin)
    return lambda context: parsers.make(replace(context, options=options))


def _route(host: PluginHost, entry: Registration) -> PluginRoute:
    spec = cast(RouteSpec, entry.spec)
    factory = cast(Callable[[RouteContext], object], resolve_factory(spec.factory, entry))
    return PluginRoute(entry.plugin, spec.path, tuple(spec.methods), factory, host.options(entry.plugin))
