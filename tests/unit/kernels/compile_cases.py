"""What the tests of compiled models share: a loaded model, its opaque calls, and steps for it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from quire.api.config import PluginSettings
from quire.api.protocols import AttentionBackend, Model, ModelFactory
from quire.execution.batch_builder import BatchBuilder, BatchLimits
from quire.execution.capture import Captured, SampleSteps, StepCaptures
from quire.execution.compiled import Compiled, CompiledModel, compile_model
from quire.execution.device import detect_device
from quire.execution.forward import run_head, run_layers
from quire.execution.model_builder import BuildSettings, build_model
from quire.execution.opaque import OpaqueCalls
from quire.loading.checkpoint import open_checkpoint
from quire.loading.hf_config import architectures_of, read_hf_config
from quire.loading.weight_map import load_weights
from quire.ops.backend_choice import BackendRequest, choose_attention_backend
from quire.ops.table import OpTable
from quire.plugins import PluginHost, resolve_factory
from quire.testing import tiny_models

LIMITS = BatchLimits(max_num_seqs=8, max_num_batched_tokens=48, max_model_len=64, block_size=4)
NUM_BLOCKS = 64
MODELS: dict[str, tuple[Callable[..., Path], Mapping[str, object]]] = {
    "llama": (tiny_models.write_tiny_llama, {"attention_bias": True, "mlp_bias": True}),
    "mistral": (tiny_models.write_tiny_mistral, {"sliding_window": 7}),
    "qwen2": (tiny_models.write_tiny_qwen2, {}),
    "qwen3": (tiny_models.write_tiny_qwen3, {}),
    "gpt2": (tiny_models.write_tiny_gpt2, {}),
    "mpt": (tiny_models.write_tiny_mpt, {"attn_config": {"clip_qkv": 1.0}, "logit_scale": 0.3}),
}
WARM_UP = ([(13, 13)], [(1, 5)], [(1, 9), (20, 30), (3, 3)])

Rows = Sequence[tuple[int, int]]


@dataclass
class Rig:
    """A loaded model in float32 whose layers are opaque to torch.compile."""

    model: Model
    calls: OpaqueCalls
    samples: SampleSteps

    def compile(self, backend: Any = "eager", warm_up: Sequence[Rows] = WARM_UP) -> Compiled:
        """As an engine does."""
        with torch.inference_mode():
            return compile_model(self.model, self.calls, map(self.samples, warm_up), backend)

    def compiled(self, backend: Any = "eager") -> CompiledModel:
        """Fails where it was not."""
        found = self.compile(backend)
        assert isinstance(found.model, CompiledModel), found.summary
        return found.model

    def record(self, captures: StepCaptures) -> Captured:
        """Compile, and record what can be, as an engine does."""
        with torch.inference_mode():
            return captures.record(self.model, self.samples, LIMITS)

    def assert_equal(self, compiled: Model, rows: Rows) -> None:
        """Hidden states and logits of a step, compiled and call by call, but for roundings."""
        with torch.inference_mode():
            batch = self.samples(rows)
            found = run_layers(compiled, batch).clone()
            expected = run_layers(self.model, batch)
            assert expected.isfinite().all() and expected.shape[0] == sum(count for count, _ in rows)
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
            logits: tuple[Tensor, Tensor] = (
                run_head(compiled, found, batch),
                run_head(self.model, expected, batch),
            )
            torch.testing.assert_close(*logits, atol=2e-5, rtol=1e-4)


def make_rig(
    folder: Path,
    *,
    is_native: bool = True,
    backend: AttentionBackend | None = None,
    change: Callable[[Any], object] = lambda model: None,
) -> Rig:
    """Build and load a model, as an engine does that is to compile it.

    Args:
        folder: of the model.
        is_native: whether native kernels serve; else references do.
        backend: of attention, if not the best.
        change: what a test does to the model.
    """
    settings = PluginSettings(deny=("triton-kernels",) if is_native else ("native-kernels", "triton-kernels"))
    host, device = PluginHost.discover(settings), detect_device("cpu")
    hf_config = read_hf_config(folder)
    (architecture,) = architectures_of(hf_config)
    registration = host.models.registration(architecture)
    factory = cast(ModelFactory, resolve_factory(host.models.spec(architecture).factory, registration))
    ops = OpTable(
        [*host.ops.registrations(), *host.op_impls.registrations()], device, "float32", resolve_factory
    )
    if backend is None:
        registrations = host.attention_backends.registrations()
        backend = choose_attention_backend(registrations, BackendRequest(device, "float32"), resolve_factory)
    calls = OpaqueCalls(ops, backend)
    built = build_model(
        factory,
        factory.parse_config(hf_config),
        BuildSettings("float32", device, ops, backend, LIMITS.max_model_len, opaque=calls),
        partial(load_weights, checkpoint=open_checkpoint(folder), progress=lambda done, total: None),
    )
    built.allocate_kv_caches(NUM_BLOCKS, LIMITS.block_size)
    change(built.model)
    builder = BatchBuilder(LIMITS, torch.device("cpu"))
    return Rig(built.model, calls, SampleSteps(builder, LIMITS, NUM_BLOCKS, backend, built.vocab_size))


def write_model(name: str, folder: Path) -> Path:
    """A tiny random model of an architecture."""
    write, fields = MODELS[name]
    return write(folder, **fields)


def every_size(most: int = LIMITS.max_num_seqs) -> Iterator[Rows]:
    """Decodes of 1 to `most` requests, prompts of many lengths, and prompts beside decodes."""
    draw = random.Random(0)
    for count in range(1, most + 1):
        yield [(1, draw.randint(1, 24)) for _ in range(count)]
    for length in (2, 3, 8, 16, 31, 48):
        yield [(length, length)]
    for count in range(1, most):
        rows = [(1, draw.randint(1, 20)) for _ in range(count)]
        yield [*rows, (draw.randint(2, 20), 30), (5, 5)][: LIMITS.max_num_seqs]
