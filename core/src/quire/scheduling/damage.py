"""After a row failed: who is at fault, and whose KV came from the failed computation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from quire.kvcache.block_manager import BlockManager
from quire.scheduling.plan import RequestState


@dataclass(slots=True, frozen=True)
class Damage:
    """Result of `trace_damage`; every request in it has had its cache entries dropped.

    Attributes:
        at_fault: failed requests that read nothing of another failed one: they end.
        victims: requests that read, directly or not, what a failed one computed: they recompute.
    """

    at_fault: list[RequestState]
    victims: list[RequestState]


def trace_damage(
    failed: list[RequestState],
    in_flight: Iterable[RequestState],
    holders: list[RequestState],
    manager: BlockManager,
) -> Damage:
    """Follow what failed requests computed to all that read it, and drop it from the prefix cache.

    Args:
        failed: requests whose row failed, in the plan's order.
        in_flight: requests with rows that are not updated; those without blocks (preempted since) are
            taken as victims, for what they read is no longer known.
        holders: all requests with blocks.
        manager: knows who computed and who shares which block.
    """
    computed = {state: manager.invalidate(state.request) for state in failed}
    at_fault = [state for state in failed if not _reads_another(state, computed, manager)] or failed[:1]
    damaged = dict.fromkeys(failed)
    damaged |= dict.fromkeys(state for state in in_flight if not manager.has_blocks(state.request))
    bad_block_ids: set[int] = set().union(*computed.values())
    for state in damaged:
        if state not in computed:
            bad_block_ids |= manager.invalidate(state.request)
    candidates = [state for state in holders if state not in damaged]
    is_growing = True
    while is_growing:
        is_growing = False
        leaders = {state.request for state in damaged}
        for state in candidates:
            if state in damaged:
                continue
            is_fork = state.is_forked and state.request.fork_of in leaders
            if is_fork or manager.shares_any(state.request, bad_block_ids):
                bad_block_ids |= manager.invalidate(state.request)
                damaged[state] = None
                is_growing = True
    return Damage(at_fault, [state for state in damaged if state not in at_fault])


def _reads_another(
    state: RequestState, computed: dict[RequestState, set[int]], manager: BlockManager
) -> bool:
    if not manager.has_blocks(state.request):
        return len(computed) > 1
    for other, block_ids in computed.items():
        if other is state:
            continue
        if state.is_forked and state.request.fork_of is other.request:
            return True
        if manager.shares_any(state.request, block_ids):
            return True
    return False
