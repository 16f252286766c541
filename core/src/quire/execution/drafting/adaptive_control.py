"""As many drafts as measurements say are worth their time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from quire.execution.drafting.acceptance import Floats, Progress
from quire.execution.drafting.control import DraftLimits
from quire.execution.drafting.plan import DraftPlan, DraftPlanner, best_plan
from quire.execution.drafting.shadow_drafts import ShadowDrafts

MARGIN = 1.04
"""Drafts are left out unless they promise this many times the tokens per second."""
DOUBT = 2.0
"""Standard deviations by which the time that drafts add may differ from what is expected."""
EARNINGS_START = 1.0
"""Steps' time that drafts may lose before they have gained any."""
EARNINGS_CAP = 3.0
EARNINGS_FLOOR = -2.0
EARNINGS_INCOME = 0.003
"""What is added in each step, so that drafts that lost are tried again."""
TEST_STAKE = 0.5
"""Most of it that may be lost at once by drafts that pay only if they add less time than expected."""
SHADOW_INCOME = 0.005
"""Share of the time that may go into proposals that are not expected to pay."""
SHADOW_CAP = 6.0
SHADOW_DRAFTS = 2
"""Fewest drafts per request that are worth comparing."""
REST_STEPS = 4, 12
"""Steps without a thought of drafts after the thought was no use: at first, doubling up to the most."""


