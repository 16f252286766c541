"""Loads the models that drafters run: of the target's vocabulary, dtype and device."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import cast

from torch import nn

from quire.api.config import EngineConfig
from quire.api.errors import ConfigError, QuireError, TokenizerError
from quire.api.quantization import QuantizationRequest
from quire.engine.model_loading import ModelFiles, load_model
from quire.engine.model_source import ModelSource, read_model_folder
from quire.engine.quantization import choose_method, log_summary
from quire.execution.drafting.draft_model import PagedDraftModel
from quire.execution.drafting.draft_sampler import DraftSampler
from quire.execution.model_builder import BuildSettings
from quire.loading.quantization_config import read_quantization_config
from quire.loading.resolve import resolve_model_folder
from quire.loading.tokenizer import Tokenizer
from quire.ops.table import OpTable
from quire.plugins import PluginHost
from quire.plugins.capabilities import Combination

logger = logging.getLogger("quire")


@dataclass(slots=True, frozen=True)
class Target:
    """The engine's own model, which others draft for.

    Attributes:
        settings: what it is built with. ops: among them.
        combination: what the engine is made of.
        tokenizer: None where none was loaded.
    """

    config: EngineConfig
    source: ModelSource
    settings: BuildSettings
    ops: OpTable
    combination: Combination
    tokenizer: Tokenizer | None


class DraftModelLoader:
    """`DrafterContext.build_model`, and all that it has built.

    A draft model gets the target's dtype, device and attention backend, and its own checkpoint's quantization.
    The hook `quire_prepare_model` is not called for it.
    """

    def __init__(self, host: PluginHost, target: Target, sampler: DraftSampler) -> None:
        self.models: list[PagedDraftModel] = []
        self._host = host
        self._target = target
        self._sampler = sampler
        self._is_open = True

    def build_model(self, name: str) -> PagedDraftModel:
        """See DrafterContext.

        Raises:
            QuireError: there is no such model, it cannot be loaded, or its vocabulary is not the target's; its
                text names the setting.
        """
        if not isinstance(name, str) or not name:
            raise ConfigError(f"build_model({name!r}): give a model's folder or name")
        if not self._is_open:
            raise ConfigError(f"build_model({name!r}) comes too late: call it within the drafter's factory")
        setting = self._setting_of(name)
        try:
            model = self._load(name)
        except QuireError as error:
            raise type(error)(f"{setting}: {error}") from error
        self.models.append(model)
        return model

    def close(self) -> None:
        """Build no more: the KV cache is sized now."""
        self._is_open = False

    def _setting_of(self, name: str) -> str:
        """What the user wrote that names the model."""
        asked = self._target.config.speculation.speculative_config
        given = {} if asked is None else asked.drafter_settings
        keys = [key for key, value in given.items() if str(value) == name]
        return f"speculative_config.{keys[0]}={name!r}" if keys else f"draft model {name!r}"

    def _load(self, name: str) -> PagedDraftModel:
        target, host = self._target, self._host
        source = read_model_folder(resolve_model_folder(name, None, host.resolve_model), host)
        check_vocabulary(source, target)
        reader = host.open_checkpoint(source.folder)
        stored = read_quantization_config(source.folder, source.hf_config)
        request = QuantizationRequest(stored, target.settings.device, target.settings.dtype)
        quantization = choose_method(None, host, request, target.ops)
        combination = replace(
            target.combination,
            architecture=source.architecture,
            quantization=None if quantization is None else quantization.name,
        )
        host.check_capabilities(combination)
        max_len = _longest(source, target)
        settings = replace(target.settings, max_model_len=max_len)
        loaded = load_model(host, ModelFiles(source, reader, quantization), settings, combination)
        if quantization is not None:
            log_summary(quantization, loaded.modules, cast(nn.Module, loaded.built.model), target.ops)
        return PagedDraftModel(name, loaded.built, settings.attention_backend, self._sampler, max_len)


def _longest(source: ModelSource, target: Target) -> int:
    """How many tokens the draft model can follow a request.

    Past its `rope_switch_len` its KV depends on the request's own length, and is not to be shared: requests that
    may grow past the target's own share nothing.
    """
    longest = min(target.settings.max_model_len, source.config.max_position_embeddings)
    switch, target_switch = source.config.rope_switch_len, target.source.config.rope_switch_len
    if switch is not None and (target_switch is None or switch < target_switch):
        longest = min(longest, switch)
    return longest


def check_vocabulary(draft: ModelSource, target: Target) -> None:
    """Refuse a draft model whose token ids mean something else.

    Tokenizers are compared where both models have one; the logits may then differ in their padding.

    Raises:
        ConfigError: the first difference, and what to do.
    """
    remedy = "take a draft model of the target's family, with the same tokenizer"
    names = f"draft model {draft.folder}", f"target {target.source.folder}"
    tokenizer = None if target.tokenizer is None else _tokenizer_of(draft)
    if target.tokenizer is None or tokenizer is None:
        sizes = draft.config.vocab_size, target.source.config.vocab_size
        if sizes[0] != sizes[1]:
            hint = ", or load the tokenizers (skip_tokenizer_init=False)" if target.tokenizer is None else ""
            raise ConfigError(
                f"the {names[0]} has {sizes[0]} token ids, the {names[1]} has {sizes[1]}, and there are no two "
                f"tokenizers to compare: {remedy}{hint}"
            )
        return
    ids, target_ids = tokenizer.vocabulary(), target.tokenizer.vocabulary()
    if ids != target_ids:
        either = target_ids | ids
        first = min((either[token], token) for token in either if ids.get(token) != target_ids.get(token))[1]
        raise ConfigError(
            f"the tokenizers of the {names[0]} ({len(ids)} tokens) and of the {names[1]} ({len(target_ids)} tokens) "
            f"differ: token {first!r} is {_id_of(first, ids)} in the first and {_id_of(first, target_ids)} in the "
            f"second: {remedy}"
        )


def _tokenizer_of(source: ModelSource) -> Tokenizer | None:
    try:
        return Tokenizer.from_folder(source.folder)
    except TokenizerError as error:
        logger.warning("draft model: %s; its vocabulary is compared by its size alone", error)
        return None


def _id_of(token: str, ids: dict[str, int]) -> str:
    return f"id {ids[token]}" if token in ids else "missing"
