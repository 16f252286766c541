"""Recorded calls that become one give the same bits, and only those become one that may."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from quire.api.batch import DeviceInfo
from quire.ops.linear import pack_panels
from quire_kernels.native import bfloat16

REFUSAL = bfloat16.vectors_refusal(DeviceInfo("cpu"), "bfloat16")
if REFUSAL is not None:
    pytest.skip(REFUSAL, allow_module_level=True)

from quire_kernels.layer_norm.native import add_layer_norm  # noqa: E402  # skipped above where there are no kernels
from quire_kernels.linear.native import NativeLinear  # noqa: E402  # it binds the library when imported
from quire_kernels.replay.fusion import fuse  # noqa: E402  # skipped above where there are no kernels
from quire_kernels.replay.program import Program  # noqa: E402  # skipped above where there are no kernels
from quire_kernels.replay.recorder import Recorder  # noqa: E402  # skipped above where there are no kernels
from quire_kernels.rms_norm.native import add_rms_norm  # noqa: E402  # skipped above where there are no kernels
from quire_kernels.silu_and_mul.native import silu_and_mul  # noqa: E402  # skipped above where there are no kernels

SIZE, WIDE = 96, 160
TOKENS = (1, 2, 17, 64, 129, 600)
LIMITS = range(bfloat16.VECTORS, bfloat16.instructions() + 1)


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


def kernels_of(run: Callable[[Tensor], Tensor]) -> list[str]:
    """The fused calls, by their kernels."""
    x = torch.randn(13, SIZE).bfloat16()
    recorder = Recorder(13, given=x)
    with torch.inference_mode(), recorder:
        result = recorder.find(run(x).data_ptr())
    assert result is not None
    return [call.kernel.name for call in fuse(recorder.calls, recorder.buffers, (), result).calls]


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


def test_a_second_sum_stays() -> None:
    linear = NativeLinear()
    weights = [weight(SIZE, SIZE) for _ in range(3)]

    def run(x: Tensor) -> Tensor:
        first, second, third = (linear(x, each, None, SIZE) for each in weights)
        return (third + first) + second

    check(run, 4)


NORMS: dict[str, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "rms_norm": lambda x, residual, factor: add_rms_norm(x, residual, factor, 1e-5),
    "layer_norm": lambda x, residual, factor: add_layer_norm(x, residual, factor, None, 1e-5),
    "layer_norm with bias": lambda x, residual, factor: add_layer_norm(x, residual, factor, factor, 1e-5),
}


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("outputs", [SIZE, 70])
@pytest.mark.parametrize("is_swapped", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_a_normed_sum_after_a_layer(limit: int, outputs: int, is_swapped: bool, norm: str) -> None:
    """The layer does the sum, so that a norm of it is left: as many calls as of a sum and a norm."""
    linear, factor = NativeLinear(limit), torch.randn(outputs).bfloat16()
    first, second = weight(outputs, SIZE), weight(outputs, SIZE)

    def run(x: Tensor) -> Tensor:
        stream, more = linear(x, first, None, outputs), linear(x, second, factor, outputs)
        pair = (stream, more) if is_swapped else (more, stream)
        normed, total = NORMS[norm](*pair, factor)
        return normed * total

    assert kernels_of(run) == ["linear", "linear", norm.removesuffix(" with bias"), "combine"]
    check(run, 4)


def test_a_normed_sum_that_is_not_of_a_layer_alone() -> None:
    linear, square, factor = NativeLinear(), weight(SIZE, SIZE), torch.randn(SIZE).bfloat16()

    def twice(x: Tensor) -> Tensor:
        y = linear(x, square, None, SIZE)
        return add_rms_norm(y, y, factor, 1e-5)[0]

    check(twice, 2)

    def read_again(x: Tensor) -> Tensor:
        y, z = linear(x, square, None, SIZE), linear(x, square, factor, SIZE)
        return add_rms_norm(z, y, factor, 1e-5)[0] + z

    check(read_again, 4)

    def of_columns(x: Tensor) -> Tensor:
        wide = torch.cat([linear(x, square, factor, SIZE), x], dim=1)
        return add_rms_norm(linear(x, square, None, SIZE), wide[:, SIZE:], factor, 1e-5)[0]

    check(of_columns, 5)


@pytest.mark.parametrize("norm", NORMS)
def test_a_normed_sum_that_begins_a_layer(norm: str) -> None:
    """Its sum is done by the last linear of the layer before; the norm stays where the layer begins."""
    linear, square, factor = NativeLinear(), weight(SIZE, SIZE), torch.randn(SIZE).bfloat16()
    x = torch.randn(13, SIZE).bfloat16()
    recorder = Recorder(13, given=x)
    with torch.inference_mode(), recorder:
        stream = linear(x, square, None, SIZE)
        added = linear(stream, square, None, SIZE)
        mark = len(recorder.calls)
        normed, total = NORMS[norm](stream, added, factor)
        result = recorder.find((normed * total).data_ptr())
    assert result is not None
    fused = fuse(recorder.calls, recorder.buffers, [mark], result)
    kernel = norm.removesuffix(" with bias")
    assert [call.kernel.name for call in fused.calls] == ["linear", "linear", kernel, "combine"]
    assert fused.marks == [2] and not fused.calls[2].arguments.residual
