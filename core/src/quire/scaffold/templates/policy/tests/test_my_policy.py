"""The shipped suite: keys are numbers, pure and distinct; nobody starves; tokens stay the same. And an order."""

from __future__ import annotations

from quire.api.extensions import RequestView
from quire.testing import PolicyConformance


class TestMyPolicy(PolicyConformance):
    name = "my-policy"

    def test_short_prompts_go_first(self) -> None:
        long, short = (RequestView(str(n), 0, 0.0, n, 0, 2 * n) for n in (500, 5))
        policy = self.make(self.policy, "policy")
        assert policy.key(short, 1) < policy.key(long, 0)
