"""The drafter `suffix`: own text, earlier outputs, and their bounds."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from naive_suffixes import NaiveTexts

from quire_speculative.suffix import drafter as module
from quire_speculative.suffix.drafter import SuffixDrafter
from quire_speculative.suffix.pool import OutputPool
from quire_speculative.suffix.settings import SuffixSettings

NO_POOL = {"suffix_decoding_max_cached_requests": 0}


def make_drafter(**settings: float) -> SuffixDrafter:
    return SuffixDrafter(SuffixSettings.model_validate(settings))


def best_naive(sources: list[tuple[NaiveTexts, list[int]]], max_drafts: int) -> list[int]:
    """The draft of the greatest expectation; of equal ones the first. Each source: texts and the match in them."""
    settings, best = SuffixSettings(), ([], 0.0)
    for naive, context in sources:
        limit = min(max_drafts, settings.max_drafts(len(context)))
        guess = naive.guess(context, limit, settings.suffix_decoding_min_token_prob)
        if guess[1] > best[1] + 1e-12:
            best = guess
    return list(best[0])


def test_own_text_as_by_search(make_request) -> None:
    rng = random.Random(0)
    for size in (2, 3, 5):
        text = [rng.randrange(size) for _ in range(120)]
        drafter, position = make_drafter(**NO_POOL), 0
        while position < len(text):
            position += rng.randint(1, 4)
            tokens = text[:position]
            naive = NaiveTexts([tokens])
            match = naive.longest_known_suffix(tokens, at_least=2)
            expected = best_naive([(naive, tokens[len(tokens) - match :])], 5)
            assert [list(draft) for draft in drafter.propose([make_request(tokens)])] == [expected]
            assert [list(draft) for draft in make_drafter().propose([make_request(tokens)])] == [expected]


def test_the_better_of_own_text_and_earlier_outputs(make_request) -> None:
    rng = random.Random(1)
    kinds = {"own": 0, "earlier": 0, "none": 0}
    for _ in range(60):
        earlier = [[rng.randrange(4) for _ in range(rng.randint(2, 12))] for _ in range(3)]
        tokens = [rng.randrange(6) for _ in range(rng.randint(2, 20))]
        drafter = make_drafter()
        for number, output in enumerate(earlier):
            drafter.released([make_request([9, *output], str(number))])
        drafter.propose([])
        own, others = NaiveTexts([tokens]), NaiveTexts(earlier)
        match_own = own.longest_known_suffix(tokens, at_least=2)
        match_others = others.longest_known_suffix(tokens)
        sources = [
            (own, tokens[len(tokens) - match_own :]),
            (others, tokens[len(tokens) - match_others :]),
        ]
        expected = best_naive(sources, 5)
        assert list(drafter.propose([make_request(tokens)])[0]) == expected
        kinds["none" if not expected else "own" if expected == best_naive(sources[:1], 5) else "earlier"] += 1
    assert min(kinds.values()) >= 3, kinds


def outputs_of(
    drafter: SuffixDrafter, make_request, outputs: Sequence[Sequence[int]], salt: str = ""
) -> None:
    """Requests with these outputs end, one after the other, and are indexed."""
    for number, output in enumerate(outputs):
        drafter.released([make_request([0, *output], f"{salt}-{number}", 1, 0, salt)])
        drafter.propose([])


def test_salts_are_apart(make_request) -> None:
    drafter = make_drafter()
    outputs_of(drafter, make_request, [[1, 2, 3, 4]], "mine")
    asked = [make_request([8, 1, 2], salt, salt=salt) for salt in ("mine", "other", "")]
    assert [list(draft) for draft in drafter.propose(asked)] == [[3, 4], [], []]


def test_only_outputs_are_shared(make_request) -> None:
    drafter = make_drafter()
    drafter.released([make_request([1, 2, 3, 4, 5, 6, 7], "first", num_prompt=4)])
    drafter.propose([])
    asked = [make_request([8, 1, 2], "a"), make_request([8, 5, 6], "b"), make_request([8, 3, 4], "c")]
    assert [list(draft) for draft in drafter.propose(asked)] == [[], [7], []]


def test_a_running_request_finds_what_ended_meanwhile(make_request) -> None:
    drafter = make_drafter()
    assert list(drafter.propose([make_request([8, 1])])[0]) == []
    outputs_of(drafter, make_request, [[1, 2, 3, 4, 5]])
    assert list(drafter.propose([make_request([8, 1, 2, 3])])[0]) == [4, 5]
    outputs_of(drafter, make_request, [[3, 4, 6], [3, 4, 6]])
    assert list(drafter.propose([make_request([8, 1, 2, 3, 4])])[0]) == [5]


def test_released_requests_leave_only_the_pool(make_request) -> None:
    for settings, kept in ((NO_POOL, 0), ({}, 4)):
        drafter = make_drafter(**settings)
        request = make_request([1, 2, 3, 1, 2, 3], num_prompt=2)
        proposed = drafter.propose([request])
        drafter.released([request])
        assert not drafter._tracked
        assert drafter._pool.num_tokens == kept
        assert make_drafter(**settings).propose([request]) == proposed
        drafter.close()
        assert drafter._pool.num_tokens == 0


def test_fewer_tokens_are_a_new_request(make_request) -> None:
    drafter = make_drafter(**NO_POOL)
    drafter.propose([make_request([1, 2, 3, 1, 2, 8, 8, 1, 2])])
    assert list(drafter.propose([make_request([4, 5, 6, 4, 5])])[0]) == [6, 4, 5, 6]


def test_pauses_and_preemption_change_nothing(make_request) -> None:
    rng = random.Random(2)
    text = [rng.randrange(3) for _ in range(200)]
    always, seldom = make_drafter(), make_drafter()
    for drafter in (always, seldom):
        outputs_of(drafter, make_request, [[rng.randrange(3) for _ in range(40)] for _ in range(4)])
        rng = random.Random(3)
    outputs_of(always, make_request, [text[:50]])
    outputs_of(seldom, make_request, [text[:50]])
    for position in range(1, len(text) + 1):
        last = always.propose([make_request(text[:position])])
        if position == 120:
            seldom.propose([make_request(text[:position])])
    fresh = seldom.propose([make_request(text, "fresh")])
    assert list(fresh[0])
    assert last == fresh == seldom.propose([make_request(text)])


def test_work_per_call_is_bounded(make_request, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_INDEXED_TOKENS", 100)
    text = [1, 2, 3, 4, 5] * 50
    drafter = make_drafter()
    short = [7, 8, 9, 7, 8]
    proposals = []
    for _ in range(4):
        requests = [make_request(text, "long"), make_request(short, "short")]
        drafter.released([make_request([0, 7, 8], f"ended {len(proposals)}")])
        proposals.append([list(draft) for draft in drafter.propose(requests)])
    assert [bool(each[0]) for each in proposals] == [False, False, True, True]
    assert all(each[1] for each in proposals)
    assert drafter._tracked["long"].num_tokens == 250


class TestPool:
    """Bounds of what is kept. Limits are halved: one half for each of two generations."""

    @pytest.mark.parametrize(("max_requests", "max_tokens"), [(6, 10_000), (10_000, 40), (1, 10_000), (9, 3)])
    def test_requests_and_tokens_are_bounded(self, make_request, max_requests: int, max_tokens: int) -> None:
        rng = random.Random(4)
        settings = SuffixSettings(
            suffix_decoding_max_cached_requests=max_requests, suffix_decoding_max_cached_tokens=max_tokens
        )
        pool, most_outputs, most_tokens = OutputPool(settings), 0, 0
        for _ in range(60):
            output = [rng.randrange(9) for _ in range(rng.randint(0, 12))]
            pool.add("salt", make_request(output).token_ids)
            pool.index_waiting(1)
            generations = pool.generations("salt")
            assert len(generations) <= 2
            most_outputs = max(most_outputs, sum(each.num_outputs for each in generations))
            most_tokens = max(most_tokens, pool.num_tokens)
        assert most_outputs <= max_requests
        assert most_tokens <= max_tokens
        assert (most_outputs > 0) == (max_requests > 1 and max_tokens > 3)
        assert not most_outputs or most_outputs == max_requests or most_tokens > max_tokens // 2

    def test_older_outputs_go_with_their_generation_for_running_requests_too(self, make_request) -> None:
        drafter = make_drafter(suffix_decoding_max_cached_requests=4)
        outputs_of(drafter, make_request, [[1, 2, 3]])
        asked = make_request([5, 1, 2], "running")
        known = []
        for number in range(4):
            known.append(list(drafter.propose([asked])[0]))
            outputs_of(drafter, make_request, [[6, 7, 8, number]])
        assert known == [[3], [3], [3], [3]]
        assert list(drafter.propose([asked])[0]) == []
        assert len(drafter._tracked["running"].places) == 2

    def test_the_end_of_a_long_output_is_kept(self, make_request) -> None:
        drafter = make_drafter(suffix_decoding_max_cached_tokens=8)
        outputs_of(drafter, make_request, [[1, 2, 3, 4, 5, 6]])
        asked = [make_request([9, 1], "start"), make_request([9, 3], "end")]
        assert [list(draft) for draft in drafter.propose(asked)] == [[], [4, 5]]

    def test_the_salt_unused_for_longest_goes(self, make_request) -> None:
        drafter = make_drafter(suffix_decoding_max_cached_salts=2)
        outputs_of(drafter, make_request, [[1, 2, 3]], "a")
        outputs_of(drafter, make_request, [[1, 2, 3]], "b")
        drafter.propose([make_request([5, 1], "asks a", salt="a")])
        outputs_of(drafter, make_request, [[1, 2, 3]], "c")
        asked = [make_request([5, 1], salt, salt=salt) for salt in ("a", "b", "c")]
        assert [bool(draft) for draft in drafter.propose(asked)] == [True, False, True]

    def test_outputs_that_wait_are_bounded_too(self, make_request) -> None:
        pool = OutputPool(SuffixSettings(suffix_decoding_max_cached_tokens=40))
        for _ in range(50):
            pool.add("", make_request([1, 2, 3, 4, 5, 6]).token_ids)
            assert pool.num_tokens <= 20
        pool.index_waiting(0)
        assert pool.generations("") == ()
        pool.index_waiting(7)
        assert [each.num_outputs for each in pool.generations("")] == [2]
