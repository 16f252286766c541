"""Whether a waiting request can start in this step, and with how many tokens."""

from __future__ import annotations

from dataclasses import dataclass

from quire.api.errors import CapacityError, PromptError
from quire.api.request import Request
from quire.kvcache.allocation import Allocation
from quire.kvcache.block_manager import BlockManager
from quire.scheduling.plan import RequestState, SchedulerLimits


@dataclass(slots=True, frozen=True)
class Placement:
    """A request has blocks: schedule `num_tokens` of it from its `num_computed_tokens` on."""

    num_tokens: int
    allocation: Allocation


class Admission:
    """Gives requests their first blocks: from a leader, from the prefix cache, or new ones.

    A request is placed only if all its known tokens fit beside what running requests still need for
    theirs and one block more for each: so an admission causes no preemption in the next steps.
    """

    def __init__(self, limits: SchedulerLimits, block_manager: BlockManager) -> None:
        self.num_forks = 0
        self._limits = limits
        self._manager = block_manager

    def check(self, request: Request) -> None:
        """Refuse what can never be served, and bound the request's length to what can.

        Raises:
            PromptError: the prompt is empty, or differs from the one that it is a fork of.
            CapacityError: the prompt and one token exceed the KV cache, the context or the budget.
        """
        limits, num_prompt = self._limits, request.num_prompt_tokens
        servable = self._manager.max_servable_tokens
        if num_prompt == 0:
            raise PromptError(f"request {request.request_id!r} has an empty prompt: give at least 1 token")
        if num_prompt + 1 > limits.max_model_len:
            raise CapacityError(
                f"a prompt of {num_prompt} tokens and 1 output token exceed max_model_len="
                f"{limits.max_model_len}: shorten the prompt or raise max_model_len"
            )
        if num_prompt + 1 > servable:
            raise CapacityError(
                f"a prompt of {num_prompt} tokens and 1 output token can never fit: the KV cache serves at "
                f"most {servable} tokens per request: shorten the prompt or give the KV cache more memory"
            )
        if not limits.enable_chunked_prefill and num_prompt > limits.max_num_batched_tokens:
            raise CapacityError(
                f"a prompt of {num_prompt} tokens exceeds max_num_batched_tokens="
                f"{limits.max_num_batched_tokens}: raise it or set enable_chunked_prefill"
            )
        leader = request.fork_of
        if leader is not None and (
            leader.prompt_token_ids != request.prompt_token_ids or leader.salt != request.salt
        ):
            raise PromptError(
                f"request {request.request_id!r} has another prompt or salt than {leader.request_id!r}, "
                "which it is a fork of: give both the same"
            )
        max_total_tokens = min(request.max_total_tokens, limits.max_model_len, servable)
        if request.num_tokens >= max_total_tokens:
            raise CapacityError(
                f"request {request.request_id!r} has {request.num_tokens} tokens and may have "
                f"{max_total_tokens}: no token is left to compute"
            )
        request.max_total_tokens = max_total_tokens

    def chunk(self, num_remaining: int, budget: int) -> int:
        """How many of a request's remaining tokens to schedule now; 0 when it must wait its turn."""
        if num_remaining <= budget:
            return num_remaining
        limits = self._limits
        if limits.enable_chunked_prefill or num_remaining > limits.max_num_batched_tokens:
            return budget
        return 0

    def num_reserved_blocks(self, request: Request) -> int:
        """Blocks to leave free for a running request: for its known tokens, and one to grow."""
        return self._manager.num_missing_blocks(request, request.num_tokens) + 1

    def place(
        self, state: RequestState, leader: Request | None, budget: int, num_reserved: int
    ) -> Placement | None:
        """Give a waiting request its blocks; None, and nothing changed, when it must wait.

        Args:
            state: the request, and what the scheduler tracks of it.
            leader: the request whose prompt blocks it can share now; None to start it by itself.
            budget: tokens left in the step.
            num_reserved: free blocks that must remain.
        """
        request = state.request
        num_free = self._manager.num_free_blocks - num_reserved
        if leader is not None and request.num_prompt_tokens > 1:
            return self._fork(state, leader, budget, num_free)
        match = self._manager.match_prefix(request)
        num_tokens = self.chunk(request.num_tokens - match.num_tokens, budget)
        if num_tokens == 0 or self._manager.num_blocks_needed(request.num_tokens, match) > num_free:
            return None
        allocation = self._manager.allocate(request, num_tokens, match)
        if allocation is None:
            return None
        self._start_at(request, match.num_tokens)
        return Placement(num_tokens, allocation)

    def _fork(self, state: RequestState, leader: Request, budget: int, num_free: int) -> Placement | None:
        """Share all of the leader's prompt but its last token, whose logits the fork needs."""
        request, size = state.request, self._manager.block_size
        num_shared = request.num_prompt_tokens - 1
        num_tokens = self.chunk(request.num_tokens - num_shared, budget)
        num_needed = -(-request.num_tokens // size) - num_shared // size
        if num_tokens == 0 or num_needed > num_free:
            return None
        self._manager.fork(leader, request, num_shared)
        self._start_at(request, num_shared)
        allocation = self._manager.allocate(request, num_tokens)
        if allocation is None:
            self._manager.free(request)
            request.num_computed_tokens = 0
            return None
        state.is_forked = True
        self.num_forks += 1
        return Placement(num_tokens, allocation)

    def _start_at(self, request: Request, num_tokens: int) -> None:
        request.num_computed_tokens = num_tokens
        if request.num_preemptions == 0:
            request.num_cached_tokens = min(num_tokens, request.num_prompt_tokens)
