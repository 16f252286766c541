"""The hooks of Quire's plugin API. Hooks return data or objects; none is called inside a step.

Each hook says When it is called, what it Returns, in which Ordering, what happens on Errors, and Since
which version of this API it exists. `HOOKS` holds the same as data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import pluggy

from quire.api.batch import DeviceInfo
from quire.api.config import EngineConfig
from quire.api.extensions import (
    CheckpointReader,
    ConfigProblem,
    EngineInfo,
    EngineObserver,
    FailureScope,
)
from quire.api.specs import (
    AttentionBackendSpec,
    CommandSpec,
    DrafterSpec,
    ExecutorSpec,
    LogitsProcessorSpec,
    ModelSpec,
    OpImplSpec,
    OpSpec,
    PluginInfo,
    PolicySpec,
    QuantizationSpec,
    ReasoningParserSpec,
    RouteSpec,
    StepCaptureSpec,
    ToolParserSpec,
)

if TYPE_CHECKING:
    from quire.api.protocols import Model

PROJECT_NAME = "quire"
ENTRY_POINT_GROUP = "quire"
HOOK_API_VERSION = (1, 5)

hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)


@dataclass(slots=True, frozen=True)
class HookPolicy:
    """What the host does with a hook.

    Attributes:
        scope: what a failure costs: "start" (the engine does not start; where a plugin is still being
            loaded and is optional, it is left out whole instead) or "observer" (logged, counted, passed
            over).
        since: the version of the hook API that brought it.
    """

    scope: FailureScope
    since: tuple[int, int] = (1, 0)


HOOKS: Final[Mapping[str, HookPolicy]] = MappingProxyType(
    {
        "quire_plugin_info": HookPolicy("start"),
        "quire_register_models": HookPolicy("start"),
        "quire_register_quantizations": HookPolicy("start"),
        "quire_register_drafters": HookPolicy("start"),
        "quire_register_attention_backends": HookPolicy("start"),
        "quire_register_step_captures": HookPolicy("start", since=(1, 4)),
        "quire_register_ops": HookPolicy("start"),
        "quire_register_policies": HookPolicy("start"),
        "quire_register_logits_processors": HookPolicy("start"),
        "quire_register_executors": HookPolicy("start"),
        "quire_register_routes": HookPolicy("start"),
        "quire_register_tool_parsers": HookPolicy("start"),
        "quire_register_reasoning_parsers": HookPolicy("start"),
        "quire_register_commands": HookPolicy("start"),
        "quire_resolve_model": HookPolicy("start"),
        "quire_open_checkpoint": HookPolicy("start"),
        "quire_check_config": HookPolicy("start"),
        "quire_prepare_model": HookPolicy("start"),
        "quire_create_observers": HookPolicy("observer"),
        "quire_engine_started": HookPolicy("observer"),
        "quire_engine_stopping": HookPolicy("observer"),
    }
)
"""Every hook, in the order of an engine's life, with what its failure costs."""

EXTENSION_POINTS: Final[Mapping[str, FailureScope]] = MappingProxyType(
    {
        "LogitsProcessorFactory.for_request": "request",
        "LogitsProcessor.__call__": "request",
        "SchedulingPolicy.key": "request",
        "EngineObserver.request_added": "observer",
        "EngineObserver.step_finished": "observer",
        "EngineObserver.request_finished": "observer",
    }
)
"""What plugins' objects are called for while requests run, with what a failure costs."""


@hookspec
def quire_plugin_info() -> PluginInfo:  # type: ignore[empty-body]  # a hookspec has no body
    """Say what this plugin is; required of every plugin.

    When: once, when the plugin is loaded.
    Returns: a PluginInfo.
    Ordering: before every other hook of the plugin.
    Errors: the plugin is not loaded, and the start fails unless it is optional.
    Since: 1.0.
    """


@hookspec
def quire_register_models() -> list[ModelSpec]:  # type: ignore[empty-body]  # as above
    """Register model architectures.

    When: once, at load.
    Returns: a list of ModelSpec; empty when there is nothing.
    Ordering: plugins in load order; a name that is taken is a collision.
    Errors: everything that the plugin registered is taken back, and the start fails unless it is optional.
    Since: 1.0.
    """


