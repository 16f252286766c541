"""Which numbers of drafts promise most tokens per second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quire.execution.drafting.acceptance import Acceptance, Floats
from quire.execution.drafting.step_cost import ProposeCost, StepCost


@dataclass(slots=True)
class DraftPlan:
    """Drafts of a step; times are in steps without drafts.

    Attributes:
        lengths: [R]: drafts of each request.
        gain: expected accepted drafts per request. time: of the step. propose: of the proposals before it.
        answered: how often the drafter proposes what it is asked for.
    """

    lengths: list[int]
    gain: float
    time: float
    propose: float = 0.0
    answered: float = 1.0

    def speedup(self, time: float | None = None) -> float:
        """Tokens per second against those of steps without drafts; also if the step takes another time."""
        surplus = (self.time if time is None else time) - 1.0
        return (1.0 + self.answered * self.gain) / (1.0 + self.answered * surplus + self.propose)


class DraftPlanner:
    """Plans drafts by measured acceptance and times.

    Args:
        max_drafts: K, most drafts of a request. max_num_seqs: slots.
    """

    def __init__(self, max_drafts: int, max_num_seqs: int) -> None:
        self.acceptance = Acceptance(max_drafts, max_num_seqs)
        self.step = StepCost(max_drafts, max_num_seqs)
        self.propose = ProposeCost()
        self._counts = np.arange(1.0, max_num_seqs * max_drafts + 1)

    def plan(
        self, slots: Sequence[int], survival: Floats, stake: float, deviations: float = 0.0
    ) -> DraftPlan:
        """The best drafts to ask for.

        Args:
            slots: [R].
            survival: [R, K], of `Acceptance.survival`.
            stake: most that may be lost if none is accepted, in steps.
            deviations: by how many standard deviations steps with drafts take longer than expected.
        """
        num_rows = len(slots)
        times = self.step.with_drafts(num_rows)
        fixed, each = self.propose_share(num_rows)
        totals = self._counts[: len(times)] * (each / num_rows)
        totals += times
        totals += fixed
        if totals[-1] > 1.0 + stake:
            totals = totals[: max(1, int(totals.searchsorted(1.0 + stake)))]
        if deviations:
            more = self.step.with_drafts(num_rows, deviations)[: len(totals)]
            totals += more - times[: len(totals)]
            times = more
        plan = best_plan(survival, times, totals)
        plan.propose = fixed + each * max(plan.lengths)
        plan.answered = self.acceptance.answered(slots, plan.lengths)
        return plan

    def time(self, lengths: Sequence[int], deviations: float = 0.0) -> float:
        """Of a step with these drafts, in steps without."""
        return self.step.time(len(lengths), sum(lengths), deviations)

    def propose_share(self, num_requests: int, num_rows: int | None = None) -> tuple[float, float]:
        """Of asking for so many requests' drafts: the fixed part, and that of each draft position, in steps."""
        plain_s = self.step.plain_s(num_rows or num_requests)
        fixed, each = self.propose.parts(num_requests)
        return fixed / plain_s, each / plain_s


def best_plan(survival: Floats, times: Floats, totals: Floats | None = None) -> DraftPlan:
    """The drafts that promise most tokens per second; at least one.

    The likeliest drafts of all requests are taken first: a draft is never likelier than those before it.

    Args:
        survival: [R, K], not increasing along K: the chance that the first j drafts are accepted.
        times: [N], N <= R * K: of the step with 1, 2, ... drafts.
        totals: the same, and what proposing them takes.
    """
    num_rows, width = survival.shape
    if totals is None:
        totals = times
    chances = survival.ravel()
    if num_rows == 1:  # most likely first as they are
        gains = chances[: len(totals)].cumsum()
        best = int(((gains + 1) / totals).argmax())
        return DraftPlan([best + 1], float(gains[best]), float(times[best]))
    order = (-chances).argsort(kind="stable")[: len(totals)]
    gains = chances.take(order).cumsum()
    best = int(((gains + num_rows) / totals).argmax())
    lengths = np.bincount(order[: best + 1] // width, minlength=num_rows)
    return DraftPlan(lengths.tolist(), float(gains[best]) / num_rows, float(times[best]))
