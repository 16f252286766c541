"""The policy: where each request stands. The scheduler keeps the loop, the blocks and the limits."""

from __future__ import annotations

from quire.api.extensions import ExtensionContext, RequestView
from quire_my_policy.options import MyPolicyOptions


class MyPolicy:
    """Short prompts first; of those that count as equal, the one that came first.

    Under a steady load of short prompts a long one waits: a policy for real use would look at
    `request.arrival_s` too.
    """

    def __init__(self, context: ExtensionContext) -> None:
        options = context.options
        self._options = options if isinstance(options, MyPolicyOptions) else MyPolicyOptions()

    def key(self, request: RequestView, arrival_index: int) -> tuple[float, ...]:
        """The smallest key is served first, the greatest is preempted first; see SchedulingPolicy."""
        return (request.num_prompt_tokens // self._options.bucket_tokens, arrival_index)
