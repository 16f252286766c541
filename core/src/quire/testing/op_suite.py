"""The suite of ops: an implementation against the op's reference, and both against the op's schema."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, cast
from unittest import SkipTest

import torch
from torch import Tensor
from torch.utils import deterministic

from quire.api.batch import DTypeName
from quire.api.specs import FactoryRef, OpSpec
from quire.plugins import resolve_factory
from quire.testing.conformance import Conformance, ConformanceError, require
from quire.testing.op_cases import OpCase, OpSchema, core_cases, generic_cases, parse_schema

_RTOL: dict[str, float] = {"float64": 1e-9, "float32": 1e-5, "float16": 4e-3, "bfloat16": 2e-2}
_Op = Callable[..., Any]


class OpConformance(Conformance):
    """An op's implementation (or its reference, alone) against what the OpSpec declares.

    In a test file::

        class TestMine(OpConformance):
            spec = OpSpec("rms_norm", "(Tensor x, Tensor weight, float eps) -> Tensor", "quire.ops.norm:rms_norm")
            implementation = "mine.norm:rms_norm"  # None tests the reference
            dtypes = ("float32", "bfloat16")       # those that `supports` accepts

    Calls are known for core's ops and can be made for ops of one tensor; for others override `cases`. The
    schema is taken at its word: "Tensor(a!)" is written and given back, anything else stays as it was.
    `core_spec(name)` gives the spec of one of core's ops.
    """

    spec: ClassVar[OpSpec]
    implementation: ClassVar[FactoryRef | None] = None
    dtypes: ClassVar[Sequence[DTypeName]] = ("float32",)

    def cases(self, dtype: torch.dtype) -> Iterable[OpCase]:
        """Calls to try; tensors are cloned (with their strides) for each use."""
        known = core_cases(self.spec.name, dtype)
        if known is not None:
            return known
        if sum(argument.type == "Tensor" for argument in self._schema.arguments) == 1:
            return generic_cases(self._schema, dtype)
        raise SkipTest(
            f"the op {self.spec.name!r} takes several tensors: override `cases` to say how they fit together"
        )

    def test_equals_the_reference(self) -> None:
        """Values, shapes and dtypes, over odd, empty, strided and extreme inputs."""
        reference = self._resolve(self.spec.reference)
        for dtype, case in self._all_cases():
            expected = _as_tuple(reference(*_clone(case)))
            found = _as_tuple(self._op(*_clone(case)))
            self._require_close(found, expected, f"{dtype}, {case.name}", dtype)

    def test_inputs_are_unchanged(self) -> None:
        """What the schema does not mark as written stays as it was, the memory between strided rows too."""
        for dtype, case in self._all_cases():
            arguments = _clone(case)
            before = [_whole(value) for value in arguments]
            self._op(*arguments)
            for declared, old, value in zip(self._schema.arguments, before, arguments, strict=True):
                if not isinstance(value, Tensor) or not isinstance(old, Tensor):
                    continue
                now = _whole(value)
                if declared.is_written and isinstance(now, Tensor):
                    old, now = _outside(old, arguments), _outside(now, arguments)
                require(
                    _same(cast(Tensor, now), old),
                    f"{dtype}, {case.name}: the op changed "
                    + (f"memory around {declared.name!r}" if declared.is_written else repr(declared.name))
                    + f", which the schema {self.spec.schema!r} does not say",
                )

    def test_aliases_as_declared(self) -> None:
        """Results marked as written arguments are those arguments; others share no memory with any."""
        for dtype, case in self._all_cases():
            arguments = _clone(case)
            results = _as_tuple(self._op(*arguments))
            require(
                len(results) == len(self._schema.results),
                f"{dtype}, {case.name}: {len(results)} results, the schema {self.spec.schema!r} says "
                f"{len(self._schema.results)}",
            )
            for declared, result in zip(self._schema.results, results, strict=True):
                self._check_alias(declared.alias, result, arguments, f"{dtype}, {case.name}")

    def test_every_value_is_written(self) -> None:
        """Fresh memory is full of NaN, which must not show in the results."""
        reference = self._resolve(self.spec.reference)
        for dtype, case in self._all_cases():
            expected = _as_tuple(reference(*_clone(case)))
            with _poisoned_memory():
                found = _as_tuple(self._op(*_clone(case)))
            self._require_close(found, expected, f"{dtype}, {case.name}, fresh memory of NaN", dtype)
        self.note("poisoned memory")

    def test_calls_are_independent(self) -> None:
        """The same call gives the same, bit for bit, whatever was called in between, and results last."""
        seen = [
            (dtype, case, [_whole(x) for x in _as_tuple(self._op(*_clone(case)))])
            for dtype, case in self._all_cases()
        ]
        for dtype, case, before in reversed(seen):
            again = [_whole(x) for x in _as_tuple(self._op(*_clone(case)))]
            for old, new in zip(before, again, strict=True):
                require(
                    _same(cast(Tensor, new), cast(Tensor, old)),
                    f"{dtype}, {case.name}: called again, the op gives something else",
                )
            kept = _as_tuple(self._op(*_clone(case)))
            other = _clone(case)
            other[0].floor_divide_(2)  # other values, and indices that are still some
            self._op(*other)
            for old, result in zip(before, kept, strict=True):
                require(
                    _same(cast(Tensor, _whole(result)), cast(Tensor, old)),
                    f"{dtype}, {case.name}: the next call overwrites the result of this one",
                )

    def test_rows_do_not_mix(self) -> None:
        """NaN in one row leaves the others alone, where rows are independent."""
        reference = self._resolve(self.spec.reference)
        tried = 0
        for dtype, case in self._all_cases():
            first = case.arguments[0]
            if not case.is_rowwise or first.shape[0] < 3:
                continue
            tried += 1
            expected = _as_tuple(reference(*_clone(case)))
            arguments = _clone(case)
            arguments[0][1] = float("nan")
            found = _as_tuple(self._op(*arguments))
            keep = [0, *range(2, first.shape[0])]
            self._require_close(
                tuple(x[keep] for x in found),
                tuple(x[keep] for x in expected),
                f"{dtype}, {case.name}, NaN in another row",
                dtype,
            )
        if not tried:
            raise SkipTest("no case says that its rows are independent")

    @property
    def _schema(self) -> OpSchema:
        return self.shared("schema", lambda: parse_schema(self.spec.name, self.spec.schema))

    @property
    def _op(self) -> _Op:
        chosen = type(self).implementation  # not self's, which a function would be bound to
        return self.shared("op", lambda: self._resolve(self.spec.reference if chosen is None else chosen))

    def _resolve(self, reference: FactoryRef) -> _Op:
        found = resolve_factory(reference)
        require(callable(found), f"{reference!r} is a {type(found).__name__}, not a function")
        return cast(_Op, found)

    def _all_cases(self) -> Iterator[tuple[DTypeName, OpCase]]:
        for dtype in self.dtypes:
            for case in self.cases(getattr(torch, dtype)):
                yield dtype, case
            self.note(dtype)

    def _check_alias(self, alias: str, result: Tensor, arguments: Sequence[Any], what: str) -> None:
        for declared, value in zip(self._schema.arguments, arguments, strict=True):
            if not isinstance(value, Tensor):
                continue
            is_same = alias != "" and declared.alias == alias
            if is_same:
                require(
                    result.data_ptr() == value.data_ptr() and result.shape == value.shape,
                    f"{what}: the schema {self.spec.schema!r} gives {declared.name!r} back, the op something else",
                )
            elif value.numel() and not alias:
                require(
                    result.untyped_storage().data_ptr() != value.untyped_storage().data_ptr(),
                    f"{what}: the result shares memory with {declared.name!r}, "
                    f"which the schema {self.spec.schema!r} does not say",
                )

    def _require_close(
        self, found: tuple[Tensor, ...], expected: tuple[Tensor, ...], what: str, dtype: DTypeName
    ) -> None:
        require(
            len(found) == len(expected), f"{what}: {len(found)} results, the reference gives {len(expected)}"
        )
        for result, right in zip(found, expected, strict=True):
            require(isinstance(result, Tensor), f"{what}: the result is a {type(result).__name__}")
            require(
                result.shape == right.shape and result.dtype == right.dtype,
                f"{what}: the result is {result.dtype} {list(result.shape)}, the reference's {right.dtype} "
                f"{list(right.shape)}",
            )
            try:
                torch.testing.assert_close(
                    result, right, rtol=_RTOL[dtype], atol=_RTOL[dtype] * 0.1, equal_nan=True
                )
            except AssertionError as error:
                lines = [
                    line for line in str(error).splitlines() if "difference" in line or "Mismatch" in line
                ]
                raise ConformanceError(
                    f"{what}: differs from the reference: {'; '.join(lines) or error}"
                ) from error


def core_spec(name: str) -> OpSpec:
    """The spec of one of core's ops."""
    from quire.ops.specs import core_op_specs

    return next(spec for spec in core_op_specs() if spec.name == name)


