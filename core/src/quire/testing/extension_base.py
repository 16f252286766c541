"""What the suites of policies, drafters and logits processors share: the factory, its context, a toy engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, ClassVar, cast

from quire.api.config import EngineConfig
from quire.api.extensions import ExtensionContext
from quire.api.specs import DrafterSpec, FactoryRef, LogitsProcessorSpec, PolicySpec, Registration
from quire.execution.device import detect_device
from quire.plugins import PluginHost, resolve_factory
from quire.plugins.registry import Registry
from quire.testing.conformance import Conformance, ConformanceError
from quire.testing.served_model import ServedModel, WatchedEngine
from quire.testing.toy_model import ARCHITECTURE, VOCAB_SIZE, write_toy_checkpoint

_FACTORY = "quire.testing.toy_model:ToyModel"


class ExtensionConformance(Conformance):
    """Base of the suites of things that an ExtensionContext makes."""

    name: ClassVar[str] = ""
    options: ClassVar[Any] = None

    @classmethod
    def find(cls, factory: FactoryRef | None, kind: str) -> FactoryRef:
        """The factory at hand, else that of the installed thing called `name`."""
        if factory is not None:
            return factory
        if not cls.name:
            raise ConformanceError(f"give the suite the `name` of an installed {kind}, or its factory")
        return cls._entry(kind).spec.factory  # type: ignore[attr-defined,no-any-return]  # specs of these kinds have it

    @classmethod
    def make(cls, factory: FactoryRef | None, kind: str, vocab_size: int = VOCAB_SIZE) -> Any:
        """What the factory makes of a new context."""
        function = cast(Callable[[ExtensionContext], object], resolve_factory(cls.find(factory, kind)))
        return function(cls._context(factory, kind, vocab_size))

    @classmethod
    def wrapped(cls, factory: FactoryRef | None, kind: str) -> Callable[[ExtensionContext], object]:
        """The factory, as a callable that puts the suite's options into the context."""
        function = cast(Callable[[ExtensionContext], object], resolve_factory(cls.find(factory, kind)))
        options = cls._options(factory, kind)
        return lambda context: function(replace(context, options=options))

    @classmethod
    def engine(
        cls,
        settings: Mapping[str, object] = MappingProxyType({}),
        *,
        policies: tuple[PolicySpec, ...] = (),
        processors: tuple[LogitsProcessorSpec, ...] = (),
        drafters: tuple[DrafterSpec, ...] = (),
    ) -> WatchedEngine:
        """An engine over the toy model, with settings of `EngineConfig`."""
        served = ServedModel(
            ARCHITECTURE, _FACTORY, policies=policies, processors=processors, drafters=drafters
        )
        folder = cls.shared("toy", lambda: cls.write_checkpoint(cls._root() / "toy"))
        return WatchedEngine(served, folder, {"block_size": 4, "enable_prefix_caching": False, **settings})

    @classmethod
    def write_checkpoint(cls, folder: Path) -> Path:
        """Write the toy model that the engines serve; returns the folder."""
        return write_toy_checkpoint(folder)

    @classmethod
    def _context(cls, factory: FactoryRef | None, kind: str, vocab_size: int) -> ExtensionContext:
        config = EngineConfig.from_keywords({"model": "toy"})
        return ExtensionContext(config, detect_device("cpu"), vocab_size, cls._options(factory, kind))

    @classmethod
    def _options(cls, factory: FactoryRef | None, kind: str) -> object:
        if cls.options is not None or factory is not None:
            return cls.options
        return cls._installed().options(cls._entry(kind).plugin)

    @classmethod
    def _entry(cls, kind: str) -> Registration:
        host = cls._installed()
        registries: tuple[Registry[Any], ...] = (host.policies, host.drafters, host.logits_processors)
        return next(registry for registry in registries if registry.kind == kind).registration(cls.name)

    @classmethod
    def _installed(cls) -> PluginHost:
        return cls.shared("installed", PluginHost.discover)

    @classmethod
    def _root(cls) -> Path:
        return Path(cls.shared("folder", TemporaryDirectory).name)
