"""What the checks of a drafter share: its factory and settings, its context, engines that it drafts for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NoReturn, cast
from unittest import SkipTest

from pydantic import BaseModel, ValidationError

from quire.api.config import EngineConfig
from quire.api.specs import DrafterSpec, FactoryRef
from quire.api.speculation import Drafter, DrafterContext
from quire.execution.device import detect_device
from quire.plugins import resolve_factory
from quire.testing.conformance import ConformanceError, require
from quire.testing.counting_model import write_counting_checkpoint
from quire.testing.drafter_calls import CheckedDrafter
from quire.testing.drafter_fakes import FakeCore
from quire.testing.extension_base import ExtensionConformance
from quire.testing.toy_model import MAX_LEN, VOCAB_SIZE

KIND = "drafter"
MAX_SEQS = 16

_METHODS = ("propose", "verified", "released", "close")


class DrafterBase(ExtensionConformance):
    """What the checks of a drafter share; see DrafterConformance for the attributes."""

    drafter: ClassVar[FactoryRef | None] = None
    settings: ClassVar[Mapping[str, object] | None] = MappingProxyType({})
    settings_model: ClassVar[FactoryRef | None] = None
    wrong_settings: ClassVar[tuple[Mapping[str, object], ...]] = ()
    draft_model_key: ClassVar[str] = ""
    num_speculative_tokens: ClassVar[int] = 5

    @classmethod
    def make_drafter(
        cls, num_speculative_tokens: int | None = None, settings: Mapping[str, object] | None = None
    ) -> CheckedDrafter:
        """A new drafter, its calls checked; a ValueError where the `settings` given here are wrong."""
        core = FakeCore()
        context = DrafterContext(
            config=EngineConfig.from_keywords({"model": "toy"}),
            device=detect_device("cpu"),
            vocab_size=VOCAB_SIZE,
            options=cls._options(cls.drafter, KIND),
            num_speculative_tokens=num_speculative_tokens or cls.num_speculative_tokens,
            max_model_len=MAX_LEN,
            max_num_seqs=MAX_SEQS,
            settings=cls._own_settings() if settings is None else cls.read_settings(settings),
            build_model=core.build_model,
            sample=core.sample,
        )
        made = _function(cls.find(cls.drafter, KIND))(context)
        core.is_building = False
        return cls._checked(made)

    @classmethod
    def given_settings(cls) -> dict[str, object]:
        """The drafter's keys of `speculative_config`, with the draft model's folder."""
        given = dict(cls.settings or {})
        if cls.draft_model_key:
            given[cls.draft_model_key] = str(cls.draft_folder())
        return given

    @classmethod
    def draft_folder(cls) -> Path:
        """A tiny draft model: it counts as the engines' model does, and slips elsewhere."""
        return cls.shared("draft", lambda: write_counting_checkpoint(cls._root() / "draft", slips=0.3))

    @classmethod
    def write_checkpoint(cls, folder: Path) -> Path:
        """A model whose text can be foreseen."""
        return write_counting_checkpoint(folder)

    @classmethod
    def read_settings(cls, given: Mapping[str, object]) -> BaseModel | None:
        """The settings as the drafter's context holds them; ValidationError where they are wrong."""
        model = cls._settings_model()
        if model is None:
            require(not given, f"it has no settings, and is given {sorted(given)}: give `settings_model`")
            return None
        return model.model_validate(dict(given))

    @classmethod
    def nothing_shown(cls, what: str) -> NoReturn:
        """The drafter gave the check nothing to look at: a skip where its settings are unknown."""
        remedy = f"{what}: give `settings` under which it knows counted text (6 7 8 9 10 11 6 7 ...)"
        raise SkipTest(remedy) if cls.settings is None else ConformanceError(remedy)

    @classmethod
    def engine_spec(cls, made: list[CheckedDrafter]) -> DrafterSpec:
        """The drafter as engines take it; what their factory makes is added to the list, with its calls checked."""
        function = _function(cls.find(cls.drafter, KIND))
        options = cls._options(cls.drafter, KIND)

        def make(context: DrafterContext) -> Drafter:
            made.append(cls._checked(function(replace(context, options=options))))
            return made[-1]

        return DrafterSpec(cls.name or "tested", make, settings=cls._settings_model())

    @classmethod
    def _checked(cls, made: object) -> CheckedDrafter:
        missing = [name for name in _METHODS if not callable(getattr(made, name, None))]
        require(
            not missing,
            f"the factory made a {type(made).__name__} without {', '.join(missing)}: derive from Drafter",
        )
        return CheckedDrafter(cast(Drafter, made), VOCAB_SIZE)

    @classmethod
    def _own_settings(cls) -> BaseModel | None:
        given = cls.given_settings()
        try:
            return cls.read_settings(given)
        except ValidationError as error:
            if cls.settings is None:
                raise SkipTest(f"its settings have no defaults: give `settings` ({error})") from None
            raise ConformanceError(f"the settings {given} are refused: {error}") from error

    @classmethod
    def _settings_model(cls) -> type[BaseModel] | None:
        reference = cls.settings_model
        if reference is None and cls.drafter is None:
            reference = cast(DrafterSpec, cls._entry(KIND).spec).settings
        return None if reference is None else cast(type[BaseModel], resolve_factory(reference))


def _function(factory: FactoryRef) -> Callable[[Any], object]:
    return cast(Callable[[Any], object], resolve_factory(factory))
