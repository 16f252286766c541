"""Who records a model's steps, and what becomes of one who does it wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from quire.api.batch import DeviceInfo, ForwardBatch
from quire.api.errors import CaptureError, NumericalError, PluginError
from quire.api.protocols import AttentionBackend, CapturedSteps, CaptureRequest, Model
from quire.api.specs import Registration, StepCaptureSpec
from quire.execution.batch_builder import BatchBuilder, BatchLimits
from quire.execution.capture import Captured, SampleSteps, StepCaptures
from quire.execution.forward import ModelPass, run_head, run_layers

VOCAB = 11
LIMITS = BatchLimits(max_num_seqs=8, max_num_batched_tokens=300, max_model_len=320, block_size=16)
NO_ATTENTION = cast(AttentionBackend, SimpleNamespace(prepare=lambda batch: None))


class Doubling(nn.Module):
    def forward(self, x: Tensor, batch: ForwardBatch) -> Tensor:
        return 2 * x


class Toy(nn.Module):
    """Two layers that double; hidden states are positions and token ids."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Doubling(), Doubling()])

    def embed(self, batch: ForwardBatch) -> Tensor:
        return torch.stack([batch.positions, batch.token_ids], dim=1).double()

    def finish(self, hidden: Tensor) -> Tensor:
        return hidden + 1

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ torch.ones(2, 3, dtype=torch.float64)


