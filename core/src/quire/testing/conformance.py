"""What all conformance suites share: checks, their results, and how they are run with or without pytest."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar, cast
from unittest import SkipTest

from quire.api.errors import QuireError

T = TypeVar("T")

CheckStatus = Literal["passed", "failed", "skipped"]


class ConformanceError(QuireError):
    """Something does not do what its protocol promises; the text says what was expected and what was found."""


@dataclass(slots=True, frozen=True)
class CheckResult:
    """What one check of one suite found.

    Attributes:
        suite: the suite and what it was run on, e.g. "ModelConformance LlamaForCausalLM".
        check: the method's name.
        detail: the message of a failure, the reason of a skip, else what was exercised.
        traits: all that the suite has exercised so far.
    """

    suite: str
    check: str
    status: CheckStatus
    detail: str
    seconds: float
    traits: tuple[str, ...] = ()


class Conformance:
    """Base of the suites: every method `test_*` is a check, run in the order of definition.

    With pytest: subclass a suite, call the subclass `Test...` and set its class attributes. Without:
    `run`, or `quire.testing.check_plugin`. A check that does not pass raises ConformanceError; one that
    does not apply raises `unittest.SkipTest`, which pytest knows too. Checks share what is expensive
    (checkpoints, references) until `teardown_class`.
    """

    is_thorough: ClassVar[bool] = False
    """Run every combination instead of a sample."""

    _shared: ClassVar[dict[object, object]]

    @classmethod
    def checks(cls) -> list[str]:
        """The names of the checks, in their order: a base's before those of its subclasses."""
        names: dict[str, None] = {}
        for base in reversed(cls.__mro__):
            names.update(dict.fromkeys(name for name in vars(base) if name.startswith("test_")))
        return [name for name in names if callable(getattr(cls, name, None))]

    @classmethod
    def run(
        cls, target: str = "", on_result: Callable[[CheckResult], object] | None = None
    ) -> list[CheckResult]:
        """Run all checks; what they raise becomes results, each given to `on_result` as it comes."""
        label = " ".join(filter(None, (_suite_name(cls), target)))
        results: list[CheckResult] = []
        try:
            for name in cls.checks():
                results.append(cls._run_check(label, name))
                if on_result is not None:
                    on_result(results[-1])
            return results
        finally:
            cls.teardown_class()

    @classmethod
    def teardown_class(cls) -> None:
        """Drop what the checks share."""
        for value in list(vars(cls).get("_shared", {}).values()):
            close = getattr(value, "cleanup", None)
            if callable(close):
                close()
        cls._shared = {}

    @classmethod
    def shared(cls, key: object, make: Callable[[], T]) -> T:
        """What `make` gave for this key when it was first asked for, by this suite."""
        if "_shared" not in vars(cls):
            cls._shared = {}
        if key not in cls._shared:
            cls._shared[key] = make()
        return cast(T, cls._shared[key])

    @classmethod
    def traits(cls) -> tuple[str, ...]:
        """What the checks have exercised so far, in the order in which it was seen."""
        return tuple(cls._seen())

    @classmethod
    def note(cls, *traits: str) -> None:
        """Remember that a trait was exercised."""
        cls._seen().update(dict.fromkeys(traits))

    @classmethod
    def _seen(cls) -> dict[str, None]:
        return cls.shared("traits", dict)

    @classmethod
    def _run_check(cls, label: str, name: str) -> CheckResult:
        begin, before = time.perf_counter(), set(cls.traits())
        status: CheckStatus = "passed"
        try:
            getattr(cls(), name)()
            detail = ", ".join(trait for trait in cls.traits() if trait not in before)
        except SkipTest as reason:
            status, detail = "skipped", str(reason)
        except ConformanceError as error:
            status, detail = "failed", str(error)
        except (Exception, SystemExit) as error:
            status, detail = "failed", f"{type(error).__name__}: {error}"
        return CheckResult(label, name, status, detail, time.perf_counter() - begin, cls.traits())


def require(condition: bool, message: str) -> None:
    """Raise ConformanceError with the message unless the condition holds; `assert` vanishes under -O."""
    if not condition:
        raise ConformanceError(message)


def _suite_name(cls: type[Conformance]) -> str:
    """The shipped suite that a class is of, however it was subclassed."""
    named = (base.__name__ for base in cls.__mro__ if base.__module__.startswith("quire.testing."))
    return next(named, cls.__name__)
