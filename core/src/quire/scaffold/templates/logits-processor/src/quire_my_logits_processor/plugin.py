"""The plugin `my-logits-processor`: registers a logits processor. Imports `quire.api` only."""

from __future__ import annotations

from quire.api.hookspecs import hookimpl
from quire.api.specs import LogitsProcessorSpec, PluginInfo


@hookimpl
def quire_plugin_info() -> PluginInfo:
    """The range of hook API versions that this was written for, and where its options are."""
    return PluginInfo(
        api=">=1,<2",
        description="tokens become less likely each time they are generated",
        options="quire_my_logits_processor.options:MyLogitsProcessorOptions",
    )


@hookimpl
def quire_register_logits_processors() -> list[LogitsProcessorSpec]:
    """`SamplingParams(extra_args={"my-logits-processor": {"strength": 0.5}})` asks for it."""
    return [
        LogitsProcessorSpec(
            "my-logits-processor", "quire_my_logits_processor.processor:MyLogitsProcessorFactory"
        )
    ]
