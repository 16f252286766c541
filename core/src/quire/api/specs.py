"""What plugins register: data, with factories named as "module:attribute" and imported late."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from quire.api.batch import DeviceInfo, DTypeName, KVCacheDTypeName
from quire.api.plugin_info import Capabilities, FactoryRef, Placement, PluginInfo
from quire.api.quantization import QuantizationRequest
from quire.api.weights import WeightMap, WeightPart

__all__ = [
    "AttentionBackendSpec",
    "Capabilities",
    "CommandSpec",
    "DrafterSpec",
    "ExecutorSpec",
    "FactoryRef",
    "LogitsProcessorSpec",
    "ModelSpec",
    "OpImplSpec",
    "OpSpec",
    "Placement",
    "PluginInfo",
    "PolicySpec",
    "QuantizationSpec",
    "ReasoningParserSpec",
    "Registration",
    "RouteSpec",
    "StepCaptureSpec",
    "ToolParserSpec",
    "WeightMap",
    "WeightPart",
]


@dataclass(slots=True, frozen=True)
class ModelSpec:
    """A model architecture.

    Attributes:
        architecture: as in config.json's `architectures`, e.g. "LlamaForCausalLM".
        factory: a ModelFactory (see `quire.api.protocols`).
    """

    architecture: str
    factory: FactoryRef
    capabilities: Capabilities = Capabilities()


@dataclass(slots=True, frozen=True)
class QuantizationSpec:
    """A quantization method.

    A checkpoint's label (its config's `quant_method`) is claimed by the methods that serve it in the order
    of their priority; the first whose `supports` has nothing against it serves the checkpoint. A method
    without labels quantizes 16-bit checkpoints while they are loaded, when the settings name it.

    Attributes:
        name: what `quantization` in the settings and `quire plugins doctor` call it; words joined by "-".
        factory: called with a QuantizationContext, gives a QuantizationMethod (see `quire.api.quantization`).
        quant_methods: labels that it serves; () for a method that quantizes on the fly.
        supports: returns None when it serves a QuantizationRequest, else the reason why not; None: everything.
            It reads labels and bits; what is wrong in a config is for the factory to say.
        priority: methods of higher priority claim a label first.
        aliases: further names that the settings may use.
    """

    name: str
    factory: FactoryRef
    quant_methods: tuple[str, ...] = ()
    capabilities: Capabilities = Capabilities()
    supports: Callable[[QuantizationRequest], str | None] | None = None
    priority: int = 10
    aliases: tuple[str, ...] = ()


@dataclass(slots=True, frozen=True)
class DrafterSpec:
    """A drafter: `speculative_config={"method": name}` selects it.

    Attributes:
        factory: called once per engine with a DrafterContext, gives a Drafter (see `quire.api.speculation`).
        settings: a pydantic model of its own keys in `speculative_config`, or "module:Class"; None: it has
            none. What the validated model's `__str__` says is printed at the start.
    """

    name: str
    factory: FactoryRef
    capabilities: Capabilities = Capabilities()
    settings: FactoryRef | None = None


@dataclass(slots=True, frozen=True)
class PolicySpec:
    """A scheduling policy: `scheduling_policy=name` selects it.

    Attributes:
        factory: called with an ExtensionContext, gives a SchedulingPolicy.
    """

    name: str
    factory: FactoryRef
    capabilities: Capabilities = Capabilities()


@dataclass(slots=True, frozen=True)
class LogitsProcessorSpec:
    """A logits processor: `SamplingParams(extra_args={name: arguments})` asks for it.

    Attributes:
        factory: called once per engine with an ExtensionContext, gives a LogitsProcessorFactory.
        is_always_on: whether requests that do not name it get it too (its factory may still pass).
    """

    name: str
    factory: FactoryRef
    is_always_on: bool = False
    capabilities: Capabilities = Capabilities()


@dataclass(slots=True, frozen=True)
class ExecutorSpec:
    """An executor; the factory gets an ExtensionContext and gives an Executor."""

    name: str
    factory: FactoryRef
    capabilities: Capabilities = Capabilities()


@dataclass(slots=True, frozen=True)
class RouteSpec:
    """An HTTP route of the server, under `/plugins/PLUGIN`, behind the server's authentication.

    Attributes:
        path: "/...", after the plugin's name. methods: HTTP methods.
        factory: called with a RouteContext when the server starts, gives an ASGI application or a handler;
            see PluginRoute.
    """

    path: str
    factory: FactoryRef
    methods: tuple[str, ...] = ("POST",)


@dataclass(slots=True, frozen=True)
class ToolParserSpec:
    """A parser of tool calls in generated text, chosen by name.

    Attributes:
        factory: called with a ParserContext for each choice, gives a TextParser.
    """

    name: str
    factory: FactoryRef


@dataclass(slots=True, frozen=True)
class ReasoningParserSpec:
    """A parser that splits reasoning from the answer, chosen by name.

    Attributes:
        factory: called with a ParserContext for each choice, gives a TextParser.
    """

    name: str
    factory: FactoryRef


@dataclass(slots=True, frozen=True)
class OpSpec:
    """An op: a named function with a plain-torch reference.

    Attributes:
        schema: a torch.library schema without the name, e.g. "(Tensor x, Tensor weight, float eps) -> Tensor".
    """

    name: str
    schema: str
    reference: FactoryRef


@dataclass(slots=True, frozen=True)
class OpImplSpec:
    """An implementation of an op, chosen where `supports(device, dtype)` has nothing against it.

    Attributes:
        op: the OpSpec's name. name: of this implementation, unique per op.
        priority: the highest supported one is bound; references have 0.
        supports: returns None when supported, else the reason why not (shown by `quire plugins ops`).
    """

    op: str
    name: str
    factory: FactoryRef
    supports: Callable[[DeviceInfo, DTypeName], str | None]
    priority: int = 10


@dataclass(slots=True, frozen=True)
class AttentionBackendSpec:
    """An attention backend; chosen like an op implementation, overridable by `attention_backend`.

    Attributes:
        factory: called without arguments, gives an AttentionBackend.
        kv_cache_dtypes: values of the setting `kv_cache_dtype` that it serves. Since: 1.5.
    """

    name: str
    factory: FactoryRef
    supports: Callable[[DeviceInfo, DTypeName], str | None]
    priority: int = 10
    capabilities: Capabilities = Capabilities()
    kv_cache_dtypes: tuple[KVCacheDTypeName, ...] = ("auto",)


@dataclass(slots=True, frozen=True)
class StepCaptureSpec:
    """A way to record a model's steps and replay them; the supported one of the highest priority is asked.

    What it replays is compared with the model's own results before the first request; where they differ, or where
    it raises CaptureError, steps are run call by call, and the log says why.

    Attributes:
        factory: called without arguments, gives a StepCapture (see `quire.api.protocols`).
    """

    name: str
    factory: FactoryRef
    supports: Callable[[DeviceInfo, DTypeName], str | None]
    priority: int = 10


@dataclass(slots=True, frozen=True)
class CommandSpec:
    """A CLI command `quire NAME`.

    Attributes:
        factory: called without arguments, gives a Command.
        takes_tools: the factory is called with CommandTools instead.
    """

    name: str
    help: str
    factory: FactoryRef
    takes_tools: bool = False


@dataclass(slots=True, frozen=True)
class Registration:
    """A registered spec and who brought it."""

    spec: object
    plugin: str
    distribution: str
    version: str
