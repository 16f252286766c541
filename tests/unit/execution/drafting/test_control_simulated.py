"""Adaptive drafts in simulated engines: never noticeably slower than none, and nearly as fast as the best fixed number.

Times are made up, so that nothing here depends on the machine. What a control is told is noisy; what is compared is
the true time of the tokens, with and without drafts.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from quire.execution.drafting.adaptive_control import AdaptiveControl
from quire.execution.drafting.control import DraftControl, FixedControl

K = 8
STEP_S = 10e-3

CURVES: dict[str, Callable[[int], float]] = {
    "flat": lambda tokens: STEP_S,
    "flat to 64": lambda tokens: STEP_S * (1 + 0.01 * max(0, tokens - 64)),
    "gentle": lambda tokens: STEP_S * (1 + 0.1 * (tokens - 1)),
    "steep": lambda tokens: STEP_S * tokens,
}
DRAFTERS: dict[str, Callable[[int, int], float]] = {
    "lookup": lambda requests, drafts: 10e-6 * requests,
    "model": lambda requests, drafts: 0.05 * STEP_S * drafts,
    "slow": lambda requests, drafts: 3 * STEP_S * drafts / K,
}


class Text:
    """A request's text, which is its positions, and what a drafter makes of it."""

    def __init__(self, kind: str | float, rng: random.Random) -> None:
        self.kind, self.rng = kind, rng
        self.position = 0
        self.is_copying = rng.random() < 0.5

    def advance(self) -> int:
        self.position += 1
        if self.kind == "bursts" and self.rng.random() < 1 / 40:
            self.is_copying = not self.is_copying
        return self.position - 1

    def verify(self, drafts: list[int]) -> list[int]:
        tokens = [self.advance()]
        for draft in drafts:
            if draft != tokens[-1]:
                break
            tokens.append(self.advance())
        return tokens

    def propose(self, limit: int, step: int) -> list[int]:
        match self.kind:
            case "seldom":
                chance = 0.25
                limit = limit if self.rng.random() < 0.1 else 0
            case "bursts":
                chance = 0.95 if self.is_copying else 0.05
                limit = limit if self.is_copying or self.rng.random() < 0.4 else 0
            case "late":
                chance = 0.95 if step >= 150 else 0.0
            case float(value):
                chance = value
        num_right = 0
        while num_right < limit and self.rng.random() < chance:
            num_right += 1
        return [self.position + j if j < num_right else -1 for j in range(limit)]


