"""What an engine's heartbeat takes for progress."""

from __future__ import annotations

from quire.engine.pulse import COMPUTING_S, Pulse


class World:
    """A clock, a count, and processor time, all set by hand."""

    def __init__(self) -> None:
        self.now = self.cpu_s = 0.0
        self.count = 0
        self.pulse = Pulse(lambda: self.count, lambda: self.cpu_s, lambda: self.now)
        self.pulse.read()

    def seconds_of_growth(self, cpu_share: float, limit_s: float = 200.0) -> float:
        """How long the pulse grows without a count."""
        begin, last = self.now, self.pulse.read()
        while self.now - begin < limit_s:
            self.now += 0.5
            self.cpu_s += 0.5 * cpu_share
            value = self.pulse.read()
            if value == last:
                return self.now - begin - 0.5
            assert value > last
            last = value
        return limit_s


def test_a_slow_op_or_a_compiler_gets_on_for_a_while() -> None:
    world = World()
    assert abs(world.seconds_of_growth(cpu_share=2.0) - COMPUTING_S) <= 0.5
    world.count += 1  # and again after each count
    assert abs(world.seconds_of_growth(cpu_share=0.3) - COMPUTING_S) <= 0.5


def test_who_waits_does_not_get_on() -> None:
    world = World()
    assert world.seconds_of_growth(cpu_share=0.01) == 0.0


def test_counting_is_getting_on() -> None:
    world = World()
    for _ in range(1000):
        before = world.pulse.read()
        world.now += 0.5
        world.count += 1
        assert world.pulse.read() > before
