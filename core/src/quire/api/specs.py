"""What plugins register: data, with factories named as "module:attribute" and imported late."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from quire.api.batch import DeviceInfo, DTypeName, KVCacheDTypeName
from quire.api.quantization import QuantizationRequest

FactoryRef = str | Callable[..., object]
"""A "module:attribute" string, imported when first used, or the callable itself."""


Placement = Literal["frontend", "engine", "worker"]
"""A kind of process: the one that talks to users, the one that plans, the ones that compute."""


@dataclass(slots=True, frozen=True)
class Capabilities:
    """What a registered thing can be combined with; None stands for everything.

    An impossible combination is refused before weights are loaded, and the message names both sides.

    Attributes:
        dtypes: of the model. devices: "cpu", "cuda".
        quantizations: names of quantization methods; () for none.
        tensor_parallel: works with more than one rank.
        sliding_windows: works with layers that see only the latest tokens.
        drafts: works when a step verifies drafted tokens.
        prefix_caching, chunked_prefill: works with them.
    """

    dtypes: tuple[DTypeName, ...] | None = None
    devices: tuple[str, ...] | None = None
    quantizations: tuple[str, ...] | None = None
    tensor_parallel: bool = True
    sliding_windows: bool = True
    drafts: bool = True
    prefix_caching: bool = True
    chunked_prefill: bool = True


@dataclass(slots=True, frozen=True)
class PluginInfo:
    """A plugin about itself.

    Attributes:
        api: the range of hook API versions that it was written for, e.g. ">=1,<2".
        description: one line for `quire plugins list`.
        options: a pydantic model of the plugin's options, or "module:Class"; None: it has none. Give
            every option a default and a description, and forbid unknown keys or not: Quire refuses them.
        before, after: names of plugins that are to be loaded later or earlier than this one, where installed.
        runs_in: the kinds of process that need it.
        affects_outputs: whether it can change logits or KV; None: decided by what it registers (models,
            ops, attention, quantization, logits processors, prepare_model do).
    """

    api: str
    description: str = ""
    options: FactoryRef | None = None
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    runs_in: tuple[Placement, ...] = ("frontend", "engine", "worker")
    affects_outputs: bool | None = None


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
class WeightPart:
    """One part of a linear (or a plain module) and the checkpoint module that fills it.

    Attributes:
        source: the checkpoint's module name; "{i}" stands for the layer index.
        part: name of the linear's part; None where the module is not a linear of several parts.
        transposed: the checkpoint stores [in, out] (GPT-2's Conv1D).
        row_permutation: None, or for each output row of the part the row of the checkpoint it is
            taken from (interleaved QKV, rope pairings). May select a subset: several parts can
            share one source.
    """

    source: str
    part: str | None = None
    transposed: bool = False
    row_permutation: tuple[int, ...] | None = None


@dataclass(slots=True, frozen=True)
class WeightMap:
    """Where a checkpoint's modules go.

    Attributes:
        modules: the model's module path ("layers.{i}.attention.qkv") to its parts.
        num_layers: what "{i}" runs over.
        ignored: regular expressions (full match) of checkpoint tensors that carry nothing.
        prefixes: alternative prefixes that checkpoints put before (or leave out of) names, tried
            in turn, e.g. ("", "transformer.").
    """

    modules: Mapping[str, tuple[WeightPart, ...]]
    num_layers: int
    ignored: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ("",)


@dataclass(slots=True, frozen=True)
class Registration:
    """A registered spec and who brought it."""

    spec: object
    plugin: str
    distribution: str
    version: str