@dataclass
class World:
    """An engine with R requests.

    Attributes:
        calibration: by how much the times of the start are wrong, for so many tokens.
        surplus: of steps with drafts over the curve.
        lifetime: tokens of a request, after which another takes its slot.
    """

    num_rows: int
    kind: str | float
    curve: Callable[[int], float] = CURVES["gentle"]
    propose: Callable[[int, int], float] = DRAFTERS["lookup"]
    seed: int = 0
    calibration: Callable[[int], float] | None = field(default=lambda tokens: 1.0)
    surplus: float = 1.0
    lifetime: int | None = None
    noise: float = 0.1
    spikes: float = 0.01
    speeds: list[float] = field(default_factory=list)
    num_drafts: list[int] = field(default_factory=list)
    num_shadows: int = 0

    def run(self, control: DraftControl, num_steps: int = 150) -> float:
        """Throughput against plain decoding."""
        self.rng = random.Random(self.seed)
        self.control = control
        self.speeds, self.num_drafts, self.num_shadows = [], [], 0
        slots = range(self.num_rows)
        self.texts = [Text(self.kind, self.rng) for _ in slots]
        for slot in slots:
            control.assign(slot, K)
        if self.calibration is not None:
            control.calibrate(
                [(2**i, self.calibration(2**i) * self.noisy(self.curve(2**i))) for i in range(8)],
                self.noisy(self.propose(1, K)),
            )
        plain_s = self.curve(self.num_rows) / self.num_rows
        total_s, total_tokens = 0.0, 0
        drafts: list[list[int]] = [[] for _ in slots]
        for step in range(num_steps):
            num_drafts = sum(map(len, drafts))
            step_s = self.curve(self.num_rows + num_drafts) * (self.surplus if num_drafts else 1.0)
            num_tokens = self.verify(drafts)
            control.note_step(self.num_rows, num_drafts, self.noisy(step_s))
            drafts, propose_s = self.draft(step)
            total_s += step_s + propose_s
            total_tokens += num_tokens
            self.num_drafts.append(num_drafts)
            self.speeds.append(num_tokens * plain_s / (step_s + propose_s))
        return total_tokens * plain_s / total_s

    def noisy(self, seconds: float) -> float:
        spike = 5.0 if self.rng.random() < self.spikes else 1.0
        return seconds * spike * math.exp(self.rng.gauss(0.0, self.noise))

    def verify(self, drafts: list[list[int]]) -> int:
        given = [self.texts[slot].verify(draft) for slot, draft in enumerate(drafts)]
        self.control.note_tokens(range(self.num_rows), [len(draft) for draft in drafts], given)
        for slot, text in enumerate(self.texts):
            if self.lifetime is not None and text.position > self.lifetime * (0.5 + slot / self.num_rows):
                self.texts[slot] = Text(self.kind, self.rng)
                self.control.assign(slot, K)
        return sum(map(len, given))

    def draft(self, step: int) -> tuple[list[list[int]], float]:
        slots = range(self.num_rows)
        decision = self.control.limits(slots)
        asked = [slot for slot in slots if decision.limits[slot]]
        drafts: list[list[int]] = [[] for _ in slots]
        if not asked:
            return drafts, 0.0
        for slot in asked:
            drafts[slot] = self.texts[slot].propose(decision.limits[slot], step)
        seconds = self.propose(len(asked), max(decision.limits))
        self.control.note_propose(len(asked), self.noisy(seconds))
        if decision.is_shadow:
            self.num_shadows += 1
            self.control.shadow(asked, [drafts[slot] for slot in asked])
            return [[] for _ in slots], seconds
        kept = self.control.trim(slots, [len(draft) for draft in drafts])
        assert all(num <= len(draft) for num, draft in zip(kept, drafts, strict=True))
        return [draft[:num] for num, draft in zip(kept, drafts, strict=True)], seconds


def adaptive(num_rows):
    return AdaptiveControl(K, num_rows)


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def speeds(num_seeds=3, num_steps=150, **world):
    """Throughputs of the same world with other random numbers."""
    worlds = [World(seed=seed, **world) for seed in range(num_seeds)]
    return [each.run(adaptive(each.num_rows), num_steps) for each in worlds]


def best_fixed(**world):
    """Throughput with the best fixed number of drafts, which nobody knows beforehand."""
    return max(World(**world).run(FixedControl(k, world["num_rows"])) for k in (1, 2, 4, 8))


@pytest.mark.parametrize("num_rows", [1, 4, 16, 64])
@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("curve", CURVES)
def test_is_never_slower_than_plain_decoding(curve, drafter, num_rows):
    for kind in (0.0, 0.3, 0.9, "seldom", "bursts"):
        world = {"curve": CURVES[curve], "propose": DRAFTERS[drafter], "num_rows": num_rows, "kind": kind}
        measured = speeds(3, **world)
        assert mean(measured) >= 0.97, (kind, measured)
        assert min(measured) >= 0.94, (kind, measured)


