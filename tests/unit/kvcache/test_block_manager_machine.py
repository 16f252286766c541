"""Random operations against a model of what each slot of the KV cache holds."""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from quire.api.request import RequestStatus

SIZE = 4
TOKENS = st.integers(1, 13).flatmap(
    lambda size: st.sampled_from([[0] * size, [0] * size, [0] * (size // 2) + [1] * (size - size // 2)])
)


def build_machine(make_cache, counts: Counter[str]) -> type[RuleBasedStateMachine]:
    class BlockManagerMachine(RuleBasedStateMachine):
        @initialize(num_blocks=st.integers(3, 12), caching=st.sampled_from([True, True, True, False]))
        def start(self, num_blocks, caching):
            self.cache = make_cache(num_blocks, caching)
            self.manager = self.cache.manager
            self.content = [None] * (num_blocks * SIZE)
            self.live = []

        def place(self, request, position):
            return self.manager.block_ids(request)[position // SIZE] * SIZE + position % SIZE

        def write(self, request, start, allocation):
            counts["copies"] += len(allocation.copies)
            for source, destination in allocation.copies:
                for offset in range(SIZE):
                    self.content[destination * SIZE + offset] = self.content[source * SIZE + offset]
            for position in range(start, request.num_tokens):
                history = (request.salt, *request.token_ids(0, position + 1))
                self.content[self.place(request, position)] = history
            self.cache.compute(request)

        @rule(token_ids=TOKENS, salt=st.sampled_from(["", "", "s"]))
        def admit(self, token_ids, salt):
            request = self.cache.request(token_ids, salt)
            match = self.manager.match_prefix(request)
            assert match.num_tokens < request.num_tokens
            num_free = self.manager.num_free_blocks
            num_cached = self.manager.usage().num_cached_blocks
            needed = self.manager.num_blocks_needed(request.num_tokens, match)
            allocation = self.manager.allocate(request, request.num_tokens - match.num_tokens, match)
            assert (allocation is None) == (needed > num_free)
            if allocation is not None:
                assert self.manager.num_free_blocks == num_free - needed
                counts["evictions"] += num_cached - self.manager.usage().num_cached_blocks
                counts["hits"] += match.num_tokens > 0
                self.live.append(request)
                self.write(request, match.num_tokens, allocation)
            else:
                counts["refusals"] += 1

        @precondition(lambda self: self.live)
        @rule(data=st.data(), token_ids=TOKENS.map(lambda ids: ids[:5]), num_lookahead=st.integers(0, 3))
        def append(self, data, token_ids, num_lookahead):
            request = data.draw(st.sampled_from(self.live))
            start = request.num_computed_tokens
            allocation = self.manager.allocate(request, len(token_ids), num_lookahead=num_lookahead)
            if allocation is None:
                counts["refusals"] += 1
                return
            request.output_token_ids += token_ids
            self.write(request, start, allocation)

        @precondition(lambda self: self.live)
        @rule(data=st.data())
        def fork(self, data):
            parent = data.draw(st.sampled_from(self.live))
            num_shared = data.draw(st.integers(1, parent.num_tokens))
            child = self.cache.request(parent.token_ids(0, num_shared), parent.salt)
            self.manager.fork(parent, child, num_shared)
            self.live.append(child)
            child.num_computed_tokens = num_shared
            counts["forks"] += 1

        @precondition(lambda self: self.live)
        @rule(data=st.data())
        def truncate(self, data):
            request = data.draw(st.sampled_from(self.live))
            num_kept = data.draw(st.integers(1, request.num_tokens))
            self.manager.truncate(request, num_kept)
            request.prompt_token_ids, request.output_token_ids = request.token_ids(0, num_kept), []
            request.num_computed_tokens = num_kept

        @precondition(lambda self: self.live)
        @rule(data=st.data(), is_finished=st.booleans())
        def free(self, data, is_finished):
            request = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
            num_free, frees = self.manager.num_free_blocks, self.manager.frees_blocks(request)
            if is_finished:
                request.status = RequestStatus.FINISHED
            self.manager.free(request)
            assert (self.manager.num_free_blocks > num_free) == frees

        @rule()
        def reset(self):
            self.manager.reset_prefix_cache()
            assert self.manager.usage().num_cached_blocks == 0

        @invariant()
        def every_request_reads_its_own_history(self):
            if not hasattr(self, "live"):
                return
            self.manager.check_invariants()
            for request in self.live:
                for position in range(request.num_computed_tokens):
                    history = (request.salt, *request.token_ids(0, position + 1))
                    assert self.content[self.place(request, position)] == history

        def teardown(self):
            for request in getattr(self, "live", []):
                self.manager.free(request)
            if hasattr(self, "live"):
                self.manager.check_invariants()
                assert self.manager.usage().num_used_blocks == 0

    return BlockManagerMachine


def test_random_operations(make_cache):
    counts: Counter[str] = Counter()
    run_machine(
        build_machine(make_cache, counts),
        settings=settings(
            max_examples=500,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    for name in ("hits", "copies", "forks", "evictions", "refusals"):
        assert counts[name] >= 30, counts