@hookspec
def quire_register_quantizations() -> list[QuantizationSpec]:  # type: ignore[empty-body]  # as above
    """Register quantization methods.

    When: once, at load.
    Returns: a list of QuantizationSpec; empty when there is nothing.
    Ordering: plugins in load order; a name that is taken is a collision.
    Errors: everything that the plugin registered is taken back, and the start fails unless it is optional.
    Since: 1.0.
    """


@hookspec
def quire_register_drafters() -> list[DrafterSpec]:  # type: ignore[empty-body]  # as above
    """Register drafters of speculative decoding.

    When: once, at load.
    Returns: a list of DrafterSpec; empty when there is nothing.
    Ordering: plugins in load order; a name that is taken is a collision.
    Errors: everything that the plugin registered is taken back, and the start fails unless it is optional.
    Since: 1.0.
    """


@hookspec
def quire_register_attention_backends() -> list[AttentionBackendSpec]:  # type: ignore[empty-body]  # as above
    """Register attention backends.

    When: once, at load.
    Returns: a list of AttentionBackendSpec; empty when there is nothing.
    Ordering: plugins in load order; a name that is taken is a collision.
    Errors: everything that the plugin registered is taken back, and the start fails unless it is optional.
    Since: 1.0.
    """


@hookspec
def quire_register_step_captures() -> list[StepCaptureSpec]:  # type: ignore[empty-body]  # as above
    """Register ways to record a model's steps and replay them.

    When: once, at load.
    Returns: a list of StepCaptureSpec; empty when there is nothing.
    Ordering: plugins in load order; a name that is taken is a collision.
    Errors: everything that the plugin registered is taken back, and the start fails unless it is optional.
    Since: 1.4.
    """


@hookspec
def quire_register_ops() -> list[OpSpec | OpImplSpec]:  # type: ignore[empty-body]  # as above
    """Register ops and implementations of ops.

    When: once, at load.
    Returns: a list of OpSpec or OpImplSpec; empty when there is nothing.
    Ordering: plugins in load order; a name that is taken is a collision.
    Errors: everything that the plugin registered is taken back, and the start fails unless it is optional.
    Since: 1.0.
    """


@hookspec
def quire_register_policies() -> list[PolicySpec]:  # type: ignore[empty-body]  # as above
    """Register scheduling policies.

    When: once, at load.
    Returns: a list of PolicySpec; empty when there is nothing.
    Ordering: plugins in load order; a name that is taken is a collision.
    Errors: everything that the plugin registered is taken back, and the start fails unless it is optional.
    Since: 1.0.
    """


@hookspec
def quire_register_logits_processors() -> list[LogitsProcessorSpec]:  # type: ignore[empty-body]  # as above
    """Register logits processors.

    When: once, at load.
    Returns: a list of LogitsProcessorSpec; empty when there is nothing.
    Ordering: plugins in load order; a name that is taken is a collision.
    Errors: everything that the plugin registered is taken back, and the start fails unless it is optional.
    Since: 1.0.
    """


@hookspec
def quire_register_executors() -> list[ExecutorSpec]:  # type: ignore[empty-body]  # as above
    """Register executors.

    When: once, at load.
    Returns: a list of ExecutorSpec; empty when there is nothing.
    Ordering: plugins in load order; a name that is taken is a collision.
    Errors: everything that the plugin registered is taken back, and the start fails unless it is optional.
    Since: 1.0.
    """


@hookspec
def quire_register_routes() -> list[RouteSpec]:  # type: ignore[empty-body]  # as above
    """Register HTTP routes of the server.

    When: once, at load.
    Returns: a list of RouteSpec; empty when there is nothing.
    Ordering: plugins in load order; a name that is taken is a collision.
    Errors: everything that the plugin registered is taken back, and the start fails unless it is optional.
    Since: 1.0.
    """


@hookspec
def quire_register_tool_parsers() -> list[ToolParserSpec]:  # type: ignore[empty-body]  # as above
    """Register parsers of tool calls.

    When: once, at load.
    Returns: a list of ToolParserSpec; empty when there is nothing.
    Ordering: plugins in load order; a name that is taken is a collision.
    Errors: everything that the plugin registered is taken back, and the start fails unless it is optional.
    Since: 1.0.
    """


