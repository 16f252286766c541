"""What the drafters' settings take, refuse and print."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from quire_speculative.ngram.settings import NgramSettings
from quire_speculative.suffix.settings import SuffixSettings


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        ({}, (2, 16)),
        ({"prompt_lookup_max": 4}, (4, 4)),
        ({"prompt_lookup_min": 3, "prompt_lookup_max": None}, (3, 3)),
        ({"prompt_lookup_min": 1, "prompt_lookup_max": 3}, (1, 3)),
    ],
)
def test_ngram_lengths_are_resolved_and_printed(given: dict[str, int], resolved: tuple[int, int]) -> None:
    settings = NgramSettings.model_validate(given)
    assert (settings.prompt_lookup_min, settings.prompt_lookup_max) == resolved
    assert str(settings) == f"prompt_lookup_min {resolved[0]}, prompt_lookup_max {resolved[1]}"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"prompt_lookup_min": 5, "prompt_lookup_max": 3},
            ("prompt_lookup_min (5)", "prompt_lookup_max (3)"),
        ),
        ({"prompt_lookup_min": 0}, ("prompt_lookup_min", "input_value=0", "greater than or equal to 1")),
        ({"prompt_lookup_max": -2}, ("prompt_lookup_max", "input_value=-2", "greater than or equal to 1")),
        ({"prompt_lookup_max": 65}, ("prompt_lookup_max", "input_value=65", "less than or equal to 64")),
        ({"prompt_lookup_len": 3}, ("prompt_lookup_len", "not permitted")),
    ],
)
def test_ngram_refuses(given: dict[str, int], told: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as error:
        NgramSettings.model_validate(given)
    assert all(part in str(error.value) for part in told), str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "limit"),
    [
        ("suffix_decoding_max_tree_depth", 1, "greater than or equal to 2"),
        ("suffix_decoding_max_spec_factor", 0, "greater than 0"),
        ("suffix_decoding_max_spec_factor", float("inf"), "finite"),
        ("suffix_decoding_min_token_prob", 1.5, "less than or equal to 1"),
        ("suffix_decoding_min_token_prob", float("nan"), "finite"),
        ("suffix_decoding_max_cached_requests", -1, "greater than or equal to 0"),
        ("suffix_decoding_max_cached_tokens", 10**9, "less than or equal to 16777216"),
        ("suffix_decoding_max_cached_salts", 0, "greater than or equal to 1"),
        ("suffix_decoding_tree", 3, "not permitted"),
    ],
)
def test_suffix_refuses(key: str, value: float, limit: str) -> None:
    with pytest.raises(ValidationError) as error:
        SuffixSettings.model_validate({key: value})
    assert all(part in str(error.value) for part in (key, f"input_value={value}", limit)), str(error.value)


def test_suffix_prints_every_value() -> None:
    text = str(SuffixSettings(suffix_decoding_max_spec_factor=1.5))
    assert text.startswith("suffix_decoding_max_tree_depth 24, suffix_decoding_max_spec_factor 1.5, ")
    assert all(name in text for name in SuffixSettings.model_fields)


@pytest.mark.parametrize(
    ("depth", "factor", "matched", "drafts"),
    [
        (24, 1.0, 3, 3),
        (24, 1.0, 100, 12),
        (24, 2.0, 100, 16),
        (10, 2.0, 2, 4),
        (24, 0.3, 3, 0),
        (2, 1.0, 9, 1),
    ],
)
def test_suffix_length_of_drafts(depth: int, factor: float, matched: int, drafts: int) -> None:
    settings = SuffixSettings(suffix_decoding_max_tree_depth=depth, suffix_decoding_max_spec_factor=factor)
    assert settings.max_drafts(matched) == drafts
