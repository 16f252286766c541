"""The suite of drafters: what is right passes, and planted defects are named."""

from __future__ import annotations

from typing import Any

import drafter_defects as defects
import pytest

from quire.testing import ConformanceError, DrafterConformance


class TestLookup(DrafterConformance):
    drafter = defects.Lookup
    settings_model = defects.Settings
    settings = {"order": 2}
    wrong_settings = ({"order": 0}, {"order": "two"})


class TestShared(DrafterConformance):
    drafter = defects.Shared


class TestCounting(DrafterConformance):
    drafter = defects.Counting
    settings_model = defects.ModelSettings
    draft_model_key = "model"


class TestGuessing(DrafterConformance):
    drafter = defects.Guessing


@pytest.mark.parametrize(
    ("defect", "check", "words"),
    [
        ("TooMany", "test_proposals_are_token_ids", "whose max_drafts is 1"),
        ("OneTooMany", "test_proposals_are_token_ids", "gave 2 drafts"),
        ("BeyondTheVocabulary", "test_proposals_are_token_ids", "ids are from 0 to 60"),
        ("Negative", "test_proposals_are_token_ids", "the id -1"),
        ("Floats", "test_proposals_are_token_ids", "a float64"),
        ("Arrays", "test_proposals_are_token_ids", "no sequence of token ids"),
        ("Nones", "test_proposals_are_token_ids", "None"),
        ("LeavesOut", "test_proposals_are_token_ids", "sequences for"),
        ("Generates", "test_no_requests", "gave a generator"),
        ("NeedsTwoTokens", "test_proposals_are_token_ids", "IndexError"),
        ("NeedsRequests", "test_no_requests", "with no requests"),
        ("InOrderOfLength", "test_requests_are_independent", "whose max_drafts is 1"),
        ("SharesTheBudget", "test_requests_are_independent", "asked with others"),
        ("Neighbours", "test_requests_are_independent", "reverse order"),
        ("LeaksWhileRunning", "test_requests_are_independent", "reverse order"),
        ("CountsCalls", "test_requests_are_independent", "reverse order"),
        ("Writes", "test_reads_tokens_only", "changed the token_ids"),
        ("ChangesParams", "test_reads_tokens_only", "changed the params"),
        ("KeepsViews", "test_reads_tokens_only", "uses that memory again"),
        ("ReadsOn", "test_proposals_are_token_ids", "the id -7"),
        ("LeaksWhenReleased", "test_salts_are_apart", "under the salt 'B'"),
        ("LeaksWhileRunning", "test_salts_are_apart", "under the salt 'B'"),
        ("TakesNoSaltForNoSecret", "test_salts_are_apart", "of the salt ''"),
        ("NeverForgets", "test_released_requests_are_forgotten", "released before"),
        ("ForgetsHalf", "test_released_requests_are_forgotten", "released before"),
        ("RemembersRejections", "test_released_requests_are_forgotten", "released before"),
        ("ReleasesKnownOnly", "test_released_requests_are_forgotten", "KeyError"),
        ("TakesPreemptedForEnded", "test_preempted_requests_come_back", "gets no drafts"),
        ("Rolls", "test_is_deterministic", "another one"),
        ("RefusesGaps", "test_growing_requests", "tokens are missing"),
        ("NeedsNewTokens", "test_growing_requests", "ValueError"),
        ("MissesGaps", "test_growing_requests", "these tokens at once"),
        ("BelievesItsDrafts", "test_growing_requests", "these tokens at once"),
        ("DraftsNothing", "test_proposals_are_token_ids", "give `settings`"),
        ("DraftsNothing", "test_in_an_engine", "no draft was verified"),
        ("WantsEveryOutcome", "test_no_requests", "ZeroDivisionError"),
        ("GreedyOnly", "test_in_an_engine", "penalties are not supported"),
        ("WritesLater", "test_in_an_engine", "gives other tokens than without drafts"),
        ("ForgetsRows", "test_proposals_are_token_ids", "1 rows"),
        ("NoDrafter", "test_no_requests", "without verified, released, close"),
    ],
)
def test_a_planted_defect_is_found(defect: str, check: str, words: str) -> None:
    expect(TestLookup, {"drafter": getattr(defects, defect)}, check, words)


@pytest.mark.parametrize(
    ("defect", "check", "words"),
    [
        ("BuildsLate", "test_no_requests", "after the factory"),
        ("ExpectsEveryToken", "test_proposals_are_token_ids", "gave None"),
    ],
)
def test_a_defect_with_a_draft_model_is_found(defect: str, check: str, words: str) -> None:
    expect(TestCounting, {"drafter": getattr(defects, defect)}, check, words)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"settings_model": defects.LooseSettings}, "unknown keys"),
        ({"settings": {"ordre": 2}}, "are refused"),
        ({"settings_model": None}, "give `settings_model`"),
        ({"wrong_settings": ({"order": 4},)}, "are accepted"),
    ],
)
def test_wrong_settings_are_found(attributes: dict[str, Any], words: str) -> None:
    expect(TestLookup, attributes, "test_settings", words)


def test_defaults_of_which_nothing_is_known_are_no_failure() -> None:
    class Unknown(DrafterConformance):
        drafter = defects.DraftsNothing
        settings = None

    results = {result.check: result for result in Unknown.run()}
    assert results["test_proposals_are_token_ids"].status == "skipped"
    assert "give `settings`" in results["test_in_an_engine"].detail
    assert "failed" not in {result.status for result in results.values()}


def expect(base: type[DrafterConformance], attributes: dict[str, Any], check: str, words: str) -> None:
    suite: Any = type("Planted", (base,), attributes)
    try:
        with pytest.raises(ConformanceError, match=words.replace("(", r"\(")):
            getattr(suite(), check)()
    finally:
        suite.teardown_class()
