"""Policies: the order in which requests are served, and its reverse, in which they are preempted."""

from __future__ import annotations

from typing import Protocol

from quire.api.errors import ConfigError
from quire.api.request import Request, RequestStatus


class Policy(Protocol):
    """Orders candidates; it never owns the loop.

    Waiting requests are admitted, and running ones scheduled, by ascending key; the running request of
    the greatest key is preempted first.
    """

    @property
    def name(self) -> str:
        """What the configuration calls it."""
        ...

    def key(self, request: Request, arrival_index: int) -> tuple[int, ...]:
        """Where a request stands. Asked when it starts to wait, when it is preempted, and when it runs.

        Args:
            request: to be read only.
            arrival_index: counts the requests in the order in which they were added.
        """
        ...


class FcfsPolicy:
    """First come, first served; preempted requests go before those that never ran."""

    name = "fcfs"

    def key(self, request: Request, arrival_index: int) -> tuple[int, ...]:
        return (request.status is not RequestStatus.PREEMPTED, arrival_index)


class PriorityPolicy:
    """The lower `Request.priority` goes first; then as fcfs."""

    name = "priority"

    def key(self, request: Request, arrival_index: int) -> tuple[int, ...]:
        return (request.priority, request.status is not RequestStatus.PREEMPTED, arrival_index)


def create_policy(name: str) -> Policy:
    """The built-in policy of that name.

    Raises:
        ConfigError: there is none.
    """
    policies: tuple[Policy, ...] = (FcfsPolicy(), PriorityPolicy())
    for policy in policies:
        if policy.name == name:
            return policy
    known = ", ".join(policy.name for policy in policies)
    raise ConfigError(f"scheduling policy {name!r} is not known: choose one of {known}")