@contextmanager
def _poisoned_memory() -> Iterator[None]:
    """torch.empty and the like give NaN."""
    settings = cast(Any, deterministic)  # a module with properties, which type checkers do not see
    before, fills = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    settings.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
        settings.fill_uninitialized_memory = fills


def _as_tuple(result: object) -> tuple[Tensor, ...]:
    return tuple(result) if isinstance(result, tuple | list) else (cast(Tensor, result),)


def _clone(case: OpCase) -> list[Any]:
    """The arguments over copies of their memory, views of one tensor staying so."""
    copies: dict[int, Tensor] = {}
    cloned: list[Any] = []
    for value in case.arguments:
        if not isinstance(value, Tensor):
            cloned.append(value)
            continue
        storage = value.untyped_storage()
        flat = copies.setdefault(storage.data_ptr(), _whole_memory(value)) if value.numel() else value
        view = (
            flat.as_strided(value.shape, value.stride(), value.storage_offset()) if value.numel() else value
        )
        cloned.append(view)
    return cloned


def _whole_memory(value: Tensor) -> Tensor:
    count = value.untyped_storage().nbytes() // value.element_size()
    return value.as_strided((count,), (1,), 0).clone()


def _whole(value: object) -> object:
    """A copy of all memory behind a tensor, what lies between its rows included."""
    return _whole_memory(value) if isinstance(value, Tensor) and value.numel() else value


def _outside(memory: Tensor, arguments: Sequence[Any]) -> Tensor:
    """Memory with all argument views of that size overwritten by zeros: what is left around them."""
    memory = memory.clone()
    for value in arguments:
        if isinstance(value, Tensor) and value.numel():
            count = value.untyped_storage().nbytes() // value.element_size()
            if memory.dim() == 1 and count == memory.numel():
                memory.as_strided(value.shape, value.stride(), value.storage_offset()).zero_()
    return memory


def _same(found: Tensor, expected: Tensor) -> bool:
    if found.is_floating_point() and found.element_size() == 1:  # torch cannot compare 8-bit floats
        found, expected = found.view(torch.uint8), expected.view(torch.uint8)
    return torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0))
