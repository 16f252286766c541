"""The `suffix` drafter's own keys of `speculative_config`; names are vLLM's where they mean the same."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class SuffixSettings(BaseModel):
    """How far the `suffix` drafter goes, and what it keeps of earlier outputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    suffix_decoding_max_tree_depth: int = Field(
        24, ge=2, le=1024, description="bounds a match and its draft together; a longer match counts as less"
    )
    suffix_decoding_max_spec_factor: float = Field(
        2.0, gt=0, le=64, allow_inf_nan=False, description="draft tokens per matched token, at most"
    )
    suffix_decoding_min_token_prob: float = Field(
        0.1,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="a draft ends before it is less likely than this, by the frequencies of what followed so far",
    )
    suffix_decoding_max_cached_requests: int = Field(
        10_000,
        ge=0,
        le=1_000_000,
        description="outputs kept of ended requests, for each cache_salt: half of them go at once; below 2: none",
    )
    suffix_decoding_max_cached_tokens: int = Field(
        32_768,
        ge=0,
        le=16_777_216,
        description="tokens of such outputs, for each cache_salt, about 0.5 KB each; half of them go at once",
    )
    suffix_decoding_max_cached_salts: int = Field(
        8, ge=1, le=1024, description="cache_salts of which outputs are kept: the latest used"
    )

    def max_drafts(self, matched: int) -> int:
        """The longest draft after a match of so many tokens, or of fewer of them where that allows more."""
        factor = self.suffix_decoding_max_spec_factor
        return int(factor * min(matched, self.suffix_decoding_max_tree_depth / (1 + factor)))

    def __str__(self) -> str:
        """The resolved values."""
        return ", ".join(f"{name} {value}" for name, value in self)
