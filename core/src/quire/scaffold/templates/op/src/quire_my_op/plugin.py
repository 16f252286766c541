"""The plugin `my-op`: registers an op and an implementation. Imports `quire.api` only."""

from __future__ import annotations

from quire.api.batch import DeviceInfo, DTypeName
from quire.api.hookspecs import hookimpl
from quire.api.specs import OpImplSpec, OpSpec, PluginInfo

SPEC = OpSpec("my_op", "(Tensor x) -> Tensor", "quire_my_op.reference:my_op")
"""The op: models call it as `ctx.ops.my_op(x)`. The schema is in the language of `torch.library`."""


@hookimpl
def quire_plugin_info() -> PluginInfo:
    """The range of hook API versions that this was written for, and a line for `quire plugins list`."""
    return PluginInfo(api=">=1,<2", description="the squared ReLU")


@hookimpl
def quire_register_ops() -> list[OpSpec | OpImplSpec]:
    """The op and a faster implementation, which is bound where it is supported.

    To implement an op that exists already (`quire plugins ops` lists them), leave the OpSpec out.
    """
    return [
        SPEC,
        OpImplSpec("my_op", "fast", "quire_my_op.fast:my_op", supports=supports, priority=10),
    ]


def supports(device: DeviceInfo, dtype: DTypeName) -> str | None:
    """None where the fast implementation can be used, else the reason, which `quire plugins ops` shows."""
    if dtype == "float64":
        return "float64 is left to the reference"
    return None
