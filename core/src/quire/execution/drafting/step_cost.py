"""What steps and proposals take: figures of the start, kept right by the steps that really run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from quire.execution.drafting.acceptance import Floats
from quire.execution.drafting.pair_filter import PairFilter

STEP_NOISE = 0.1**2
"""Variance of a step's time, relative to it."""
BASE_DOUBT = 0.5**2
"""Variance of what steps really take against the curve that was measured at the start."""
SLOPE_DOUBT = 0.8**2
"""Variance of what drafts really add against that curve, beyond the former."""
MOST_DOUBT = 1.0**2
LEAST_BASE = 0.05
BASE_DRIFT = 0.03**2
"""How much the former variance grows with each step: contexts become longer, machines busier."""
SLOPE_DRIFT = 0.01**2
MOVED_DOUBT = 0.1**2
"""Variance that is added where figures of other numbers of requests are taken over."""
LEAST_SLOPE = 0.25
"""Time of a draft for every row, in steps without drafts: less is not believed before it was seen."""
EXTRAPOLATION = 0.5
"""Share of the time per token of the largest measured step that a further token takes at least."""
UNCALIBRATED_BASE = 3.0
"""Tokens whose time a step takes apart from its tokens, where nothing was measured: a cautious guess."""
INFORMATIVE = 0.1
"""Share of the doubt about what drafts add that a step without drafts has to remove to be worth its while."""
PROPOSE_NOISE = 0.25**2
"""Variance of a proposal's time, relative to it."""
PROPOSE_DRIFT = 0.03**2
PROPOSE_FIXED_SHARE = 0.2
"""Share of the first proposal's time that is taken not to depend on how many drafts were asked for."""