class Recorded:
    """Runs the model; `spoil_...` change what comes of it."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.batches: list[ForwardBatch] = []
        self.num_trims = 0
        self.spoil_hidden: Callable[[Tensor], Tensor | None] = lambda hidden: hidden
        self.spoil_logits: Callable[[Tensor], Tensor | None] = lambda logits: logits

    def layers(self, batch: ForwardBatch) -> Tensor | None:
        self.batches.append(batch)
        return self.spoil_hidden(run_layers(self.model, batch))

    def logits(self, hidden: Tensor, batch: ForwardBatch) -> Tensor | None:
        return self.spoil_logits(run_head(self.model, hidden, batch))

    def trim(self) -> None:
        self.num_trims += 1

    def describe(self) -> str:
        return f"{self.num_trims} trims"


class Recording:
    """A step capture whose results are prepared by `change`."""

    def __init__(self, change: Callable[[Recorded], object] = lambda recorded: None) -> None:
        self.change = change
        self.requests: list[CaptureRequest] = []
        self.made: list[Recorded] = []

    def capture(self, request: CaptureRequest) -> CapturedSteps:
        self.requests.append(request)
        self.made.append(Recorded(request.model))
        self.change(self.made[-1])
        return self.made[-1]


def entry(name: str, factory: object, priority: int = 10, refusal: str | None = None) -> Registration:
    spec = StepCaptureSpec(name, factory, lambda device, dtype: refusal, priority)  # type: ignore[arg-type]  # some are wrong
    return Registration(spec, f"{name}-plugin", f"{name}-dist", "1.2")


def record(
    entries: Sequence[Registration],
    model: nn.Module | None = None,
    limits: BatchLimits = LIMITS,
    num_blocks: int = 64,
) -> Captured:
    builder = BatchBuilder(limits, torch.device("cpu"))
    samples = SampleSteps(builder, limits, num_blocks, NO_ATTENTION, VOCAB)
    captures = StepCaptures(entries, lambda factory, _: factory, DeviceInfo("cpu"), "float64")
    return captures.record(cast(Model, model or Toy()), samples, limits)


def recorded_by(capture: Recording, **keywords: object) -> Captured:
    return record([entry("mine", lambda: capture)], **keywords)  # type: ignore[arg-type]  # keywords of record


def test_none_serves() -> None:
    assert record([]) == Captured(None, "call by call (no step capture is installed)")
    entries = [entry("a", Recording, refusal="it is too cold"), entry("b", Recording, 20, refusal="no")]
    assert record(entries) == Captured(None, "call by call (b: no; a: it is too cold)")


def test_the_best_that_serves_is_asked() -> None:
    best, other = Recording(), Recording()
    entries = [
        entry("other", lambda: other, 5),
        entry("best", lambda: best, 7),
        entry("none", Recording, 9, refusal="no"),
    ]
    captured = record(entries)
    assert captured.summary == "replayed by best: 1 trims" and captured.steps is best.made[0]
    assert len(best.requests) == 1 and not other.requests


def test_what_it_is_asked() -> None:
    capture = Recording()
    recorded_by(capture, limits=BatchLimits(3, 100, 50, 16, max_drafts=4), num_blocks=3)
    request = capture.requests[0]
    assert (request.max_num_seqs, request.max_tokens, request.max_rows) == (3, 100, 15)
    assert request.max_context == 48
    with torch.inference_mode():
        batch = request.sample([(1, 9), (20, 30)])
    assert batch.query_lens == [1, 20] and batch.context_lens == [9, 30] and batch.num_decode_rows == 1
    assert batch.positions.tolist() == [8, *range(10, 30)] and batch.logits_rows.tolist() == [0, 20]
    assert batch.slot_mapping.tolist() == [8, *range(16 + 10, 16 + 30)]
    assert int(batch.token_ids.min()) >= 0 and int(batch.token_ids.max()) < VOCAB


def compared(limits: BatchLimits = LIMITS, num_blocks: int = 64) -> list[list[tuple[int, int]]]:
    """The rows of the steps that are compared."""
    capture = Recording()
    recorded_by(capture, limits=limits, num_blocks=num_blocks)
    batches = capture.made[0].batches
    return [list(zip(batch.query_lens, batch.context_lens, strict=True)) for batch in batches]


def test_what_is_compared() -> None:
    steps = compared()
    assert [(1, 33)] in steps and [(21, 21)] in steps
    assert any(len(rows) == LIMITS.max_num_seqs for rows in steps)
    assert any({min(n, 2) for n, _ in rows} == {1, 2} for rows in steps), "no prompt beside decodes"


@pytest.mark.parametrize(
    ("limits", "num_blocks"),
    [
        (BatchLimits(1, 300, 320, 16), 64),
        (BatchLimits(8, 5, 320, 16), 64),
        (BatchLimits(8, 300, 7, 4), 64),
        (BatchLimits(8, 300, 320, 16), 1),
        (BatchLimits(1, 1, 1, 1), 1),
    ],
    ids=["one request", "few tokens", "short contexts", "one block", "one of all"],
)
def test_samples_are_cut_to_small_limits(limits: BatchLimits, num_blocks: int) -> None:
    steps = compared(limits, num_blocks)
    longest = min(limits.max_model_len, num_blocks * limits.block_size)
    assert len(steps) == len(compared())
    for rows in steps:
        assert 0 < len(rows) <= limits.max_num_seqs
        assert sum(tokens for tokens, _ in rows) <= limits.max_num_batched_tokens
        assert all(1 <= tokens <= context <= longest for tokens, context in rows)
        assert sum(-(-context // limits.block_size) for _, context in rows) <= num_blocks
    most = min(longest, limits.max_num_batched_tokens, 21)
    assert any(tokens >= most for rows in steps for tokens, _ in rows), "no prompt is compared"


def next_bits(x: Tensor) -> Tensor:
    """The same, but for the last bit of the last number."""
    x = x.clone()
    x.view(torch.int64)[-1, -1] ^= 1
    return x


def spoiled(part: str, change: Callable[[Tensor], Tensor | None]) -> Recording:
    return Recording(lambda recorded: setattr(recorded, f"spoil_{part}", change))


@pytest.mark.parametrize("change", [next_bits, lambda x: x[:-1], lambda x: x.float()])
def test_one_wrong_bit_is_one_too_many(change: Callable[[Tensor], Tensor]) -> None:
    for part, name in (("hidden", "hidden states"), ("logits", "logits")):
        captured = recorded_by(spoiled(part, change))
        assert captured == Captured(
            None, f"call by call (mine: {name} of a replayed step of 1 rows differ from the model's own)"
        )


def test_a_late_difference_is_found() -> None:
    def wrong_of_many(hidden: Tensor) -> Tensor:
        return next_bits(hidden) if len(hidden) > 100 else hidden

    assert (
        "hidden states of a replayed step of 2 rows" in recorded_by(spoiled("hidden", wrong_of_many)).summary
    )


def test_zeros_of_another_sign_differ() -> None:
    assert recorded_by(spoiled("hidden", lambda x: torch.where(x == 0, -0.0, x))).steps is None


def test_nan_is_equal_to_itself() -> None:
    class Undefined(Toy):
        def finish(self, hidden: Tensor) -> Tensor:
            return hidden * float("nan")

    assert recorded_by(Recording(), model=Undefined()).steps is not None


def test_parts_that_are_not_recorded_are_run() -> None:
    for part in ("hidden", "logits"):
        captured = recorded_by(spoiled(part, lambda _: None))
        assert captured.steps is not None
        batch = SampleSteps(BatchBuilder(LIMITS, torch.device("cpu")), LIMITS, 64, NO_ATTENTION, VOCAB)(
            [(3, 9)]
        )
        model = Toy()
        model_pass = ModelPass(cast(Model, model), captured.steps)
        hidden = model_pass.layers(batch)
        assert hidden.equal(run_layers(cast(Model, model), batch))
        assert model_pass.logits(hidden, batch).equal(run_head(cast(Model, model), hidden, batch))


def raises(error: Exception) -> Callable[[Recorded], object]:
    def change(recorded: Recorded) -> object:
        raise error

    return change


def test_what_cannot_be_captured_is_run_call_by_call() -> None:
    captured = recorded_by(Recording(raises(CaptureError("torch's sort cannot be recorded"))))
    assert captured == Captured(None, "call by call (mine: torch's sort cannot be recorded)")


def test_other_failures_name_the_plugin() -> None:
    with pytest.raises(PluginError, match=r"'mine' of mine-plugin \(mine-dist 1.2\) raised KeyError: 3"):
        recorded_by(Recording(raises(KeyError(3))))
    with pytest.raises(NumericalError, match="not finite"):
        recorded_by(Recording(raises(NumericalError("not finite"))))


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda: object(), "its factory gave <object object"),
        (lambda: None, "its factory gave None, expected a StepCapture"),
        ("no factory", "its factory gave None"),
        (lambda: 1 // 0, "its factory raised ZeroDivisionError: "),
    ],
)
def test_wrong_factories_are_named(factory: object, message: str) -> None:
    with pytest.raises(PluginError, match=message) as caught:
        record([entry("mine", factory)])
    assert "the step capture 'mine' of mine-plugin (mine-dist 1.2): " in str(caught.value)


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_modules_with_hooks_are_not_recorded(register: str) -> None:
    model, capture = Toy(), Recording()
    handle = getattr(model.layers[1], register)(lambda *_: None)
    captured = recorded_by(capture, model=model)
    assert "(mine: layers.1 has forward hooks, which a" in captured.summary and not capture.requests
    handle.remove()
    assert recorded_by(capture, model=model).steps is not None


def test_hooks_of_all_modules_count() -> None:
    handle = register_module_forward_hook(lambda *_: None)
    try:
        assert "the model has forward hooks" in recorded_by(Recording()).summary
    finally:
        handle.remove()
    assert recorded_by(Recording()).steps is not None


def test_a_forward_put_over_a_layer_s_own_is_not_recorded() -> None:
    model = Toy()
    layer, seen = model.layers[0], []
    own = layer.forward

    def watched(x: Tensor, batch: ForwardBatch) -> Tensor:
        seen.append(len(x))
        return cast(Tensor, own(x, batch))

    layer.forward = watched  # type: ignore[method-assign]  # what plugins do
    assert recorded_by(Recording(), model=model).summary == (
        "call by call (mine: layers.0 has a forward put over its class's, which a replayed step would not call)"
    )
