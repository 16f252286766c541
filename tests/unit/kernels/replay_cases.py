"""What the tests of recorded steps share: a model of native calls in float32, and steps for it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from quire.api.batch import DeviceInfo, ForwardBatch
from quire.api.specs import Registration, StepCaptureSpec
from quire.execution.batch_builder import BatchBuilder, BatchLimits
from quire.execution.capture import Captured, SampleSteps, StepCaptures
from quire_kernels.native.kernel import Kernel
from quire_kernels.paged_attention.native import NativePagedAttention
from quire_kernels.replay.capture import NativeCapture
from quire_kernels.replay.program import Program
from quire_kernels.replay.recorder import Recorder
from quire_kernels.rms_norm.native import rms_norm
from quire_kernels.silu_and_mul.native import silu_and_mul

NUM_TOKENS = 13
VOCAB, SIZE = 29, 24
LIMITS = BatchLimits(max_num_seqs=8, max_num_batched_tokens=300, max_model_len=320, block_size=16)
NUM_BLOCKS = 64
CPU = DeviceInfo("cpu")

Rows = Sequence[tuple[int, int]]
Forward = Callable[[Tensor, ForwardBatch], Tensor]


def record(run: Callable[[], Tensor], num_tokens: int = NUM_TOKENS, max_tokens: int = 64) -> Program:
    """A program of one layer of what `run` does."""
    recorder = Recorder(num_tokens)
    with torch.inference_mode(), recorder:
        result = run()
    return Program(recorder, result, (), max_tokens)


def failing_kernel(answer: Callable[[], int]) -> Kernel:
    """`gather`, but each thread of a team calls `answer` instead; keeps it alive."""
    from quire_kernels.embedding.native import gather as real

    kernel = Kernel.__new__(Kernel)
    kernel.name, kernel._function = real.name, real._function
    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(lambda _: answer())
    kernel.team = cast(int, ctypes.cast(callback, ctypes.c_void_p).value)
    kernel.callback = callback  # type: ignore[attr-defined]  # kept as long as the kernel
    return kernel


class NativeLayer(nn.Module):
    """x + norm(x) * a row of a table by position."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(SIZE), requires_grad=False)
        self.scales = torch.randn(LIMITS.max_model_len, SIZE)

    def forward(self, x: Tensor, batch: ForwardBatch) -> Tensor:
        """[T, E] to [T, E]."""
        return x + rms_norm(x, self.weight, 1e-5) * self.scales[batch.positions]


class ExtraLayer(nn.Module):
    """A layer that does what it is given."""

    def __init__(self, run: Forward) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor, batch: ForwardBatch) -> Tensor:
        """[T, E] to [T, E]."""
        return self.run(x, batch)


class NativeModel(nn.Module):
    """Embedding, two layers, what `extra` does, a norm; logits of half the size."""

    def __init__(self, extra: Forward | None = None) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(VOCAB, SIZE), requires_grad=False)
        more = [] if extra is None else [ExtraLayer(extra)]
        self.layers = nn.ModuleList([NativeLayer(), *more, NativeLayer()])
        self.weight = nn.Parameter(torch.randn(SIZE), requires_grad=False)

    def embed(self, batch: ForwardBatch) -> Tensor:
        """[T, E]."""
        return self.table[batch.token_ids]

    def finish(self, hidden: Tensor) -> Tensor:
        """[L, E] to [L, E]."""
        return rms_norm(hidden, self.weight, 1e-5)

    def logits(self, hidden: Tensor) -> Tensor:
        """[L, E] to [L, E / 2]."""
        return silu_and_mul(hidden)


def make_samples(limits: BatchLimits = LIMITS, num_blocks: int = NUM_BLOCKS) -> SampleSteps:
    """Steps of native-paged attention, which models here need not have."""
    builder = BatchBuilder(limits, torch.device("cpu"))
    return SampleSteps(builder, limits, num_blocks, NativePagedAttention(), VOCAB)


def capture(model: nn.Module, limits: BatchLimits = LIMITS, samples: SampleSteps | None = None) -> Captured:
    """Let native-replay record a model, as an engine does."""
    spec = StepCaptureSpec("native-replay", NativeCapture, lambda device, dtype: None)
    known = [Registration(spec, "native-kernels", "quire-kernels", "0")]
    captures = StepCaptures(known, lambda reference, entry: reference, CPU, "float32")
    with torch.inference_mode():
        return captures.record(model, samples or make_samples(limits), limits)  # type: ignore[arg-type]  # a Model