class StepCost:
    """Seconds of a decode step by its rows and draft tokens.

    A curve over the tokens of a step is measured at the start. A step of R rows with D drafts is taken to last
    base * curve(R) + slope * (curve(R + D) - curve(R)); base and slope start at 1, and a filter for each power
    of two of rows follows them through the steps that run.

    Args:
        max_drafts: K, most drafts of a row. max_num_seqs: most rows.
    """

    def __init__(self, max_drafts: int, max_num_seqs: int) -> None:
        self._max_drafts = max_drafts
        self._curve: Floats = np.arange(max_num_seqs * (1 + max_drafts) + 1, dtype=np.float64)
        self._curve += UNCALIBRATED_BASE
        self._extras: dict[int, Floats] = {}
        self._filters: dict[int, PairFilter] = {}
        self._guess = PairFilter((1.0, 1.0), (BASE_DOUBT, BASE_DOUBT + SLOPE_DOUBT), BASE_DOUBT)
        self._largest = 0

    def calibrate(self, step_times: Sequence[tuple[int, float]]) -> None:
        """Take the curve from (tokens, seconds): straight between points and beyond the last two."""
        points = {tokens: seconds for tokens, seconds in sorted(step_times) if tokens > 0 and seconds > 0.0}
        self._filters.clear()
        self._extras.clear()
        if not points:
            return
        tokens, seconds = np.array(list(points)), np.maximum.accumulate(list(points.values()))
        sizes = np.arange(len(self._curve))
        before = max(0, len(points) - 3)
        slope = (seconds[-1] - seconds[before]) / max(1, tokens[-1] - tokens[before])
        slope = max(slope, EXTRAPOLATION * seconds[-1] / tokens[-1])
        beyond: Floats = np.maximum(sizes - float(tokens[-1]), 0.0)
        self._curve = np.asarray(np.interp(sizes, tokens, seconds) + slope * beyond, dtype=np.float64)
        self._largest = int(tokens[-1])

    @property
    def is_known(self) -> bool:
        """Whether there is any measured time."""
        return self._largest > 0

    def note(self, num_rows: int, num_drafts: int, seconds: float) -> None:
        """A decode step took so long."""
        if seconds <= 0.0:
            return
        if not self.is_known:
            if num_drafts:
                return
            self._curve *= seconds / self._curve[num_rows]
        self._largest = max(self._largest, num_rows + num_drafts)
        bucket = num_rows.bit_length()
        cost = self._filters.get(bucket)
        if cost is None:
            cost = self._filters[bucket] = self._nearest(num_rows).copy()
            cost.var_first += MOVED_DOUBT
            cost.var_second += 2 * MOVED_DOUBT
            cost.covariance += MOVED_DOUBT
        cost.var_first += BASE_DRIFT
        cost.covariance += BASE_DRIFT
        cost.var_second = min(cost.var_second + BASE_DRIFT + SLOPE_DRIFT, MOST_DOUBT)
        extra = float(self._extra(num_rows)[num_drafts - 1]) if num_drafts else 0.0
        noise = STEP_NOISE * (cost.first + extra * cost.second) ** 2
        cost.observe(seconds / float(self._curve[num_rows]), extra, noise)
        cost.first = max(cost.first, LEAST_BASE)
        cost.second = max(cost.second, 0.0)

    def plain_s(self, num_rows: int) -> float:
        """Seconds of a step without drafts."""
        return self._nearest(num_rows).first * float(self._curve[num_rows])

    def with_drafts(self, num_rows: int, deviations: float = 0.0) -> Floats:
        """Times of steps with 1, 2, ... drafts over all rows against the one without, [N], N <= R * K.

        None are given for steps of more than twice as many tokens as any that was measured.

        Args:
            num_rows: R.
            deviations: by how many standard deviations drafts take longer than expected.
        """
        extra = self._extra(num_rows)[: max(1, 2 * self._largest - num_rows)]
        return 1.0 + extra * self._slope(num_rows, deviations)

    def time(self, num_rows: int, num_drafts: int, deviations: float = 0.0) -> float:
        """Of one of these steps."""
        return 1.0 + self._slope(num_rows, deviations) * float(self._extra(num_rows)[num_drafts - 1])

    def _slope(self, num_rows: int, deviations: float) -> float:
        cost = self._nearest(num_rows)
        slope = cost.second
        if deviations:
            slope += deviations * math.sqrt(max(0.0, cost.var_first + cost.var_second - 2 * cost.covariance))
        return max(0.0, slope / cost.first)

    def learns_from_plain(self, num_rows: int) -> bool:
        """Whether a step without drafts would tell much about what drafts cost: what both take is well known."""
        cost = self._nearest(num_rows)
        variance = cost.var_first + cost.var_second - 2 * cost.covariance
        removed = (cost.covariance - cost.var_first) ** 2 / (cost.var_first + STEP_NOISE)
        return removed > INFORMATIVE * variance

    def _extra(self, num_rows: int) -> Floats:
        """What 1, 2, ... drafts cost by the curve, [R * K]; in steps without drafts."""
        extra = self._extras.get(num_rows)
        if extra is None:
            curve = self._curve[num_rows : num_rows * (1 + self._max_drafts) + 1]
            least = np.minimum(np.arange(1, len(curve)) / num_rows, 1.0) * LEAST_SLOPE
            extra = self._extras[num_rows] = np.maximum(curve[1:] / curve[0] - 1.0, least)
        return extra

    def describe(self) -> str:
        """One line for the log."""
        return "; ".join(
            f"{1 << bucket >> 1}+ rows: {self.plain_s(1 << bucket >> 1) * 1e3:.3g} ms, "
            f"drafts x{cost.second / cost.first:.2f}"
            for bucket, cost in sorted(self._filters.items())
        )

    def _nearest(self, num_rows: int) -> PairFilter:
        bucket = num_rows.bit_length()
        cost = self._filters.get(bucket)
        if cost is not None:
            return cost
        if self._filters:
            return self._filters[min(self._filters, key=lambda other: abs(other - bucket))]
        return self._guess


class ProposeCost:
    """Seconds of a proposal: a fixed part and one per draft position, for each power of two of requests."""

    def __init__(self) -> None:
        self._filters: dict[int, PairFilter] = {}

    def note(self, num_requests: int, num_drafts: int, seconds: float) -> None:
        """Asking for up to `num_drafts` drafts of so many requests took so long."""
        bucket = num_requests.bit_length()
        cost = self._filters.get(bucket)
        if cost is None:
            self._filters[bucket] = _first_guess(num_drafts, seconds)
            return
        scale = (cost.first + num_drafts * cost.second) ** 2
        cost.var_first += PROPOSE_DRIFT * scale
        cost.var_second += PROPOSE_DRIFT * scale / num_drafts**2
        cost.observe(seconds, num_drafts, PROPOSE_NOISE * scale)

    def parts(self, num_requests: int) -> tuple[float, float]:
        """The fixed part, and the one per draft position."""
        if not self._filters:
            return 0.0, 0.0
        bucket = num_requests.bit_length()
        cost = self._filters[min(self._filters, key=lambda other: abs(other - bucket))]
        return max(0.0, cost.first), max(0.0, cost.second)


def _first_guess(num_drafts: int, seconds: float) -> PairFilter:
    """Of one proposal's time: what it was altogether is rather certain, how much of it is fixed is not."""
    per_draft = seconds / num_drafts
    return PairFilter(
        (PROPOSE_FIXED_SHARE * seconds, (1.0 - PROPOSE_FIXED_SHARE) * per_draft),
        (0.25 * seconds**2, 0.25 * per_draft**2),
        -0.23 * seconds * per_draft,
    )
