"""What the checks of a model share: tiny checkpoints, the reference, and how the model is served."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, cast

from torch import Tensor

from quire.api.errors import UnsupportedModelError
from quire.api.protocols import ModelConfig, ModelFactory
from quire.api.specs import Capabilities, FactoryRef, OpImplSpec, OpSpec
from quire.loading.hf_config import read_hf_config
from quire.plugins import PluginHost, resolve_factory
from quire.plugins.builtin import BUILTIN_PLUGINS
from quire.testing.conformance import Conformance, ConformanceError
from quire.testing.forward import SequenceForward
from quire.testing.hf_configs import derive_configs, find_hf_class
from quire.testing.hf_reference import HFReference, write_hf_checkpoint
from quire.testing.model_traits import needs_engine
from quire.testing.served_model import ServedModel

_MAX_LEN = 64


@dataclass(frozen=True)
class Variant:
    """One tiny checkpoint of the model.

    Attributes:
        name: the key in `configs`. config: as the model parsed it.
        refusal: why the model does not serve it, or empty.
    """

    name: str
    folder: Path
    config: ModelConfig | None = None
    refusal: str = ""

    @property
    def parsed(self) -> ModelConfig:
        """The parsed configuration of a variant that is served."""
        if self.config is None:
            raise ConformanceError(f"{self.name}: {self.refusal}")
        return self.config

    @property
    def max_len(self) -> int:
        """The longest context that the checks use."""
        return min(self.parsed.max_position_embeddings, _MAX_LEN)

    @property
    def is_length_dependent(self) -> bool:
        """Whether a token's logits depend on the length of its prompt."""
        return self.parsed.rope_switch_len is not None


