"""The suite of logits processors: pure functions of their arguments, on their own row, within an engine too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, cast
from unittest import SkipTest

import torch
from torch import Tensor

from quire.api.errors import SamplingParamsError
from quire.api.extensions import LogitsProcessor, LogitsProcessorFactory
from quire.api.request import SamplingParams
from quire.api.specs import FactoryRef, LogitsProcessorSpec
from quire.testing.conformance import ConformanceError, require
from quire.testing.extension_base import ExtensionConformance
from quire.testing.served_model import Generated, Job
from quire.testing.toy_model import MAX_LEN, VOCAB_SIZE

GUESS = object()
"""Try what a processor may accept."""

_GUESSES: tuple[object, ...] = (None, {}, True, 1, 0.5, [1, 2], [], "a")
_HISTORIES: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((1,), ()),
    ((1, 2, 3), (4, 5)),
    ((1, 2, 3), (4,)),
    ((7, 7, 7, 7), (7, 7, 7)),
    (tuple(range(20)), tuple(range(20, 50))),
)
_KIND = "logits processor"


class LogitsProcessorConformance(ExtensionConformance):
    """A logits processor, alone and in an engine.

    In a test file::

        class TestMine(LogitsProcessorConformance):
            name = "mine"                       # as it is registered; or `processor`, its factory
            arguments = {"token_ids": [3, 4]}   # what a request gives under that name
            wrong_arguments = (17, {"tokens": [3]})

    Without `arguments` some are guessed. `more_arguments` are tried too; token ids are below 61. `options`
    are what the factory finds in its context (by default those of the installed plugin). `is_always_on`
    as in the spec, where `processor` is given.
    """

    processor: ClassVar[FactoryRef | None] = None
    arguments: ClassVar[Any] = GUESS
    more_arguments: ClassVar[Sequence[object]] = ()
    wrong_arguments: ClassVar[Sequence[object]] = ()
    is_always_on: ClassVar[bool] = False

    def test_makes_processors(self) -> None:
        """The factory makes a callable for the arguments."""
        for _, made in self._processors():
            require(callable(made), f"for_request gave a {type(made).__name__}, not a callable")

    def test_refuses_wrong_arguments(self) -> None:
        """Wrong arguments are a ValueError, which refuses the request with its message."""
        factory = self._factory()
        for arguments in (*self.wrong_arguments, object()):
            is_given = any(arguments is wrong for wrong in self.wrong_arguments)
            try:
                factory.for_request(arguments, SamplingParams())
            except ValueError as error:
                require(bool(str(error)), f"{arguments!r} is refused without saying why")
                continue
            except Exception as error:
                raise ConformanceError(
                    f"{arguments!r} is refused by {type(error).__name__}: {error}; raise ValueError"
                ) from error
            require(not is_given, f"{arguments!r} is accepted; raise ValueError")

    def test_shape_and_dtype(self) -> None:
        """It gives float32 [V]."""
        for label, made in self._processors():
            for prompt, output in _HISTORIES:
                self._call(made, prompt, output, _logits(3), label)

    def test_is_pure(self) -> None:
        """The same tokens and logits give the same, in any order, and from any processor of these arguments."""
        factory = self._factory()
        pairs = zip(self._processors(factory), self._processors(factory), strict=True)
        for (label, first), (_, second) in pairs:
            calls = [(prompt, output, seed) for prompt, output in _HISTORIES for seed in (0, 1)]
            results = {call: self._call(first, call[0], call[1], _logits(call[2]), label) for call in calls}
            for made, order in ((first, calls[::-1]), (second, calls[3:] + calls[:3])):
                for call in order:
                    again = self._call(made, call[0], call[1], _logits(call[2]), label)
                    require(
                        torch.equal(again, results[call]),
                        f"{label}: called again with {len(call[1])} output tokens, it gives something else: keep "
                        "nothing between calls (requests are preempted, forked and replayed)",
                    )

    def test_reads_history_only(self) -> None:
        """Prompt and output are read-only."""
        for label, made in self._processors():
            for prompt, output in _HISTORIES:
                lists = (list(prompt), list(output))
                self._call(made, lists[0], lists[1], _logits(0), label)
                require(
                    lists == (list(prompt), list(output)),
                    f"{label}: it changed the prompt's or the output's tokens",
                )

    def test_own_row_only(self) -> None:
        """It reaches nothing beside the row that it is given."""
        for label, made in self._processors():
            for prompt, output in _HISTORIES:
                batch = torch.stack([_logits(seed) for seed in range(3)])
                before = batch.clone()
                self._call(made, prompt, output, batch[1], label)
                require(
                    torch.equal(batch[[0, 2]], before[[0, 2]]),
                    f"{label}: it changed the row of another request",
                )

    def test_leaves_a_token(self) -> None:
        """-inf forbids tokens, but not all; there is no NaN and no +inf, where other processors forbade some too."""
        for label, made in self._processors():
            for prompt, output in _HISTORIES:
                logits = _logits(5)
                logits[VOCAB_SIZE // 2 :: 3] = -torch.inf
                result = self._call(made, prompt, output, logits, label)
                require(not bool(result.isnan().any()), f"{label}: it makes NaN of logits that hold -inf")
                require(not bool((result == torch.inf).any()), f"{label}: it makes +inf")
                plain = self._call(made, prompt, output, _logits(5), label)
                require(bool(plain.isfinite().any()), f"{label}: it forbids every token")

    def test_in_an_engine(self) -> None:
        """Tokens are those of the processed logits: together, in parts, preempted, as one of several choices."""
        self._require_engine()
        blocks = -(-MAX_LEN // 4) + 1
        for label, made in self._processors():
            params = self._request_params(label)
            for settings, choices in (
                (dict[str, object](), 1),
                ({"max_num_batched_tokens": 7}, 1),
                ({"num_kv_blocks": blocks, "max_num_batched_tokens": 16}, 1),
                ({}, 3),
            ):
                jobs = [Job(tuple(range(n, 2 * n)), 20, {**params, "n": choices}) for n in (3, 7, 9, 12)]
                plain = Job((5, 6, 7, 8), 12)
                with self.engine(settings, processors=(self._spec(),)) as engine:
                    results = engine.run([*jobs, plain])
                    is_scarce = "num_kv_blocks" in settings
                    require(
                        not is_scarce or engine.counter("num_preemptions") > 0,
                        "no request was preempted: nothing was shown",
                    )
                for choice in (choice for found in results[:-1] for choice in found):
                    self._check_tokens(choice, made, f"{label}, {settings or 'together'}")
                if not self._is_always_on():
                    self._check_tokens(results[-1][0], None, f"{label}: a request that did not ask for it")
        self.note("preemption", "several choices", "neighbours")

    def _check_tokens(self, choice: Generated, made: LogitsProcessor | None, what: str) -> None:
        """Greedy tokens are the likeliest of the processed log-probabilities."""
        for index, token in enumerate(choice.token_ids):
            row = choice.logprobs[index].float()
            if made is not None:
                row = self._call(made, choice.prompt, choice.token_ids[:index], row, what)
            best = float(row.max())
            require(
                float(row[token]) >= best - 1e-4,
                f"{what}: output {index} is {token}; after the processor the likeliest is {int(row.argmax())}",
            )

    def _processors(
        self, factory: LogitsProcessorFactory | None = None
    ) -> Iterator[tuple[str, LogitsProcessor]]:
        """New processors, with their arguments as text."""
        factory = factory or self._factory()
        for arguments in self._valid_arguments():
            try:
                made = factory.for_request(arguments, SamplingParams())
            except ValueError as error:
                raise ConformanceError(f"the arguments {arguments!r} are refused: {error}") from error
            if made is None:
                raise SkipTest(f"it passes over requests with the arguments {arguments!r}: give `arguments`")
            yield repr(arguments), made

    def _valid_arguments(self) -> list[object]:
        if self.arguments is not GUESS:
            return [self.arguments, *self.more_arguments]
        return self.shared("arguments", self._guess)

    def _guess(self) -> list[object]:
        factory = self._factory()
        for arguments in _GUESSES:
            try:
                if factory.for_request(arguments, SamplingParams()) is not None:
                    return [arguments]
            except Exception:  # not these, then
                continue
        raise SkipTest(
            f"none of the guessed arguments {_GUESSES!r} makes a processor: give `arguments` in a "
            "subclass of LogitsProcessorConformance"
        )

    def _request_params(self, label: str) -> dict[str, object]:
        arguments = next(value for value in self._valid_arguments() if repr(value) == label)
        if arguments is None and self._is_always_on():
            return {}
        return {"extra_args": {self._spec().name: arguments}}

    def _require_engine(self) -> None:
        try:
            SamplingParams(extra_args={"name": None})
        except SamplingParamsError as error:
            raise SkipTest(f"this engine takes no extra_args: {error}") from error

    def _call(
        self,
        made: LogitsProcessor,
        prompt: Sequence[int],
        output: Sequence[int],
        logits: Tensor,
        label: str,
    ) -> Tensor:
        """One call on a copy, or on the row of a batch, with its result checked and detached."""
        is_row = logits._is_view()
        result = made(prompt, output, logits if is_row else logits.clone())
        require(isinstance(result, Tensor), f"{label}: it returned a {type(result).__name__}, not a tensor")
        require(
            result.dtype == torch.float32 and result.shape == logits.shape,
            f"{label}: it returned {result.dtype} {list(result.shape)}, expected torch.float32 {list(logits.shape)}",
        )
        return result.clone()

    def _is_always_on(self) -> bool:
        return self._spec().is_always_on

    def _spec(self) -> LogitsProcessorSpec:
        is_always_on = self.is_always_on
        if type(self).processor is None:
            is_always_on = cast(LogitsProcessorSpec, self._entry(_KIND).spec).is_always_on
        factory = self.wrapped(type(self).processor, _KIND)
        return LogitsProcessorSpec(self.name or "tested", factory, is_always_on)

    def _factory(self) -> LogitsProcessorFactory:
        made = self.make(type(self).processor, _KIND)
        require(
            callable(getattr(made, "for_request", None)),
            f"the factory made a {type(made).__name__}, which has no for_request",
        )
        return cast(LogitsProcessorFactory, made)


def _logits(seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(VOCAB_SIZE, generator=random)
