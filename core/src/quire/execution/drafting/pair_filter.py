"""Two numbers that drift, followed through noisy sums of them."""

from __future__ import annotations

import math

OUTLIER = 2.5
"""Standard deviations beyond which a time counts as if it were there: a spike moves the estimates little."""


class PairFilter:
    """A Kalman filter of two numbers that drift, of which `first + factor * second` is observed with noise.

    Args:
        values: first guesses. variances, covariance: how far off they may be.

    Source: Kalman 1960.
    """

    __slots__ = ("covariance", "first", "second", "var_first", "var_second")

    def __init__(
        self, values: tuple[float, float], variances: tuple[float, float], covariance: float = 0.0
    ) -> None:
        self.first, self.second = values
        self.var_first, self.var_second = variances
        self.covariance = covariance

    def copy(self) -> PairFilter:
        """Another that starts from what is known here."""
        return PairFilter((self.first, self.second), (self.var_first, self.var_second), self.covariance)

    def observe(self, value: float, factor: float, noise: float) -> None:
        """Take in a value of `first + factor * second`, whose noise has the given variance."""
        to_first = self.var_first + factor * self.covariance
        to_second = self.covariance + factor * self.var_second
        variance = to_first + factor * to_second + noise
        bound = OUTLIER * math.sqrt(variance)
        surprise = max(-bound, min(bound, value - self.first - factor * self.second)) / variance
        self.first += to_first * surprise
        self.second += to_second * surprise
        self.var_first -= to_first * to_first / variance
        self.covariance -= to_first * to_second / variance
        self.var_second -= to_second * to_second / variance
