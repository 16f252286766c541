"""The plugin `my-policy`: registers a scheduling policy. Imports `quire.api` only."""

from __future__ import annotations

from quire.api.hookspecs import hookimpl
from quire.api.specs import PluginInfo, PolicySpec


@hookimpl
def quire_plugin_info() -> PluginInfo:
    """The range of hook API versions that this was written for, and where its options are."""
    return PluginInfo(
        api=">=1,<2",
        description="short prompts first",
        options="quire_my_policy.options:MyPolicyOptions",
    )


@hookimpl
def quire_register_policies() -> list[PolicySpec]:
    """`LLM(scheduling_policy="my-policy")` selects it."""
    return [PolicySpec("my-policy", "quire_my_policy.policy:MyPolicy")]
