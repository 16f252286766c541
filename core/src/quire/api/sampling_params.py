"""How a request wants to be sampled."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from types import MappingProxyType
from typing import cast

from quire.api.errors import SamplingParamsError
from quire.api.foreign_fields import takes_foreign_fields
from quire.api.plain_data import NotPlainError, plain_copy

MAX_NUM_CHOICES = 16384
MAX_STOP_STRINGS = 64
MAX_STOP_CHARS = 1024
MIN_TEMPERATURE = 0.01

_FLOAT_BOUNDS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 2.0),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
_INT_BOUNDS: dict[str, tuple[int, int]] = {
    "n": (1, MAX_NUM_CHOICES),
    "top_k": (-1, 2**31 - 1),
    "seed": (-(2**63), 2**63 - 1),
    "max_tokens": (1, 2**31 - 1),
    "min_tokens": (0, 2**31 - 1),
    "logprobs": (-1, 2**31 - 1),
    "prompt_logprobs": (-1, 2**31 - 1),
    "max_draft_tokens": (0, 2**31 - 1),
}
_OPTIONAL = frozenset({"seed", "max_tokens", "logprobs", "prompt_logprobs", "max_draft_tokens"})


@takes_foreign_fields
@dataclass(slots=True)
class SamplingParams:
    """How the tokens of one request are chosen. Names and meanings are vLLM's.

    Fields of vLLM that this version does not serve are taken at their neutral values and refused at others.

    Args:
        n: choices per prompt; they share the prompt's blocks.
        temperature: 0 is greedy; otherwise in [0.01, 2] (smaller values are raised to 0.01).
        top_k: keep the k likeliest tokens; 0 or -1 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches this, in (0, 1].
        min_p: drop tokens less likely than this share of the likeliest one, in [0, 1].
        presence_penalty, frequency_penalty: [-2, 2], over output tokens.
        repetition_penalty: (0, 10], over prompt and output tokens; 1 is off.
        seed: any int64; None lets the engine draw one. Same seed, same text in any batch.
        stop: strings that end the output (cut from it unless `include_stop_str_in_output`).
        stop_token_ids: token ids that end the output; they stay in `token_ids`, not in the text.
        ignore_eos: go on past the end-of-sequence token.
        max_tokens: output limit; None means as far as the context reaches.
        min_tokens: EOS and stop tokens are not sampled before this many output tokens.
        logprobs: this many likeliest tokens per output position, and the sampled one; -1 is all.
        prompt_logprobs: the same for prompt positions; such a request reads no prefix cache.
        logit_bias: token id to a bias, clamped to [-100, 100], added to the logits.
        detokenize: False leaves the text empty.
        max_draft_tokens: most draft tokens in a step where a drafter is configured; 0 switches it off for
            this request, None leaves it to the engine. What is generated does not depend on it.
        extra_args: for plugins: the name of a logits processor to its arguments, which are plain data.

    Raises:
        SamplingParamsError: a value is out of bounds or not finite, two contradict each other, or a
            value is not served; UnknownSamplingParamError (a TypeError too): an unknown keyword.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: Mapping[int, float] | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    max_draft_tokens: int | None = None
    extra_args: Mapping[str, object] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            self.stop = [self.stop]
        if self.seed == -1:
            self.seed = None  # vLLM's spelling of "none"
        self.validate()
        if 0 < self.temperature < MIN_TEMPERATURE:
            self.temperature = MIN_TEMPERATURE
        if self.logit_bias is not None:
            self.logit_bias = {int(k): max(-100.0, min(100.0, float(v))) for k, v in self.logit_bias.items()}

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0.0

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def validate(self) -> None:
        """Check every bound. The one place that does; the engine calls it again at admission."""
        for name, (low, high) in _FLOAT_BOUNDS.items():
            _check_number(name, getattr(self, name), low, high)
        _check_number("top_p", self.top_p, 0.0, 1.0, above_low=True)
        _check_number("repetition_penalty", self.repetition_penalty, 0.0, 10.0, above_low=True)
        for name, (low_i, high_i) in _INT_BOUNDS.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise SamplingParamsError(f"{name} must be an integer, got {value!r}")
            if not low_i <= value <= high_i:
                raise SamplingParamsError(f"{name}={value} is out of bounds: give {low_i} to {high_i}")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise SamplingParamsError(
                f"min_tokens={self.min_tokens} is greater than max_tokens={self.max_tokens}: "
                "lower the one or raise the other"
            )
        self._validate_stops()
        self._validate_bias()
        if self.extra_args is not None:
            self.extra_args_copy()

    def extra_args_copy(self) -> dict[str, object]:
        """`extra_args`, copied whole; SamplingParamsError where it is not a mapping of plain data."""
        if not isinstance(self.extra_args, Mapping | None):
            raise SamplingParamsError(
                f"extra_args must map names of logits processors to arguments, got {self.extra_args!r}"
            )
        try:
            return cast("dict[str, object]", plain_copy(self.extra_args or {}, "extra_args"))
        except NotPlainError as error:
            raise SamplingParamsError(str(error)) from None

    def read_only_copy(self) -> SamplingParams:
        """A copy for a plugin to read: nothing that it does to the copy reaches this."""
        copied = copy.copy(self)
        copied.stop = self.stop_strings or None
        copied.stop_token_ids = None if self.stop_token_ids is None else tuple(self.stop_token_ids)
        if self.logit_bias is not None:
            copied.logit_bias = MappingProxyType(dict(self.logit_bias))
        if self.extra_args is not None:
            copied.extra_args = MappingProxyType(self.extra_args_copy())
        return copied

    def _validate_stops(self) -> None:
        for name in ("stop", "stop_token_ids"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str | Sequence | Set):
                raise SamplingParamsError(f"{name} must be a list, got {value!r}")
        stops = self.stop_strings
        if len(stops) > MAX_STOP_STRINGS:
            raise SamplingParamsError(f"stop has {len(stops)} strings, the limit is {MAX_STOP_STRINGS}")
        for text in stops:
            if not isinstance(text, str) or not text:
                raise SamplingParamsError(f"stop must hold non-empty strings, got {text!r}")
            if len(text) > MAX_STOP_CHARS:
                raise SamplingParamsError(
                    f"a stop string has {len(text)} characters, the limit is {MAX_STOP_CHARS}"
                )
        if stops and not self.detokenize:
            raise SamplingParamsError("stop strings need text: drop detokenize=False, or use stop_token_ids")
        for token_id in self.stop_token_ids or ():
            _check_token_id("stop_token_ids", token_id)

    def _validate_bias(self) -> None:
        if self.logit_bias is not None and not isinstance(self.logit_bias, Mapping):
            raise SamplingParamsError(f"logit_bias must map token ids to numbers, got {self.logit_bias!r}")
        for token_id, bias in (self.logit_bias or {}).items():
            _check_token_id("logit_bias", token_id)
            if isinstance(bias, bool) or not isinstance(bias, int | float) or not math.isfinite(bias):
                raise SamplingParamsError(f"logit_bias[{token_id}]={bias!r} is not a finite number")


def _check_number(name: str, value: object, low: float, high: float, *, above_low: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise SamplingParamsError(f"{name} must be a finite number, got {value!r}")
    if value < low or value > high or (above_low and value == low):
        bracket = "(" if above_low else "["
        raise SamplingParamsError(
            f"{name}={value} is out of bounds: give a value in {bracket}{low:g}, {high:g}]"
        )


def _check_token_id(name: str, token_id: object) -> None:
    if isinstance(token_id, bool) or not isinstance(token_id, int) or token_id < 0:
        raise SamplingParamsError(f"{name} must hold token ids (integers from 0), got {token_id!r}")
