"""Builders for tiny pools: block size 4."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from quire.api.request import Request, SamplingParams
from quire.kvcache.allocation import Allocation
from quire.kvcache.block_manager import BlockManager


class Cache:
    """A block manager, and requests that compute all that they are given."""

    def __init__(self, num_blocks: int = 8, caching: bool = True, fingerprint: bytes = b"") -> None:
        self.manager = BlockManager(num_blocks, 4, caching, fingerprint)
        self.num_requests = 0

    def request(self, token_ids: list[int], salt: str = "", prompt_logprobs: int | None = None) -> Request:
        self.num_requests += 1
        params = SamplingParams(prompt_logprobs=prompt_logprobs)
        return Request(f"r{self.num_requests}", list(token_ids), params, 0, 1000, salt=salt)

    def start(self, token_ids: list[int], salt: str = "") -> Request:
        """A request whose tokens are all computed, with the prefix hits there are."""
        request = self.request(token_ids, salt)
        assert self.admit(request) is not None, "no room"
        return request

    def admit(self, request: Request) -> Allocation | None:
        match = self.manager.match_prefix(request)
        allocation = self.manager.allocate(request, request.num_tokens - match.num_tokens, match)
        if allocation is not None:
            request.num_cached_tokens = match.num_tokens
            self.compute(request)
        return allocation

    def compute(self, request: Request) -> None:
        request.num_computed_tokens = request.num_tokens
        self.manager.confirm(request, self.manager.commit(request))
        self.manager.check_invariants()

    def append(self, request: Request, token_ids: list[int]) -> Allocation | None:
        allocation = self.manager.allocate(request, len(token_ids))
        if allocation is not None:
            request.output_token_ids += token_ids
            self.compute(request)
        return allocation

    def free(self, *requests: Request) -> None:
        for request in requests:
            self.manager.free(request)
            self.manager.check_invariants()


@pytest.fixture(scope="session")
def make_cache() -> Callable[..., Cache]:
    return Cache
