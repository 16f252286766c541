"""What torch does between the ops, recorded with one number of tokens and replayed with others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from quire.api.batch import DeviceInfo
from quire.api.errors import CaptureError
from quire_kernels.native.library import native_refusal

REFUSAL = native_refusal(DeviceInfo("cpu"), "float32")
if REFUSAL is not None:
    pytest.skip(REFUSAL, allow_module_level=True)

from quire_kernels.activation.native import gelu, relu  # noqa: E402  # it binds the library when imported
from quire_kernels.layer_norm.native import layer_norm  # noqa: E402  # likewise
from quire_kernels.replay.program import Program  # noqa: E402  # likewise
from quire_kernels.replay.recorder import Recorder  # noqa: E402  # likewise

NUM_TOKENS, SIZE = 13, 24
DTYPES = [torch.bfloat16, torch.float32]
WEIGHTS = {dtype: torch.linspace(-1, 1, SIZE).to(dtype) for dtype in DTYPES}

Forward = Callable[[Tensor], Tensor]


def record(run: Forward, dtype: torch.dtype = torch.bfloat16) -> Program:
    """A program of `run` after a relu, whose result is a buffer."""
    given = torch.randn(NUM_TOKENS, SIZE, dtype=torch.float64).to(dtype)
    recorder = Recorder(NUM_TOKENS, given=given)
    with torch.inference_mode(), recorder:
        result = run(relu(given))
    return Program(recorder, result, (), 64)


def first_half(x: Tensor) -> Tensor:
    return x.chunk(2, dim=-1)[0]


def clamped(x: Tensor) -> Tensor:
    y = x * 3
    y.clamp_(0.1, 0.7)
    return y


def clamped_below(x: Tensor) -> Tensor:
    y = x * 1
    return y.clamp_(min=0.3)


CASES: dict[str, Forward] = {
    "layer norm": lambda x: layer_norm(x, WEIGHTS[x.dtype], None, 1e-5),
    "layer norm with bias": lambda x: layer_norm(x, WEIGHTS[x.dtype], WEIGHTS[x.dtype], 1e-5),
    "activation of a half": lambda x: gelu(first_half(x)),
    "gated activation": lambda x: gelu(first_half(x)) * x.chunk(2, dim=-1)[1],
    "times a number": lambda x: x * 0.3,
    "a number times": lambda x: 3 * x,
    "a half times a number": lambda x: first_half(x) * 0.3,
    "clamp": clamped,
    "clamp below": clamped_below,
    "rows of heads": lambda x: gelu(first_half(x).unflatten(-1, (3, 4)).reshape(-1, 4)).view(-1, 12),
    "one head of two": lambda x: gelu(first_half(x).contiguous()),
    "reshape without a copy": lambda x: gelu(x.reshape(-1, 6)).reshape(-1, SIZE),
    "columns beside each other": lambda x: torch.cat([first_half(x), x, gelu(x)], dim=-1),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_replayed_with_other_numbers_of_tokens(name: str, dtype: torch.dtype) -> None:
    """Bit by bit what the calls give, in memory that was full of NaN."""
    torch.manual_seed(0)
    run = CASES[name]
    program = record(run, dtype)
    for num_tokens in (1, 5, 40, 13):
        x = (2 * torch.randn(num_tokens, SIZE)).to(dtype)
        program._arena.fill_(255)
        found = program.run(num_tokens, given=x).clone()
        assert found.equal(run(relu(x)))


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (lambda x: x + 1, "a sum or product of torch.bfloat16"),
        (lambda x: x * x[:, :1], "a sum or product of torch.bfloat16"),
        (lambda x: x.t().contiguous(), "a copy of torch.bfloat16"),
        (lambda x: x.t().reshape(-1), "a copy of torch.bfloat16"),
        (lambda x: x.contiguous(memory_format=torch.channels_last), "a copy with"),
        (lambda x: x.t() * 2, "arithmetic on torch.bfloat16"),
        (lambda x: torch.cat([x, x]), "cat along 0"),
        (lambda x: torch.cat([x, torch.empty(NUM_TOKENS, 2)], dim=1), "cat along 1"),
        (lambda x: x.sin(), "torch's aten.sin.default"),
        (lambda x: x.clamp(0.0, 1.0), "torch's aten.clamp.default"),
    ],
)
def test_everything_else_is_refused_by_name(run: Forward, reason: str) -> None:
    with pytest.raises(CaptureError) as raised:
        record(run)
    assert reason in str(raised.value)
    assert str(raised.value).endswith(f" cannot be recorded (in {__name__}.<lambda>)")
