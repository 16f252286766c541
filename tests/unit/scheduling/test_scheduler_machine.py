"""Random operations against the content model: no stale read, no leak, every request ends."""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from quire.api.request import RequestStatus
from quire.scheduling.policies import FcfsPolicy, PriorityPolicy

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=14)


class LastFirst:
    """A policy under which each new request goes before all others."""

    def key(self, request, arrival_index):
        return (-arrival_index,)


def build_machine(
    make_driver, make_random_drafting, late: int, counts: Counter[str]
) -> type[RuleBasedStateMachine]:
    class SchedulerMachine(RuleBasedStateMachine):
        @initialize(
            num_blocks=st.integers(4, 8),
            budget=st.sampled_from([1, 2, 5, 12, 24]),
            max_num_seqs=st.integers(2, 5),
            caching=st.booleans(),
            chunked=st.booleans(),
            policy=st.sampled_from(["fcfs", "priority"]),
            drafting=st.none() | st.builds(make_random_drafting, st.integers(0, 99), st.integers(1, 6)),
            lookahead=st.sampled_from([0, 0, 3]),
        )
        def start(self, num_blocks, budget, max_num_seqs, caching, chunked, policy, drafting, lookahead):
            self.driver = make_driver(
                num_blocks,
                budget=budget if chunked else budget + 14,
                max_num_seqs=max_num_seqs,
                caching=caching,
                chunked=chunked,
                policy=policy,
                late=late,
                propose=drafting,
                lookahead=lookahead,
            )

        @rule(is_drafting=st.booleans())
        def toggle_drafting(self, is_drafting):
            self.driver.scheduler.set_drafting(is_drafting)

        @rule(
            prompt=TOKENS,
            max_tokens=st.sampled_from([1, 4, 12, 24, 24]),
            stops=st.booleans(),
            priority=st.integers(0, 2),
            num_forks=st.sampled_from([0, 0, 1, 3]),
            salt=st.sampled_from(["", "", "", "s"]),
        )
        def add(self, prompt, max_tokens, stops, priority, num_forks, salt):
            leader = self.driver.add(prompt, max_tokens, stops=stops, priority=priority, salt=salt)
            for _ in range(num_forks):
                self.driver.add(prompt, max_tokens, stops=stops, priority=priority, salt=salt, fork_of=leader)

        @precondition(lambda self: self.driver.requests)
        @rule(data=st.data())
        def add_extended(self, data):
            """A prompt that begins like an earlier request's text."""
            earlier = data.draw(st.sampled_from(self.driver.requests)).token_ids()
            self.driver.add(earlier[:12] + data.draw(TOKENS)[:2], max_tokens=3)

        @rule(num_steps=st.integers(1, 8))
        def step(self, num_steps):
            for _ in range(num_steps):
                self.driver.step()

        @precondition(lambda self: self.driver.pending)
        @rule()
        def catch_up(self):
            self.driver.update()

        @rule(policy=st.sampled_from([FcfsPolicy(), PriorityPolicy(), LastFirst()]))
        def change_policy(self, policy):
            self.driver.scheduler.set_policy(policy)
            self.driver.scheduler.check_invariants()

        @precondition(lambda self: self.driver.scheduler.has_unfinished)
        @rule(data=st.data())
        def abort(self, data):
            unfinished = [request for request in self.driver.requests if not request.is_finished]
            request = data.draw(st.sampled_from(unfinished))
            before = request.status.value
            if self.driver.abort(request):
                counts[f"aborted {before}"] += 1

        @rule()
        def abort_a_preempted_one(self):
            for token_id in range(2):
                self.driver.add([token_id] * 3, max_tokens=24)
            for _ in range(16):
                self.driver.step()
                for request in self.driver.requests:
                    if request.status is RequestStatus.PREEMPTED and self.driver.abort(request):
                        counts["aborted preempted"] += 1
                        return

        @precondition(lambda self: self.driver.requests)
        @rule(data=st.data())
        def poison(self, data):
            self.driver.runner.poisoned.add(data.draw(st.sampled_from(self.driver.requests[-6:])).request_id)

        @rule()
        def reset_cache(self):
            counts["resets"] += self.driver.manager.reset_prefix_cache()
            self.driver.scheduler.check_invariants()

        def teardown(self):
            if not hasattr(self, "driver"):
                return
            self.driver.run()
            assert self.driver.manager.usage().num_used_blocks == 0
            assert all(request.is_finished for request in self.driver.requests)
            self.driver.check_outputs()
            stats = self.driver.scheduler.stats()
            counts["preemptions"] += stats.num_preemptions
            counts["hit tokens"] += stats.num_hit_tokens
            counts["forks"] += stats.num_forks
            counts["copies"] += self.driver.runner.num_copies
            counts["failed"] += len(self.driver.runner.failed)
            counts["finished"] += len(self.driver.requests)
            counts.update(self.driver.runner.draft_counts)

    return SchedulerMachine


@pytest.mark.parametrize("late", [0, 1, 2], ids=["sync", "late", "two-late"])
def test_random_operations(make_driver, make_random_drafting, late):
    counts: Counter[str] = Counter()
    run_state_machine_as_test(
        build_machine(make_driver, make_random_drafting, late, counts),
        settings=settings(
            max_examples=80 if late == 2 else 160,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    names = ("preemptions", "hit tokens", "forks", "copies", "failed", "resets")
    for name in names if late else (*names, "accepted", "partly", "rejected"):
        assert counts[name] >= 5, counts
    for name in ("aborted waiting", "aborted running", "aborted preempted"):
        assert counts[name] >= 1, counts
