"""The shipped suite of drafters over those of quire-speculative."""

from __future__ import annotations

from quire.testing import DrafterConformance


class TestNgram(DrafterConformance):
    name = "ngram"
    wrong_settings = (
        {"prompt_lookup_min": 0},
        {"prompt_lookup_max": "long"},
        {"prompt_lookup_min": 5, "prompt_lookup_max": 3},
    )


class TestNgramOfOneToken(DrafterConformance):
    name = "ngram"
    settings = {"prompt_lookup_max": 1}
    num_speculative_tokens = 7


class TestSuffix(DrafterConformance):
    name = "suffix"
    wrong_settings = ({"suffix_decoding_max_tree_depth": 1}, {"suffix_decoding_min_token_prob": 2})


class TestSuffixWithoutPool(DrafterConformance):
    name = "suffix"
    settings = {"suffix_decoding_max_cached_requests": 0, "suffix_decoding_max_spec_factor": 0.5}
    num_speculative_tokens = 7


class TestDraftModel(DrafterConformance):
    name = "draft-model"
    draft_model_key = "model"
    wrong_settings = ({"model": ""}, {"model": 5}, {"model": None})
