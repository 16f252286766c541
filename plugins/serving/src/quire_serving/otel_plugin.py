"""Registers traces: a span per request to an OpenTelemetry collector, where an endpoint is set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from quire.api.config import EngineConfig
from quire.api.extensions import ConfigProblem, EngineInfo, EngineObserver
from quire.api.hookspecs import hookimpl
from quire.api.section import Section
from quire.api.specs import PluginInfo

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_providers: dict[int, TracerProvider] = {}
"""Those of engines that run, by the identity of the engine's configuration."""


class OtelSettings(Section):
    """Where traces go."""

    endpoint: str | None = Field(
        None,
        pattern="^https?://",
        description="OTLP/HTTP address that takes traces, such as http://localhost:4318/v1/traces; by default none",
    )
    service_name: str = Field("quire", min_length=1, description="what traces call this server")


@hookimpl
def quire_plugin_info() -> PluginInfo:
    """See the hook specification."""
    return PluginInfo(
        api=">=1.3,<2",
        description="traces of requests, sent to an OpenTelemetry collector",
        options=OtelSettings,
        affects_outputs=False,
    )


@hookimpl
def quire_check_config(options: OtelSettings) -> list[ConfigProblem]:
    """See the hook specification."""
    if options.endpoint is None:
        return []
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace  # noqa: F401  # whether they are there is the question
    except ImportError as error:
        message = (
            f"traces are asked for (endpoint={options.endpoint!r}), but {error.name or error} is missing"
        )
        remedy = "pip install 'quire-serving[otel]', or take the endpoint out"
        return [ConfigProblem(message, remedy)]
    return []


@hookimpl
def quire_create_observers(config: EngineConfig, options: OtelSettings) -> list[EngineObserver]:
    """See the hook specification."""
    if options.endpoint is None:
        return []
    from quire_serving.otel import RequestSpans, create_provider

    provider = _providers[id(config)] = create_provider(options.endpoint, options.service_name)
    return [RequestSpans(provider.get_tracer("quire"), config.model.model)]


@hookimpl
def quire_engine_stopping(info: EngineInfo) -> None:
    """Send what has not been sent yet."""
    provider = _providers.pop(id(info.config), None)
    if provider is not None:
        from quire_serving.otel import end

        end(provider)
