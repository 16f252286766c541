"""The default executor: the runner in this process, one call a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from quire.api.step import StepPlan, StepResult


class Runner(Protocol):
    """What an executor drives."""

    def run(self, plan: StepPlan) -> StepResult:
        """Run one plan."""
        ...

    def close(self) -> None:
        """Free weights and caches."""
        ...


@dataclass(slots=True, frozen=True)
class CompletedStep:
    """A step that has already run."""

    value: StepResult

    def result(self) -> StepResult:
        """The step's result."""
        return self.value


@dataclass(slots=True, frozen=True)
class InProcessExecutor:
    """Runs each plan at once, in the caller's thread."""

    runner: Runner

    def submit(self, plan: StepPlan) -> CompletedStep:
        """Run the plan."""
        return CompletedStep(self.runner.run(plan))

    def close(self) -> None:
        """Free the runner."""
        self.runner.close()
