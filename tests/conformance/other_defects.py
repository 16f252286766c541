"""Ops, logits processors and policies, each with one defect."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from quire.api.extensions import ExtensionContext, RequestView
from quire.api.request import SamplingParams
from quire.ops.activation import silu_and_mul
from quire.ops.norm import rms_norm
from quire.ops.rotary import rotary


def eps_outside_the_root(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.float().pow(2).mean(-1, keepdim=True).sqrt() + eps).to(x.dtype) * weight


def normalizes_in_place(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x.copy_(rms_norm(x, weight, eps))
    return x.clone()


def gives_its_input_back(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    result = rms_norm(x, weight, eps)
    return x if result.equal(x) or x.numel() == 0 else x.set_(result)  # type: ignore[call-overload]  # torch's stub lacks it


def ignores_strides(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    dense = x.as_strided(x.shape, torch.empty(x.shape).stride())
    return rms_norm(dense, weight, eps)


def leaves_the_tail(x: Tensor) -> Tensor:
    """Whole vectors of four only; the rest is whatever the memory held."""
    right = silu_and_mul(x)
    result = torch.zeros_like(right)
    width = right.shape[-1] // 4 * 4 or right.shape[-1]
    result[..., :width] = right[..., :width]
    return result


def trusts_fresh_memory(x: Tensor) -> Tensor:
    """Adds to memory that it takes for zero."""
    return torch.empty_like(silu_and_mul(x)).nan_to_num(torch.nan).mul_(0).add_(silu_and_mul(x))


def up_before_gate(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return silu_and_mul(torch.cat((up, gate), -1))


def rotates_copies(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> object:
    return rotary(query.clone(), key.clone(), cos, sin, interleaved)


def rotates_by_halves_only(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, interleaved: bool
) -> tuple[Tensor, Tensor]:
    return rotary(query, key, cos, sin, False)


_first_shapes: dict[tuple[int, ...], Tensor] = {}


def remembers_shapes(x: Tensor) -> Tensor:
    """Keeps a buffer for each shape, and gives that very buffer out."""
    right = silu_and_mul(x)
    buffer = _first_shapes.setdefault((*right.shape, right.element_size()), right)
    return buffer if buffer.dtype == right.dtype else right


_buffers: dict[tuple[object, ...], Tensor] = {}


def reuses_a_buffer(x: Tensor) -> Tensor:
    """Writes every result of a shape to the same memory."""
    right = silu_and_mul(x)
    return _buffers.setdefault((*right.shape, right.dtype), right.clone()).copy_(right)


Call = Callable[[Sequence[int], Sequence[int], Tensor], Tensor]


class Bans:
    """A correct processor: bans some tokens, and all that was generated before."""

    def __init__(self, context: ExtensionContext) -> None:
        self.vocab_size = context.vocab_size

    def for_request(self, arguments: object, params: SamplingParams) -> Call | None:
        if not isinstance(arguments, list) or not all(isinstance(entry, int) for entry in arguments):
            raise ValueError(f"{arguments!r} is no list of token ids")
        return self.make(arguments)

    def make(self, banned: list[int]) -> Call:
        def process(prompt: Sequence[int], output: Sequence[int], logits: Tensor) -> Tensor:
            logits[[*banned, *output]] = -torch.inf
            return logits

        return process


class RaisesTypeError(Bans):
    def for_request(self, arguments: object, params: SamplingParams) -> Call | None:
        return self.make([int(entry) for entry in arguments])  # type: ignore[attr-defined]  # of the base


class CountsCalls(Bans):
    def make(self, banned: list[int]) -> Call:
        calls = itertools.count()

        def process(prompt: Sequence[int], output: Sequence[int], logits: Tensor) -> Tensor:
            logits[next(calls) % 11] = -torch.inf
            return logits

        return process


class SharesState(Bans):
    def make(self, banned: list[int]) -> Call:
        seen = self.__dict__.setdefault("seen", set(banned))

        def process(prompt: Sequence[int], output: Sequence[int], logits: Tensor) -> Tensor:
            seen.update(output)
            logits[sorted(seen)] = -torch.inf
            return logits

        return process


class ExtendsHistory(Bans):
    def make(self, banned: list[int]) -> Call:
        def process(prompt: Sequence[int], output: Sequence[int], logits: Tensor) -> Tensor:
            if isinstance(output, list):
                output.extend(banned)
            logits[banned] = -torch.inf
            return logits

        return process


class ReachesOtherRows(Bans):
    def make(self, banned: list[int]) -> Call:
        def process(prompt: Sequence[int], output: Sequence[int], logits: Tensor) -> Tensor:
            if logits._base is not None:
                logits._base.view(-1)[banned] = -torch.inf
            logits[banned] = -torch.inf
            return logits

        return process


class BansEverything(Bans):
    def make(self, banned: list[int]) -> Call:
        return lambda prompt, output, logits: torch.full_like(logits, -torch.inf)


class WidensToFloat64(Bans):
    def make(self, banned: list[int]) -> Call:
        return lambda prompt, output, logits: logits.double()


class MakesNaN(Bans):
    def make(self, banned: list[int]) -> Call:
        return lambda prompt, output, logits: logits - logits.min()


class Fcfs:
    """A correct policy."""

    def __init__(self, context: ExtensionContext) -> None:
        self.calls = itertools.count()

    def key(self, request: RequestView, arrival_index: int) -> tuple[float, ...]:
        return (not request.is_preempted, arrival_index)


class RandomKeys(Fcfs):
    def key(self, request: RequestView, arrival_index: int) -> tuple[float, ...]:
        return (random.random(), arrival_index)


class KeysOfNaN(Fcfs):
    def key(self, request: RequestView, arrival_index: int) -> tuple[float, ...]:
        return (request.num_output_tokens * float("inf"), arrival_index)


class KeysOfText(Fcfs):
    def key(self, request: RequestView, arrival_index: int) -> tuple[float, ...]:
        return (request.request_id, arrival_index)  # type: ignore[return-value]  # the defect


class Ties(Fcfs):
    def key(self, request: RequestView, arrival_index: int) -> tuple[float, ...]:
        return (request.priority,)


class LastComeFirstServed(Fcfs):
    def key(self, request: RequestView, arrival_index: int) -> tuple[float, ...]:
        return (-arrival_index,)


class ChangesParams(Fcfs):
    def key(self, request: RequestView, arrival_index: int) -> tuple[float, ...]:
        request.params.max_tokens = 1
        return (arrival_index,)


class PreemptedGoLast(Fcfs):
    """Whoever has lost its blocks goes behind all who have not."""

    def key(self, request: RequestView, arrival_index: int) -> tuple[float, ...]:
        return (request.num_preemptions, arrival_index)


class RunningGoLast(Fcfs):
    """Whoever has got a token goes behind those who have none: nobody gets on."""

    def key(self, request: RequestView, arrival_index: int) -> tuple[float, ...]:
        return (request.num_output_tokens, -arrival_index)
