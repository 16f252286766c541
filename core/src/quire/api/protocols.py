"""What plugins implement, and what core gives them. Types only; torch is not imported at run time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from quire.api.attention import AttentionBackend, AttentionParams
from quire.api.batch import DeviceInfo, DTypeName, ForwardBatch
from quire.api.step import StepPlan, StepResult

if TYPE_CHECKING:
    import argparse

    from torch import Tensor, nn

    from quire.api.specs import WeightMap

__all__ = [
    "AttentionBackend",
    "AttentionParams",
    "BuildContext",
    "CaptureRequest",
    "CapturedSteps",
    "Command",
    "Executor",
    "Model",
    "ModelConfig",
    "ModelFactory",
    "Ops",
    "PendingStep",
    "StepCapture",
    "TokenizerLike",
]


class Ops(Protocol):
    """The op table as models see it: each attribute is the implementation bound for this device and dtype."""

    def __getattr__(self, name: str) -> Callable[..., Tensor]:
        """The op called `name`; raises PluginError (an AttributeError too) naming the registered ones."""
        ...


class BuildContext(Protocol):
    """What a model is built with. Model code asks nothing else of its surroundings.

    Attributes:
        dtype: the model's dtype, by name. device: where it runs. ops: the op table.
        max_model_len: longest context that will be asked for (rope tables, learned positions).
    """

    dtype: DTypeName
    device: DeviceInfo
    ops: Ops
    max_model_len: int

    def linear(self, in_features: int, parts: Mapping[str, int], *, bias: bool = False) -> nn.Module:
        """A linear layer whose output is the named parts side by side: `parts` maps name to width.

        Call it with [T, in_features]; it gives [T, sum of widths]. Parts are loaded (and, later,
        quantized and sharded) separately and computed in one product.
        """
        ...

    def embedding(self, num_embeddings: int, embedding_dim: int) -> nn.Module:
        """A token embedding: int64 [T] to [T, embedding_dim]."""
        ...

    def lm_head(
        self, in_features: int, vocab_size: int, *, bias: bool = False, tied_to: nn.Module | None = None
    ) -> nn.Module:
        """The output projection: [L, in_features] to [L, vocab_size]; `tied_to` shares an embedding's weight."""
        ...

    def attention(self, params: AttentionParams) -> nn.Module:
        """An attention layer with its KV cache: called with (query, key, value, batch), see AttentionBackend.

        A RotaryEmbedding may follow: it rotates query and key first, where the backend can in the pass that writes.
        """
        ...

    def layers(self, num_layers: int, build: Callable[[int], nn.Module]) -> nn.ModuleList:
        """The decoder layers. `build(i)` makes the i-th; core may skip those that another rank runs."""
        ...


class Model(Protocol):
    """A decoder-only model: an `nn.Module` with `embed`, `layers`, `finish` and `logits`.

    Core computes `x = embed(batch)`, then `x = layer(x, batch)` for each of `layers`, selects the
    rows whose logits are needed, and gives them to `finish` and `logits`. What a layer gives to the next one is
    the model's own business (`quire.nn.norm.Stream`, for one); the last one gives [T, E].
    """

    layers: nn.ModuleList

    def embed(self, batch: ForwardBatch) -> Tensor:
        """Token (and position) embeddings: [T, E]."""
        ...

    def finish(self, hidden: Tensor) -> Tensor:
        """The final norm: [L, E] to [L, E]."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """[L, E] to [L, V]."""
        ...


@dataclass(slots=True, frozen=True)
class CaptureRequest:
    """What a StepCapture is given.

    Attributes:
        model: loaded, with its KV caches bound.
        sample: makes a step that nobody asked for, of rows (tokens, context with them), prepared by the attention
            backend, in the buffers of every later step; its tokens are sampled. Valid until the next call.
        max_num_seqs, max_tokens, max_rows: most requests and tokens of a step, and most rows whose logits it asks for.
        max_context: most tokens of a row's context.
        progress: to be called now and then by what runs long.
    """

    model: Model
    sample: Callable[[Sequence[tuple[int, int]]], ForwardBatch]
    max_num_seqs: int
    max_tokens: int
    max_rows: int
    max_context: int
    progress: Callable[[], None]


class CapturedSteps(Protocol):
    """A model's recorded steps. Results are valid until the next call of the same method."""

    def layers(self, batch: ForwardBatch) -> Tensor | None:
        """The hidden states after the last layer, [T, E], the batch's KV written; None: this step is not recorded."""
        ...

    def logits(self, hidden: Tensor, batch: ForwardBatch) -> Tensor | None:
        """Of `batch.logits_rows` of the hidden states [T, E]: [L, V]; None: this step is not recorded."""
        ...

    def trim(self) -> None:
        """Give back memory that large steps have taken; called once, after the first comparisons."""
        ...

    def describe(self) -> str:
        """For the log: what was recorded."""
        ...


@runtime_checkable
class StepCapture(Protocol):
    """Records a model's steps."""

    def capture(self, request: CaptureRequest) -> CapturedSteps:
        """Run the model on samples, and record what it does; CaptureError: that cannot be replayed."""
        ...


class ModelFactory(Protocol):
    """What `ModelSpec.factory` names: usually the model class itself.

    `parse_config` gets the parsed config.json and raises UnsupportedModelError for traits that the
    model does not serve. It is called with no torch objects around and must be cheap.
    """

    def parse_config(self, hf_config: Mapping[str, object]) -> ModelConfig:
        """The typed configuration."""
        ...

    def weight_map(self, config: ModelConfig) -> WeightMap:
        """Where the checkpoint's tensors go."""
        ...

    def __call__(self, config: ModelConfig, ctx: BuildContext) -> Model:
        """Build the model with uninitialized weights."""
        ...


@runtime_checkable
class ModelConfig(Protocol):
    """What core must know of any architecture; each model's own typed config has these and more."""

    @property
    def vocab_size(self) -> int:
        """V, the logits' width."""
        ...

    @property
    def max_position_embeddings(self) -> int:
        """Longest context that the weights support."""
        ...

    @property
    def num_attention_heads(self) -> int:
        """H."""
        ...

    @property
    def rope_switch_len(self) -> int | None:
        """Length past which the rotary scaling depends on a request's own length (dynamic, longrope).

        Requests that may grow past it share no prefix blocks. None: never.
        """
        ...


class PendingStep(Protocol):
    """A step that an executor has accepted."""

    def result(self) -> StepResult:
        """Wait for the step and return its result; raises StepError when the step as a whole failed."""
        ...


class Executor(Protocol):
    """Runs step plans on one or more workers."""

    def submit(self, plan: StepPlan) -> PendingStep:
        """Accept a plan; plans are run in the order of submission.

        The next one may be submitted before the result of this one is asked for. Then its first token of a request
        may be the one that this one samples, which only the executor knows.
        """
        ...

    def close(self) -> None:
        """Free everything; idempotent."""
        ...


class TokenizerLike(Protocol):
    """What core needs of a tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids."""
        ...


class Command(Protocol):
    """A CLI command: what `CommandSpec.factory` makes."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare flags; must not import torch."""
        ...

    def run(self, args: argparse.Namespace) -> int:
        """Do the work; the result is the exit status."""
        ...
