"""Recorded calls that become one give the same bits, and only those become one that may."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from quire.api.batch import DeviceInfo
from quire.ops.linear import pack_panels
from quire_kernels.native import bfloat16

REFUSAL = bfloat16.bfloat16_refusal(DeviceInfo("cpu"), "bfloat16")
if REFUSAL is not None:
    pytest.skip(REFUSAL, allow_module_level=True)

from quire_kernels.linear.native import NativeLinear  # noqa: E402  # it binds the library when imported
from quire_kernels.replay.program import Program  # noqa: E402
from quire_kernels.replay.recorder import Recorder  # noqa: E402
from quire_kernels.silu_and_mul.native import silu_and_mul  # noqa: E402

SIZE, WIDE = 96, 160
TOKENS = (1, 2, 17, 64, 129, 600)
LIMITS = range(bfloat16.DOT_PRODUCTS, bfloat16.instructions() + 1)


@pytest.fixture(params=[1, 3], ids=["1 thread", "3 threads"], autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def weight(outputs: int, inputs: int) -> Tensor:
    return pack_panels((torch.randn(outputs, inputs) * 0.2).bfloat16())


def record(run: Callable[[Tensor], Tensor]) -> Program:
    x = torch.randn(13, SIZE).bfloat16()
    with torch.inference_mode():
        recorder = Recorder(13, given=x)
        with recorder:
            result = run(x)
        return Program(recorder, result, (), 1000)


def check(run: Callable[[Tensor], Tensor], num_calls: int) -> None:
    program = record(run)
    assert program.num_calls == num_calls
    for count in TOKENS:
        x = torch.randn(count, SIZE).bfloat16()
        with torch.inference_mode():
            assert torch.equal(program.run(count, given=x), run(x)), f"{count} tokens"


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_gated_layer(limit: int, has_bias: bool) -> None:
    linear, panels = NativeLinear(limit), weight(2 * WIDE, SIZE)
    bias = torch.randn(2 * WIDE).bfloat16() if has_bias else None
    check(lambda x: silu_and_mul(linear(x, panels, bias, 2 * WIDE)), 1)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("outputs", [SIZE, 70])
@pytest.mark.parametrize("is_swapped", [False, True])
def test_a_sum_after_a_layer(limit: int, outputs: int, is_swapped: bool) -> None:
    linear = NativeLinear(limit)
    first, second = weight(outputs, SIZE), weight(outputs, SIZE)
    bias = torch.randn(outputs).bfloat16()

    def run(x: Tensor) -> Tensor:
        stream = linear(x, first, None, outputs)
        more = linear(x, second, bias, outputs)
        return more + stream if is_swapped else stream + more

    check(run, 2)


@pytest.mark.parametrize("limit", LIMITS)
def test_deep_inputs(limit: int) -> None:
    linear = NativeLinear(limit)
    up, down = weight(4 * 512, SIZE), weight(SIZE, 1024)
    check(lambda x: x_plus(linear, silu_and_mul(linear(x, up, None, 2048)), down, x), 3)


def x_plus(linear: NativeLinear, hidden: Tensor, down: Tensor, x: Tensor) -> Tensor:
    stream = linear(hidden, down, None, SIZE)
    return stream + linear(hidden, down, None, SIZE)


def test_halves_that_are_no_whole_panels_stay_apart() -> None:
    linear, panels = NativeLinear(), weight(2 * 80, SIZE)
    check(lambda x: silu_and_mul(linear(x, panels, None, 160)), 2)


def test_outputs_that_are_read_twice_stay() -> None:
    linear, panels, square = NativeLinear(), weight(2 * WIDE, SIZE), weight(SIZE, SIZE)
    back = weight(WIDE, 2 * WIDE)

    def gated(x: Tensor) -> Tensor:
        both = linear(x, panels, None, 2 * WIDE)
        active = silu_and_mul(both)
        return active + linear(both, back, None, WIDE)

    check(gated, 3)

    def doubled(x: Tensor) -> Tensor:
        y = linear(x, square, None, SIZE)
        return y + y

    check(doubled, 2)

    def summed(x: Tensor) -> Tensor:
        y = linear(x, square, None, SIZE)
        z = linear(x, square, None, SIZE)
        return (y + z) + z

    check(summed, 4)


def test_a_result_is_not_replaced() -> None:
    linear, square = NativeLinear(), weight(SIZE, SIZE)

    def run(x: Tensor) -> Tensor:
        y = linear(x, square, None, SIZE)
        _ = silu_and_mul(y)
        return y

    check(run, 2)


def test_a_product_is_no_sum() -> None:
    linear, square = NativeLinear(), weight(SIZE, SIZE)
    check(lambda x: linear(x, square, None, SIZE) * linear(x, square, None, SIZE), 3)
