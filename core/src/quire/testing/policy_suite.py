"""The suite of scheduling policies: keys that order requests, and that leave none behind."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar, cast

from quire.api.extensions import RequestView, SchedulingPolicy
from quire.api.request import SamplingParams
from quire.api.specs import FactoryRef, PolicySpec
from quire.testing.conformance import require
from quire.testing.extension_base import ExtensionConformance
from quire.testing.queue_simulation import QueueSimulation
from quire.testing.served_model import Job
from quire.testing.toy_model import MAX_LEN

MAX_PREEMPTIONS = 8
"""Of one request, of equal ones; the scheduler spares a request that lost its blocks more often."""

_KIND = "policy"


class PolicyConformance(ExtensionConformance):
    """A scheduling policy, alone, in a simulated queue, and in an engine.

    In a test file::

        class TestMine(PolicyConformance):
            name = "mine"   # as it is registered; or `policy`, its factory: ExtensionContext -> SchedulingPolicy
            options = None  # what the factory finds in its context; by default those of the installed plugin
    """

    policy: ClassVar[FactoryRef | None] = None

    def test_keys_are_numbers(self) -> None:
        """Every key is a tuple of numbers, none of them NaN."""
        policy = self._policy()
        for view, index in _requests():
            key = policy.key(view, index)
            require(isinstance(key, tuple) and len(key) > 0, f"the key is {key!r}, not a tuple of numbers")
            require(
                all(isinstance(entry, int | float) and entry == entry for entry in key),
                f"the key {key!r} holds something that cannot be ordered as a number",
            )

    def test_is_deterministic(self) -> None:
        """The same request has the same key, whatever was asked in between."""
        policy, requests = self._policy(), list(_requests())
        keys = [policy.key(view, index) for view, index in requests]
        again = [policy.key(view, index) for view, index in reversed(requests)][::-1]
        for (view, _), first, second in zip(requests, keys, again, strict=True):
            require(first == second, f"the key of {view} was {first!r}, then {second!r}")

    def test_leaves_requests_alone(self) -> None:
        """What it is shown stays as it was, the sampling parameters too."""
        policy = self._policy()
        for view, index in _requests():
            before = copy.deepcopy(view)
            policy.key(view, index)
            require(view == before, f"key() changed the request: {before} became {view}")

    def test_orders_every_pair(self) -> None:
        """No two requests have the same key: who is served, and who is preempted, is never left to chance."""
        policy, seen = self._policy(), dict[tuple[float, ...], str]()
        for view, index in _requests():
            key = policy.key(view, index)
            other = seen.setdefault(key, view.request_id)
            require(
                other == view.request_id,
                f"{other} and {view.request_id} have the same key {key!r}: end it with arrival_index",
            )

    def test_leaves_none_behind(self) -> None:
        """In a queue of equal requests that is never empty, everyone is served within a bounded time."""
        for num_blocks in (1000, 14):
            simulation = QueueSimulation(self._policy(), num_slots=4, num_blocks=num_blocks)
            longest = simulation.run(num_requests=150)
            require(
                longest <= simulation.patience,
                f"an equal request waited {longest} steps while later ones were served, more than "
                f"{simulation.patience}: let age count (arrival_index, or num_preemptions)",
            )
        self.note("sustained load")

    def test_gets_on_when_blocks_are_scarce(self) -> None:
        """Requests that make room for each other all end, and none has to make room again and again."""
        simulation = QueueSimulation(self._policy(), num_slots=4, num_blocks=9)
        longest = simulation.run(num_requests=150)
        require(simulation.num_preemptions > 0, "nothing was preempted: nothing was shown")
        require(
            simulation.max_preemptions <= MAX_PREEMPTIONS,
            f"one request lost its blocks {simulation.max_preemptions} times, more than {MAX_PREEMPTIONS}: keys must "
            "not put a request behind those that it was before, each time that it gets on",
        )
        require(
            longest <= simulation.patience,
            f"a request that lost its blocks waited {longest} steps, more than {simulation.patience}: let preempted "
            "requests keep their place",
        )

    def test_in_an_engine(self) -> None:
        """An engine with this policy gives the tokens that it gives without, while it preempts."""
        jobs = [Job(tuple(range(n, 2 * n)), 20) for n in (5, 9, 7, 12, 6, 8)]
        with self.engine() as engine:
            expected = [choices[0].token_ids for choices in engine.run(jobs)]
        name = self.name if type(self).policy is None and self.name in ("fcfs", "priority") else "tested"
        policies = () if name != "tested" else (PolicySpec(name, self.wrapped(type(self).policy, _KIND)),)
        scarce: dict[str, object] = {"num_kv_blocks": -(-MAX_LEN // 4) + 1, "max_num_batched_tokens": 16}
        for settings in (dict[str, object](), scarce):
            with self.engine({"scheduling_policy": name, **settings}, policies=policies) as engine:
                found = [choices[0].token_ids for choices in engine.run(jobs, stagger=1)]
                require(found == expected, "with this policy, an engine gives other tokens than without")
                require(
                    not settings or engine.counter("num_preemptions") > 0,
                    "no request was preempted: nothing was shown",
                )
        self.note("preemption")

    def _policy(self) -> SchedulingPolicy:
        made = self.make(type(self).policy, _KIND)
        require(
            isinstance(made, SchedulingPolicy),
            f"the factory made a {type(made).__name__}, which has no key()",
        )
        return cast(SchedulingPolicy, made)


def _requests() -> Iterator[tuple[RequestView, int]]:
    """Requests of all sorts, each once, with the number of their arrival."""
    sorts = itertools.product((0, -3, 5), (1, 40), (0, 7), (0, 2))
    for index, (priority, prompt, output, preemptions) in enumerate(sorts):
        view = RequestView(
            request_id=f"request-{index}",
            priority=priority,
            arrival_s=100.0 + index // 3,
            num_prompt_tokens=prompt,
            num_output_tokens=output,
            max_total_tokens=prompt + 20,
            num_preemptions=preemptions,
            is_preempted=preemptions > 0 and output == 0,
            params=SamplingParams(temperature=0.0, max_tokens=20, stop=["x"]),
        )
        yield view, index
        if index % 5 == 0:
            yield replace(view, request_id=f"twin-{index}"), index + 1000
