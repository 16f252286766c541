"""`speculative_config`: how speculative decoding is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import ConfigDict, Field, model_validator

from quire.api.errors import ConfigError
from quire.api.section import Section

MAX_SPECULATIVE_TOKENS = 64
"""Most draft tokens of a request in a step that can be asked for."""

_EXAMPLE = '{"method": "ngram", "num_speculative_tokens": 5}'
_NGRAM_MODELS = ("ngram", "[ngram]")


class SpeculativeConfig(Section):
    """`speculative_config`: which drafter, how far it looks ahead, and when it is left out.

    Keys that are not named here are the drafter's own settings.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    method: str = Field(min_length=1, description="a registered drafter: ngram, suffix, draft-model")
    num_speculative_tokens: int = Field(
        5,
        strict=True,
        ge=1,
        le=MAX_SPECULATIVE_TOKENS,
        description="most draft tokens of a request in a step",
    )
    adaptive: bool = Field(
        True, description="draft less, or not at all, where measurements say that drafts do not pay"
    )
    disable_by_batch_size: int | None = Field(
        None, ge=1, description="propose nothing while more requests than this run"
    )

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: object) -> object:
        """Take JSON text, and vLLM's ways to name a method by its model."""
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (json.JSONDecodeError, RecursionError) as error:
                raise ValueError(f"is not JSON ({error}); give an object such as " + _EXAMPLE) from None
        if not isinstance(value, Mapping):
            if isinstance(value, cls):
                return value
            raise ValueError("give an object such as " + _EXAMPLE)
        given = {str(key): entry for key, entry in value.items() if entry is not None}
        if given.get("model") in _NGRAM_MODELS and given.get("method") in (None, *_NGRAM_MODELS):
            del given["model"]
            given.setdefault("method", "ngram")
        if "method" not in given:
            if "model" not in given:
                raise ValueError("names no method: give an object such as " + _EXAMPLE)
            given["method"] = "draft-model"
        if isinstance(given.get("method"), str):
            method = str(given["method"]).strip("[]")
            given["method"] = "draft-model" if method == "draft_model" else method
        return given

    @property
    def drafter_settings(self) -> dict[str, object]:
        """The drafter's own keys."""
        return dict(self.model_extra or {})


OLDER_KEYWORDS: Mapping[str, str] = {
    "speculative_model": "model",
    "num_speculative_tokens": "num_speculative_tokens",
    "ngram_prompt_lookup_max": "prompt_lookup_max",
    "ngram_prompt_lookup_min": "prompt_lookup_min",
    "speculative_disable_by_batch_size": "disable_by_batch_size",
}
"""vLLM's older engine keywords, and the keys of `speculative_config` that they became."""


def take_older_keywords(keywords: Mapping[str, object]) -> dict[str, object]:
    """The keywords with vLLM's older ones gathered into `speculative_config`.

    Raises:
        ConfigError: both are given, or the older ones name no drafter.
    """
    older = {name: keywords[name] for name in OLDER_KEYWORDS if keywords.get(name) is not None}
    rest = {name: value for name, value in keywords.items() if name not in OLDER_KEYWORDS}
    if not older:
        return rest
    names = ", ".join(older)
    if rest.get("speculative_config") is not None:
        raise ConfigError(f"{names} and speculative_config are both given: move them into speculative_config")
    if "speculative_model" not in older:
        raise ConfigError(f"{names} without a drafter: give speculative_config={_EXAMPLE}")
    rest["speculative_config"] = {OLDER_KEYWORDS[name]: value for name, value in older.items()}
    return rest