class ModelBase(Conformance):
    """What the checks of a model share: its checkpoints, its reference, how it is served."""

    architecture: ClassVar[str] = ""
    factory: ClassVar[FactoryRef | None] = None
    hf_class: ClassVar[Any] = None
    configs: ClassVar[Mapping[str, Mapping[str, object]]] = {}
    ops: ClassVar[tuple[OpSpec | OpImplSpec, ...]] = ()
    attention_backend: ClassVar[FactoryRef | None] = None
    capabilities: ClassVar[Capabilities | None] = None
    tolerance_float64: ClassVar[float] = 1e-9
    tolerance_float32: ClassVar[float] = 1e-4

    def write_checkpoint(self, fields: Mapping[str, object], folder: Path) -> None:
        """Write config.json and random safetensors of one variant; override it with `reference`."""
        write_hf_checkpoint(self._hf_class(), fields, folder)

    def reference(
        self, folder: Path, token_ids: Sequence[int], *, prompt_len: int | None = None, dtype: str = "float64"
    ) -> Tensor:
        """The right logits [T, V] of a sequence, in one pass; by default Hugging Face's.

        Args:
            folder: what `write_checkpoint` wrote.
            token_ids: the whole sequence.
            prompt_len: given where logits depend on the prompt's length (dynamic rotary scalings): then
                the tokens after it are computed one by one.
            dtype: "float64" or "float32".
        """
        hf_class = self._hf_class()
        model = self.shared(("hf", folder, dtype), lambda: HFReference(hf_class, folder, dtype))
        return model.logits(token_ids, prompt_len)

    def expected_logits(
        self, variant: Variant, token_ids: Sequence[int], prompt_len: int, dtype: str = "float64"
    ) -> Tensor:
        """The reference's logits [T, V] of a request's tokens, kept for the next check."""
        split = prompt_len if variant.is_length_dependent else None
        key = ("expected", variant.folder, tuple(token_ids), split, dtype)
        return self.shared(
            key, lambda: self.reference(variant.folder, token_ids, prompt_len=split, dtype=dtype)
        )

    def variants(self) -> list[Variant]:
        """The variants that the model serves; ConformanceError where it serves none."""
        return self.shared("variants", self._make_variants)

    def engine_variants(self) -> list[Variant]:
        """Those that differ in what engines have to care for: the first, windows, alibi, length-dependent ropes."""
        if self.is_thorough:
            return self.variants()
        return self.shared("engine variants", lambda: needs_engine(self.variants(), self._params_of))

    def served(self) -> ServedModel:
        """The model as the checks serve it."""
        ops = self.ops or (() if type(self).factory is not None else self._installed_ops())
        return ServedModel(self._architecture(), self._factory(), ops, type(self).attention_backend)

    def sequence(self, variant: Variant, dtype: str = "float64") -> SequenceForward:
        """The model with one empty sequence."""
        host = self.shared(("host", dtype), self.served().host)
        # for mypy: a name of a dtype
        return SequenceForward(variant.folder, dtype, max_len=variant.max_len, host=host)  # type: ignore[arg-type]

    def token_ids(self, variant: Variant, length: int, seed: int = 0) -> list[int]:
        """Random tokens."""
        draw = random.Random(seed)
        return [draw.randrange(variant.parsed.vocab_size) for _ in range(length)]

    def _params_of(self, variant: Variant) -> tuple[object, ...]:
        return tuple(layer.params for layer in self.sequence(variant).built.attention_layers)

    def _make_variants(self) -> list[Variant]:
        root = self.shared("folder", TemporaryDirectory)
        configs = self.configs or derive_configs(self._hf_class())
        made = [self._make_variant(name, fields, Path(root.name)) for name, fields in configs.items()]
        served = [variant for variant in made if not variant.refusal]
        if not served or (self.configs and len(served) < len(made)):
            refusals = "; ".join(f"{variant.name}: {variant.refusal}" for variant in made if variant.refusal)
            raise ConformanceError(f"the model does not serve the suite's configurations: {refusals}")
        self.note(*(f"refused {variant.name}" for variant in made if variant.refusal))
        return served

    def _make_variant(self, name: str, fields: Mapping[str, object], root: Path) -> Variant:
        folder = root / f"{len(list(root.iterdir()))}"
        folder.mkdir()
        try:
            self.write_checkpoint(fields, folder)
            if not self.configs:
                self.reference(folder, [0, 1, 2])
        except ConformanceError:
            raise
        except Exception as error:
            if self.configs or name == "base":
                raise
            return Variant(name, folder, refusal=f"transformers does not serve it itself: {error}")
        try:
            return Variant(name, folder, self._model_factory().parse_config(read_hf_config(folder)))
        except UnsupportedModelError as error:
            return Variant(name, folder, refusal=str(error))

    def _hf_class(self) -> Any:
        if self.hf_class is None:
            return self.shared("hf class", lambda: find_hf_class(self._architecture()))
        return find_hf_class(self.hf_class) if isinstance(self.hf_class, str) else self.hf_class

    def _architecture(self) -> str:
        if self.architecture:
            return self.architecture
        if self.hf_class is None:
            raise ConformanceError("give the suite an `architecture`, or an `hf_class`")
        return self.hf_class if isinstance(self.hf_class, str) else str(self.hf_class.__name__)

    def _factory(self) -> FactoryRef:
        factory = type(self).factory  # not self's, which a function would be bound to
        if factory is not None:
            return factory
        return self._installed().models.spec(self._architecture()).factory

    def _capabilities(self) -> Capabilities:
        """The spec's, or those given to the suite."""
        if self.capabilities is not None:
            return self.capabilities
        if type(self).factory is not None:
            return Capabilities()
        return self._installed().models.spec(self._architecture()).capabilities

    def _installed_ops(self) -> tuple[OpSpec | OpImplSpec, ...]:
        host = self._installed()
        return ops_beside(host, host.models.registration(self._architecture()).plugin)

    def _model_factory(self) -> ModelFactory:
        return cast(ModelFactory, resolve_factory(self._factory()))

    def _installed(self) -> PluginHost:
        return self.shared("installed", PluginHost.discover)


def ops_beside(host: PluginHost, plugin: str) -> tuple[OpSpec | OpImplSpec, ...]:
    """The ops that a plugin's model can count on: all but core's, with the implementations that it brings."""
    specs = [entry.spec for entry in host.ops.registrations() if entry.plugin not in dict(BUILTIN_PLUGINS)]
    own = [entry.spec for entry in host.op_impls.registrations() if entry.plugin == plugin]
    return tuple(cast("OpSpec | OpImplSpec", spec) for spec in (*specs, *own))


def max_difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference; infinite where one is NaN."""
    difference = (found.double() - expected.double()).abs()
    return float("inf") if bool(difference.isnan().any()) else float(difference.max())