@hookspec
def quire_register_reasoning_parsers() -> list[ReasoningParserSpec]:  # type: ignore[empty-body]  # as above
    """Register parsers of reasoning.

    When: once, at load.
    Returns: a list of ReasoningParserSpec; empty when there is nothing.
    Ordering: plugins in load order; a name that is taken is a collision.
    Errors: everything that the plugin registered is taken back, and the start fails unless it is optional.
    Since: 1.0.
    """


@hookspec
def quire_register_commands() -> list[CommandSpec]:  # type: ignore[empty-body]  # as above
    """Register commands of the command line.

    When: once, at load.
    Returns: a list of CommandSpec; empty when there is nothing.
    Ordering: plugins in load order; a name that is taken is a collision.
    Errors: everything that the plugin registered is taken back, and the start fails unless it is optional.
    Since: 1.0.
    """


@hookspec(firstresult=True)
def quire_resolve_model(name: str) -> Path | None:
    """Turn a model's name into a local folder.

    Args:
        name: as the user gave it, e.g. "tiny".

    When: when a model's name is not an existing folder; core's hub download comes last.
    Returns: the folder, or None to let the next plugin try.
    Ordering: plugins in load order; the first folder wins.
    Errors: the start fails, naming the plugin.
    Since: 1.0.
    """


@hookspec(firstresult=True)
def quire_open_checkpoint(path: Path) -> CheckpointReader | None:
    """Open a model folder's weights in a format that core does not read.

    Args:
        path: the model's folder.

    When: before weights are loaded.
    Returns: a CheckpointReader, or None to let the next plugin try; core's safetensors comes last.
    Ordering: plugins in load order; the first reader wins.
    Errors: the start fails, naming the plugin.
    Since: 1.0.
    """


@hookspec
# for mypy: as above
def quire_check_config(config: EngineConfig, device: DeviceInfo, options: object) -> list[ConfigProblem]:  # type: ignore[empty-body]
    """Look for settings that cannot work with this plugin.

    Args:
        config: the whole configuration, frozen.
        device: where the model will run.
        options: the plugin's validated options (an instance of its options model), or None.

    When: when configuration and device are known, before weights are loaded.
    Returns: a list of ConfigProblems; empty when all is well.
    Ordering: plugins in load order; all problems are reported together.
    Errors: the start fails, naming the plugin.
    Since: 1.0.
    """


@hookspec
def quire_prepare_model(model: Model, config: EngineConfig, options: object) -> None:
    """Change a loaded model in place: wrap a layer, register a forward hook.

    Between the built-in models' layers flows a `quire.nn.norm.Stream`: a tensor [T, E], or two whose sum it is. What
    reads or changes a layer's input or result must take both. The last layer is told when it is built that it makes
    the sum: keep it in its place.

    Args:
        model: the loaded model, an `nn.Module`.
        config: the whole configuration, frozen.
        options: the plugin's validated options (an instance of its options model), or None.

    When: after weights are loaded and processed, before the KV cache is allocated.
    Returns: nothing.
    Ordering: plugins in load order.
    Errors: the start fails, naming the plugin.
    Since: 1.0.
    """


@hookspec
def quire_create_observers(config: EngineConfig, options: object) -> list[EngineObserver]:  # type: ignore[empty-body]  # as above
    """Make the observers of one engine.

    Args:
        config: the whole configuration, frozen.
        options: the plugin's validated options (an instance of its options model), or None.

    When: once, when the engine is built.
    Returns: a list of EngineObservers.
    Ordering: plugins in load order, which is also the order of their calls.
    Errors: logged and counted; the engine starts without them.
    Since: 1.0.
    """


@hookspec
def quire_engine_started(info: EngineInfo) -> None:
    """The engine takes requests from now on.

    Args:
        info: the engine in words and numbers, frozen.

    When: once, at the end of the start.
    Returns: nothing.
    Ordering: plugins in load order.
    Errors: logged and counted; the engine goes on.
    Since: 1.0.
    """


@hookspec
def quire_engine_stopping(info: EngineInfo, error: BaseException | None) -> None:
    """The engine is closing: flush and let go.

    Args:
        info: as in `quire_engine_started`.
        error: what ended the engine, or None.

    When: once, before the engine frees its memory.
    Returns: nothing.
    Ordering: plugins in the reverse of load order.
    Errors: logged and counted; the engine goes on closing.
    Since: 1.0.
    """
