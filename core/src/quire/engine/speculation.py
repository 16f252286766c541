"""From `speculative_config` to a drafter and the control of its drafts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from pydantic import BaseModel

from quire.api.config import EngineConfig
from quire.api.errors import ConfigError, PluginError, QuireError
from quire.api.specs import DrafterSpec, Registration
from quire.api.speculation import Drafter, DrafterContext
from quire.api.speculative_config import SpeculativeConfig
from quire.engine.draft_models import DraftModelLoader, Target
from quire.execution.drafting.adaptive_control import AdaptiveControl
from quire.execution.drafting.control import FixedControl
from quire.execution.drafting.draft_model import DraftRuntime
from quire.execution.drafting.draft_sampler import DraftSampler
from quire.execution.drafting.guarded_drafter import GuardedDrafter, LoadedDrafter
from quire.execution.drafting.speculator import DrafterRules, RunnerParts, Speculator
from quire.execution.runner import ModelRunner
from quire.execution.sampler import SamplingOps
from quire.plugins import PluginHost, resolve_factory
from quire.plugins.options import OptionsError, validate_model
from quire.plugins.registry import describe_origin, nearest

logger = logging.getLogger("quire")


@dataclass(slots=True, frozen=True)
class ChosenDrafter:
    """The drafter that the settings name.

    Attributes:
        settings: its own keys of `speculative_config`, validated; None where it has none.
    """

    config: SpeculativeConfig
    spec: DrafterSpec
    entry: Registration
    settings: BaseModel | None

    def describe(self) -> str:
        """One line for the log."""
        parts = [f"up to {self.config.num_speculative_tokens} draft tokens"]
        if self.settings is not None:
            parts.append(str(self.settings))
        parts.append("adaptive" if self.config.adaptive else "not adaptive")
        if self.config.disable_by_batch_size is not None:
            parts.append(f"none above {self.config.disable_by_batch_size} requests")
        return f"{self.spec.name} of {describe_origin(self.entry)}: {', '.join(parts)}"


def choose_drafter(config: EngineConfig, host: PluginHost) -> ChosenDrafter | None:
    """The drafter that `speculative_config` names, before anything is built; None where nothing is drafted.

    Raises:
        ConfigError: there is no such drafter, or its settings are wrong.
        PluginError: its settings model fails.
    """
    asked = config.speculation.speculative_config
    if asked is None:
        return None
    if asked.method not in host.drafters:
        raise ConfigError(
            f"speculative_config.method={asked.method!r} is not a registered drafter: "
            f"{nearest(asked.method, host.drafters)} (registered: {', '.join(host.drafters) or 'none'})"
        )
    entry = host.drafters.registration(asked.method)
    spec = host.drafters.spec(asked.method)
    return ChosenDrafter(asked, spec, entry, _read_settings(asked, spec, entry))


def make_drafter(chosen: ChosenDrafter, host: PluginHost, context: DrafterContext) -> Drafter:
    """Call the drafter's factory.

    Raises:
        QuireError: whatever the factory raises on purpose, e.g. that its draft model cannot be loaded.
        PluginError: it failed otherwise, or made something that is no drafter.
    """
    origin = describe_origin(chosen.entry)
    reference = chosen.spec.factory
    factory = cast("Callable[..., object]", resolve_factory(reference, chosen.entry))
    try:
        made = host.calls.call(chosen.entry.plugin, "DrafterSpec.factory", factory, context)
    except QuireError:
        raise
    except (Exception, SystemExit) as error:
        what = f"{type(error).__name__}: {error}"
        raise PluginError(f"DrafterSpec.factory {reference!r} of {origin} failed: {what}") from error
    if not isinstance(made, Drafter):
        raise PluginError(
            f"drafter {chosen.spec.name!r} of {origin}: its factory gave {made!r}, which is no Drafter: derive it "
            "from quire.api.speculation.Drafter"
        )
    return made


class Speculation:
    """An engine's drafter, from its factory to the runner."""

    def __init__(self, chosen: ChosenDrafter, host: PluginHost, target: Target) -> None:
        """Call the drafter's factory, which may build models.

        Raises:
            QuireError: it refuses the settings, fails, or cannot have the model that it asks for.
        """
        self._chosen = chosen
        self._calls = host.calls
        self._vocab_size = target.source.config.vocab_size
        self._block_size = target.config.cache.block_size
        self._sampler = DraftSampler(SamplingOps.of(target.ops))
        loader = DraftModelLoader(host, target, self._sampler)
        context = DrafterContext(
            config=target.config,
            device=target.settings.device,
            vocab_size=self._vocab_size,
            options=host.options(chosen.entry.plugin),
            num_speculative_tokens=self.max_drafts,
            max_model_len=target.settings.max_model_len,
            max_num_seqs=target.config.scheduler.max_num_seqs,
            settings=chosen.settings,
            build_model=loader.build_model,
            sample=self._sampler.sample,
        )
        self._drafter = make_drafter(chosen, host, context)
        loader.close()
        self._models = tuple(loader.models)

    @property
    def plugin(self) -> str:
        """Who brought the drafter."""
        return self._chosen.entry.plugin

    @property
    def max_drafts(self) -> int:
        """Most draft tokens of a request in a step."""
        return self._chosen.config.num_speculative_tokens

    @property
    def kv_bytes_per_block(self) -> int:
        """Bytes that one block takes in the draft models' caches, beside the target's."""
        return sum(model.kv_bytes_per_block(self._block_size) for model in self._models)

    @property
    def num_lookahead_tokens(self) -> int:
        """KV slots past a row's tokens that the draft models write."""
        return self.max_drafts if self._models else 0

    def make_speculator(self, num_blocks: int, parts: RunnerParts) -> Speculator:
        """What the runner asks for drafts; allocates the draft models' KV caches.

        Args:
            num_blocks: of the KV pool.
            parts: of the runner.
        """
        config, spec, limits = self._chosen.config, self._chosen.spec, parts.limits
        loaded = LoadedDrafter(spec.name, self.plugin, describe_origin(self._chosen.entry), self._drafter)
        drafter = GuardedDrafter(loaded, self._vocab_size, self._calls.call)
        kind = AdaptiveControl if config.adaptive else FixedControl
        control = kind(self.max_drafts, limits.max_num_seqs)
        rules = DrafterRules(self.max_drafts, self._models)
        speculator = Speculator(drafter, control, parts.builder, limits, rules)
        self._sampler.bind(parts.sampling, speculator.slot_of)
        runtime = DraftRuntime(parts.builder, limits, num_blocks, self._vocab_size, speculator.slot_of)
        for model in self._models:
            model.bind(runtime)
        return speculator

    def prepare(self, runner: ModelRunner, num_blocks: int) -> None:
        """Measure what the control needs to know, and say what was settled."""
        logger.info("speculation: %s", self._chosen.describe())
        for model in self._models:
            logger.info("draft model %s", model.describe(self._block_size))
        if self._chosen.config.adaptive:
            runner.calibrate(num_blocks)


def _read_settings(asked: SpeculativeConfig, spec: DrafterSpec, entry: Registration) -> BaseModel | None:
    given = asked.drafter_settings
    known = ", ".join(SpeculativeConfig.model_fields)
    if spec.settings is None:
        if given:
            raise ConfigError(
                f"speculative_config: drafter {spec.name!r} has no settings of its own; leave "
                f"{', '.join(sorted(given))} out (all take {known})"
            )
        return None
    model = resolve_factory(cast("str", spec.settings), entry)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise PluginError(
            f"DrafterSpec.settings of {describe_origin(entry)} is {model!r}, expected a pydantic model"
        )
    try:
        return validate_model(model, given, "speculative_config")
    except OptionsError as error:
        raise ConfigError(f"{error} (drafter {spec.name!r}; all drafters take {known})") from None
