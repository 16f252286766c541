"""The shipped suite of policies over the built-in ones."""

from __future__ import annotations

from quire.testing import PolicyConformance


class TestFcfs(PolicyConformance):
    name = "fcfs"


class TestPriority(PolicyConformance):
    name = "priority"