@pytest.mark.parametrize("num_rows", [1, 4, 16, 64])
@pytest.mark.parametrize(
    ("curve", "drafter", "kind", "share"),
    [
        ("flat", "lookup", 0.9, 0.9),
        ("flat", "lookup", 0.3, 0.88),
        ("flat", "lookup", "bursts", 0.9),
        ("flat", "model", 0.9, 0.85),
        ("flat to 64", "lookup", 0.9, 0.9),
        ("gentle", "lookup", 0.9, 0.9),
        ("gentle", "model", 0.9, 0.85),
    ],
)
def test_keeps_nearly_all_of_the_gain_where_drafts_pay(curve, drafter, kind, share, num_rows):
    world = {"curve": CURVES[curve], "propose": DRAFTERS[drafter], "num_rows": num_rows, "kind": kind}
    best = best_fixed(**world)
    measured = speeds(4 if num_rows < 64 else 1, **world)
    assert mean(measured) >= share * max(1.0, best), (best, measured)


def test_copying_at_one_request_is_three_times_as_fast():
    assert min(speeds(6, num_rows=1, kind=0.95)) > 3.0


def test_short_runs_lose_little():
    for kind in (0.0, 0.1, "seldom"):
        for num_rows in (1, 16):
            assert mean(speeds(4, 100, num_rows=num_rows, kind=kind)) >= 0.97


@pytest.mark.parametrize("num_rows", [1, 16])
def test_a_drafter_that_becomes_good_is_switched_on(num_rows):
    for seed in range(4):
        world = World(num_rows, "late", seed=seed)
        world.run(adaptive(num_rows), 450)
        assert sum(world.num_drafts[50:150]) / num_rows < 10
        assert world.num_shadows > 3
        assert mean(world.speeds[350:]) > 1.1 * mean(world.speeds[50:150])


def test_a_model_that_becomes_good_is_switched_on_within_shadows_of_one_percent():
    world = World(16, "late", propose=DRAFTERS["model"], curve=CURVES["flat"])
    world.run(adaptive(16), 500)
    assert mean(world.speeds[50:150]) > 0.98
    assert mean(world.speeds[400:]) > 2.0


@pytest.mark.parametrize("kind", [0.0, 0.9, "bursts"])
def test_requests_that_come_and_go_change_nothing_of_that(kind):
    for num_rows in (4, 16):
        measured = speeds(3, 200, num_rows=num_rows, kind=kind, lifetime=60)
        assert mean(measured) >= 0.97
        if kind == 0.9:
            assert mean(measured) >= 0.85 * best_fixed(num_rows=num_rows, kind=kind)


@pytest.mark.parametrize("num_rows", [1, 16])
@pytest.mark.parametrize(
    "calibration",
    [
        lambda tokens: 2.0,
        lambda tokens: 0.5,
        lambda tokens: tokens**0.3,
        lambda tokens: tokens**-0.3,
    ],
    ids=["twice", "half", "too steep", "too flat"],
)
def test_a_wrong_calibration_is_corrected_by_real_steps(calibration, num_rows):
    for kind in (0.0, 0.9):
        world = {"num_rows": num_rows, "kind": kind, "calibration": calibration}
        measured = speeds(4, 300, **world)
        assert mean(measured) >= 0.96, measured
        if kind:
            assert mean(measured) >= 0.8 * best_fixed(num_rows=num_rows, kind=kind), measured


def test_steps_with_drafts_that_cost_twice_the_curve_are_given_up():
    world = World(4, 0.5, surplus=2.0, curve=CURVES["flat"])
    assert world.run(adaptive(4), 300) >= 0.97
    assert mean(world.speeds[200:]) >= 0.985


def test_without_a_calibration_it_learns_from_the_first_steps():
    for kind, least in ((0.0, 0.97), (0.9, 2.0)):
        assert mean(speeds(4, 200, num_rows=1, kind=kind, calibration=None)) >= least


def test_simulations_can_fail():
    """The worlds above do contain drafts that lose: fixed ones are far slower than none."""
    assert World(64, 0.3).run(FixedControl(K, 64)) < 0.5
    assert World(1, 0.0, propose=DRAFTERS["slow"]).run(FixedControl(K, 1)) < 0.3