class AdaptiveControl:
    """Drafts as far as they pay.

    Each step gets the drafts that promise most tokens per second, by the acceptance and the times measured so
    far, or none. An account in steps' time bounds what misjudgement can cost: accepted drafts are paid in, the
    time of proposing and verifying is paid out, and without a balance there are no drafts. What is not known
    well is tried: drafts that would pay if they added less time than expected, a step without drafts to compare
    with, and, on a small credit, proposals that are only compared with the tokens that come.

    Args:
        max_drafts: most drafts of a request. max_num_seqs: slots.
    """

    def __init__(self, max_drafts: int, max_num_seqs: int) -> None:
        self._max_drafts = max_drafts
        self._planner = DraftPlanner(max_drafts, max_num_seqs)
        self._progress = Progress(max_num_seqs)
        self._weights: Floats = np.ones(1)
        self._worth: dict[int, float] = {}
        self._shadows = ShadowDrafts()
        self._earnings = EARNINGS_START
        self._shadow_credit = 0.0
        self._num_rest = 0
        self._rest = REST_STEPS[0]
        self._num_rows = 1
        self._asked: list[int] = []
        self._doubt = 0.0
        self._is_on_credit = False
        self._was_drafted = False

    def assign(self, slot: int, max_drafts: int) -> None:
        """A request takes a slot."""
        self._shadows.drop(slot)
        self._planner.acceptance.assign(slot, max_drafts)
        self._progress.assign(slot)

    def limits(self, slots: Sequence[int]) -> DraftLimits:
        """Ask for what is expected to pay; else, seldom, for what shows whether it would."""
        num_rows = len(slots)
        self._num_rows = max(1, num_rows)
        self._earnings = min(self._earnings + EARNINGS_INCOME, EARNINGS_CAP)
        self._shadow_credit = min(self._shadow_credit + SHADOW_INCOME, SHADOW_CAP)
        if self._num_rest:
            self._num_rest -= 1
            return DraftLimits([0] * num_rows)
        if num_rows == 0 or not self._planner.step.is_known:
            return DraftLimits([0] * num_rows)
        self._weights = self._progress.weights(slots)
        survival = self._planner.acceptance.survival(slots) * self._weights[:, None]
        self._worth = dict(zip(slots, self._weights.tolist(), strict=True))
        plan = self._promising(slots, survival)
        self._is_on_credit = plan is None
        if plan is None:
            return self._look(slots, survival)
        self._rest = REST_STEPS[0]
        if self._doubt and self._was_drafted and self._planner.step.learns_from_plain(num_rows):
            self._was_drafted = False
            return DraftLimits([0] * num_rows)
        self._asked = plan.lengths
        return DraftLimits(plan.lengths)

    def _promising(self, slots: Sequence[int], survival: Floats) -> DraftPlan | None:
        """Drafts that pay, or that would if they added less time; None if there is nothing to lose."""
        self._doubt = 0.0
        if self._earnings <= 0.0:
            return None
        plan = self._planner.plan(slots, survival, self._earnings)
        if plan.speedup() >= MARGIN:
            if plan.speedup(self._planner.time(plan.lengths, DOUBT)) < 1.0:
                self._doubt = DOUBT
            return plan
        plan = self._planner.plan(slots, survival, min(self._earnings, TEST_STAKE), -DOUBT)
        loss = self._planner.time(plan.lengths) + plan.propose - 1.0
        if plan.speedup() < MARGIN or loss > self._earnings:
            return None
        self._doubt = -DOUBT
        return plan

    def _look(self, slots: Sequence[int], survival: Floats) -> DraftLimits:
        """Ask on credit: for what would be verified if it were there, else for a comparison with what comes."""
        planner = self._planner
        limits = [0 if slot in self._shadows else planner.acceptance.allowed(slot) for slot in slots]
        longest = max(limits)
        self._num_rest = self._rest
        self._rest = min(2 * self._rest, REST_STEPS[1])
        if longest == 0:
            return DraftLimits([0] * len(slots))
        fixed, each = planner.propose_share(sum(map(bool, limits)), len(slots))
        affordable = self._shadow_credit - fixed
        if affordable < each * min(SHADOW_DRAFTS, longest):
            return DraftLimits([0] * len(slots))
        if each * longest > affordable:
            longest = int(affordable / each)
        plan = best_plan(survival, planner.step.with_drafts(len(slots)))
        is_shadow = plan.speedup() < MARGIN or self._earnings <= 0.0
        if not is_shadow:
            limits, self._num_rest = plan.lengths, 0
        self._asked = [min(limit, longest) for limit in limits]
        return DraftLimits(self._asked, is_shadow)

    def trim(self, slots: Sequence[int], num_proposed: Sequence[int]) -> list[int]:
        """Keep what is expected to pay, now that proposing is paid for."""
        planner = self._planner
        asked = [
            (slot, num) for slot, limit, num in zip(slots, self._asked, num_proposed, strict=True) if limit
        ]
        planner.acceptance.note_answers([slot for slot, _ in asked], [num for _, num in asked])
        kept = list(num_proposed)
        if kept != self._asked and any(kept):
            survival = planner.acceptance.survival(slots) * planner.acceptance.up_to(kept)
            survival *= self._weights[:, None]
            plan = best_plan(survival, planner.step.with_drafts(len(slots), min(self._doubt, 0.0)))
            kept = plan.lengths if plan.speedup() >= MARGIN else [0] * len(kept)
        return kept

    def shadow(self, slots: Sequence[int], drafts: Sequence[Sequence[int]]) -> None:
        """Remember them until the tokens come."""
        self._planner.acceptance.note_answers(slots, [len(draft) for draft in drafts])
        for slot, draft in zip(slots, drafts, strict=True):
            if draft:
                self._shadows.add(slot, draft)

    def note_tokens(
        self, slots: Sequence[int], num_drafts: Sequence[int], token_ids: Sequence[Sequence[int]]
    ) -> None:
        """Learn how many were accepted, or would have been; pay in what that gave, pay out what it took."""
        acceptance = self._planner.acceptance
        gain = 0.0
        for slot, num, tokens in zip(slots, num_drafts, token_ids, strict=True):
            self._progress.note(slot, len(tokens))
            if num:
                num_accepted = len(tokens) - 1
                gain += num_accepted * self._worth.get(slot, 1.0)
                acceptance.note_outcome(slot, num, num_accepted)
            if slot in self._shadows:
                outcome = self._shadows.compare(slot, tokens)
                if outcome is not None:
                    acceptance.note_outcome(slot, *outcome)
        if any(num_drafts):
            profit = gain / len(slots) + 1.0 - self._planner.time(num_drafts)
            self._earnings = max(self._earnings + profit, EARNINGS_FLOOR)
            self._was_drafted = True

    @property
    def is_comparing(self) -> bool:
        """Whether proposals of a shadow round wait for tokens to be compared with."""
        return bool(self._shadows)

    def note_plain(self) -> None:
        """Requests that were ahead lose their lead."""
        self._progress.note_plain()

    def note_step(self, num_rows: int, num_drafts: int, seconds: float) -> None:
        """Learn what steps take."""
        self._planner.step.note(num_rows, num_drafts, seconds)

    def note_propose(self, num_requests: int, seconds: float) -> None:
        """Learn what proposals take; charge what this one took, or on account what such a one is known to take.

        A shadow round may come upon prompts that the drafter has never seen, and take them all in.
        """
        planner = self._planner
        most = max(self._asked)
        planner.propose.note(num_requests, most, seconds)
        if self._is_on_credit:
            taken = seconds / planner.step.plain_s(self._num_rows)
            self._shadow_credit = max(self._shadow_credit - taken, -SHADOW_CAP)
        else:
            fixed, each = planner.propose_share(num_requests, self._num_rows)
            self._earnings = max(self._earnings - fixed - each * most, EARNINGS_FLOOR)

    def calibrate(self, step_times: Sequence[tuple[int, float]], propose_s: float) -> None:
        """Start from these times."""
        self._planner.step.calibrate(step_times)
        if propose_s > 0.0:
            self._planner.propose.note(1, self._max_drafts, propose_s)

    def describe(self) -> str:
        """One line for the log."""
        planner = self._planner
        return f"drafts: {planner.acceptance.describe()}; {planner.step.describe()}; earned {self._earnings:.1f} steps"
