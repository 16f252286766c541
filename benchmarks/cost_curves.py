"""Points of a cost curve beside the roofline: which are too slow, and where a curve jumps and the roofline does not."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from roofline import MachineLimits, StepCost
from shapes import Shape

MAX_OVER_ROOFLINE = 1.5
MAX_JUMP = 1.15
MAX_HOST_SHARE = 0.03


@dataclass(slots=True, frozen=True)
class Point:
    """One measured step of a curve.

    Attributes:
        at: what the curve runs over (running requests, or context).
        num_requests: in the step. mean_context: tokens before it, as they were in fact.
        step_s: the median; least_s, most_s: of the steps measured.
        roofline_s: the least time, by the bandwidth of the moment.
        parts_s: the least time where linears and attention do not overlap.
        bytes_per_s: that bandwidth. host_share: planning and building batches, of the step.
        others_cpu: of the cores, by other processes meanwhile.
    """

    at: int
    num_requests: int
    mean_context: float
    step_s: float
    least_s: float
    most_s: float
    roofline_s: float
    parts_s: float
    bytes_per_s: float
    host_share: float
    others_cpu: float

    @property
    def over_roofline(self) -> float:
        """How many times the least time the step took."""
        return self.step_s / self.roofline_s

    def to_json(self) -> dict[str, float]:
        """For the record, rounded."""
        values = asdict(self) | {
            "over_roofline": self.over_roofline,
            "over_parts": self.step_s / self.parts_s,
        }
        return {
            key: value if isinstance(value, int) else float(f"{value:.5g}") for key, value in values.items()
        }


@dataclass(slots=True, frozen=True)
class Jump:
    """Two neighbours between which a curve rises faster than its roofline: `factor` times as fast."""

    start: int
    end: int
    factor: float


def decode_cost(shape: Shape, contexts: Sequence[int]) -> StepCost:
    """Of a step in which requests of these contexts get one token each."""
    cost = StepCost(shape)
    for context in contexts:
        cost.add(context, 1)
    return cost


def parts_s(cost: StepCost, limits: MachineLimits) -> float:
    """The least time of a step whose linears and attention run one after the other."""
    shape = cost.shape
    weights = 2 * (shape.linear_params + shape.head_params)
    attention = 4.0 * cost.attention_pairs * shape.layers * shape.heads * shape.head_size
    linears_s = limits.least_time_s(weights, cost.num_flops - attention)
    return linears_s + limits.least_time_s(cost.num_bytes - weights, attention)


def make_point(
    at: int,
    cost: StepCost,
    limits: MachineLimits,
    seconds: Sequence[float],
    *,
    host_share: float,
    others_cpu: float,
) -> Point:
    """A point of what was measured; `limits` are those of the moment."""
    return Point(
        at=at,
        num_requests=cost.num_tokens,
        mean_context=cost.context_tokens / cost.num_tokens,
        step_s=statistics.median(seconds),
        least_s=min(seconds),
        most_s=max(seconds),
        roofline_s=limits.least_time_s(cost.num_bytes, cost.num_flops),
        parts_s=parts_s(cost, limits),
        bytes_per_s=limits.bytes_per_s,
        host_share=host_share,
        others_cpu=others_cpu,
    )


def slow_points(points: Sequence[Point], limit: float = MAX_OVER_ROOFLINE) -> list[Point]:
    """Those over `limit` times the roofline."""
    return [point for point in points if point.over_roofline > limit]


def jumps(points: Sequence[Point], limit: float = MAX_JUMP) -> list[Jump]:
    """Neighbours between which the time grows over `limit` times as much as the roofline does."""
    found = []
    for one, other in zip(points, points[1:], strict=False):
        factor = (other.step_s / one.step_s) / (other.roofline_s / one.roofline_s)
        if factor > limit:
            found.append(Jump(one.at, other.at, factor))
    return found


def verdict(name: str, points: Sequence[Point]) -> dict[str, object]:
    """A curve for the record, with what is wrong with it."""
    return {
        "curve": name,
        "points": [point.to_json() for point in points],
        "over_limit": [point.at for point in slow_points(points)],
        "jumps": [
            {"from": jump.start, "to": jump.end, "factor": round(jump.factor, 3)} for jump in jumps(points)
        ],
    }
