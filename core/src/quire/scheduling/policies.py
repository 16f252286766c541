"""Policies: the order in which requests are served, and its reverse, in which they are preempted.

The scheduler takes any `quire.api.extensions.SchedulingPolicy`; it must not raise and must give keys that
compare. The engine sees to that where a plugin brought it.
"""

from __future__ import annotations

from quire.api.extensions import ExtensionContext, RequestView, SchedulingPolicy
from quire.api.request import Request, RequestStatus


class FcfsPolicy:
    """First come, first served; preempted requests go before those that never ran."""

    def key(self, request: RequestView, arrival_index: int) -> tuple[float, ...]:
        """Preempted first, then in the order of arrival."""
        return (not request.is_preempted, arrival_index)


class PriorityPolicy:
    """The lower `Request.priority` goes first; then as fcfs."""

    def key(self, request: RequestView, arrival_index: int) -> tuple[float, ...]:
        """The priority, then as fcfs."""
        return (request.priority, not request.is_preempted, arrival_index)


def create_fcfs(context: ExtensionContext) -> SchedulingPolicy:
    """The factory of core's PolicySpec "fcfs"."""
    return FcfsPolicy()


def create_priority(context: ExtensionContext) -> SchedulingPolicy:
    """The factory of core's PolicySpec "priority"."""
    return PriorityPolicy()


def view_of(request: Request) -> RequestView:
    """The request's counts of now; its parameters are shared, not copied."""
    return RequestView(
        request_id=request.request_id,
        priority=request.priority,
        arrival_s=request.arrival_s,
        num_prompt_tokens=len(request.prompt_token_ids),
        num_output_tokens=len(request.output_token_ids),
        max_total_tokens=request.max_total_tokens,
        num_preemptions=request.num_preemptions,
        is_preempted=request.status is RequestStatus.PREEMPTED,
        params=request.params,
    )
