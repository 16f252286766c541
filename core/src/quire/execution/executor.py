"""The default executor: the runner in this process, one call a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from quire.api.protocols import PendingStep
from quire.api.step import StepPlan, StepResult


class Runner(Protocol):
    """What an executor drives."""

    def run(self, plan: StepPlan) -> StepResult:
        """Run one plan."""
        ...

    def launch(self, plan: StepPlan) -> PendingStep:
        """Run one plan without waiting for its end, where that can be; earlier ones need not have ended."""
        ...

    def close(self) -> None:
        """Free weights and caches."""
        ...


@dataclass(slots=True, frozen=True)
class CompletedStep:
    """A step that has already run: the engine takes it in before it plans the next one."""

    value: StepResult

    def result(self) -> StepResult:
        """The step's result."""
        return self.value


@dataclass(slots=True, frozen=True)
class InProcessExecutor:
    """Runs each plan in the caller's thread.

    Attributes:
        runner: driven. is_ahead: whether plans are launched, and read when their results are asked for.
    """

    runner: Runner
    is_ahead: bool = False

    def submit(self, plan: StepPlan) -> PendingStep:
        """Run the plan, or launch it."""
        return self.runner.launch(plan) if self.is_ahead else CompletedStep(self.runner.run(plan))

    def close(self) -> None:
        """Free the runner."""
        self.runner.close()
