"""Fields of vLLM's SamplingParams without a counterpart here: taken where they change nothing, else refused."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from quire.api.errors import SamplingParamsError, UnknownSamplingParamError

T = TypeVar("T")


@dataclass(slots=True, frozen=True)
class ForeignField:
    """A field that this version does not serve.

    Attributes:
        remedy: what to do instead.
        neutral: values besides None and empty containers that ask for nothing.
    """

    remedy: str
    neutral: tuple[object, ...] = ()

    def is_neutral(self, value: object) -> bool:
        """Whether the value asks for nothing."""
        plain = value.value if isinstance(value, Enum) else value
        if plain is None or (isinstance(plain, list | tuple | set | frozenset | dict) and not plain):
            return True
        return any(type(plain) is type(neutral) and plain == neutral for neutral in self.neutral)


FOREIGN_FIELDS: Mapping[str, ForeignField] = {
    "allowed_token_ids": ForeignField("favour these tokens with logit_bias={token_id: 100}"),
    "bad_words": ForeignField("forbid single tokens with logit_bias={token_id: -100}"),
    "best_of": ForeignField("ask for n choices and keep the best by cumulative_logprob (logprobs=0)"),
    "early_stopping": ForeignField("it belongs to beam search: ask for n sampled choices", (False,)),
    "flat_logprobs": ForeignField("logprobs are one mapping per position: leave it out", (False,)),
    "guided_decoding": ForeignField("check the output and ask again, or leave it out"),
    "length_penalty": ForeignField("it belongs to beam search: ask for n sampled choices", (1, 1.0)),
    "logits_processors": ForeignField(
        "name a processor that a plugin registers: extra_args={name: arguments}, or use logit_bias"
    ),
    "logprob_token_ids": ForeignField("logprobs=-1 gives those of all tokens"),
    "output_kind": ForeignField("outputs are cumulative (0): leave it out", (0, "CUMULATIVE", "cumulative")),
    "repetition_detection": ForeignField("use repetition_penalty or stop"),
    "skip_clone": ForeignField("parameters are never copied: leave it out", (False,)),
    "skip_reading_prefix_cache": ForeignField("build the LLM with enable_prefix_caching=False", (False,)),
    "stream_interval": ForeignField("LLM.stream yields after each step: skip outputs yourself", (1,)),
    "structured_outputs": ForeignField("check the output and ask again, or leave it out"),
    "thinking_token_budget": ForeignField("bound the whole output with max_tokens"),
    "truncate_prompt_tokens": ForeignField("cut prompt_token_ids before the call"),
    "use_beam_search": ForeignField("ask for n sampled choices", (False,)),
}


def takes_foreign_fields(kind: type[T]) -> type[T]:
    """Let a dataclass be built with foreign fields at neutral values; they are checked and forgotten.

    Raises:
        SamplingParamsError: (when building) a foreign field asks for something.
        UnknownSamplingParamError: (when building) a keyword is neither a field nor foreign.
    """
    build = kind.__init__
    own = frozenset(kind.__dataclass_fields__)  # type: ignore[attr-defined]  # every dataclass has it

    @functools.wraps(build)
    def __init__(self: T, *args: object, **keywords: object) -> None:
        if own.issuperset(keywords):
            build(self, *args, **keywords)
            return
        foreign = {name: value for name, value in keywords.items() if name not in own}
        _refuse_unknown(foreign, own)
        build(self, *args, **{name: keywords[name] for name in keywords if name in own})
        for name, value in foreign.items():
            field = FOREIGN_FIELDS[name]
            is_same_as_n = name == "best_of" and value == getattr(self, "n", None)
            if not is_same_as_n and not field.is_neutral(value):
                raise SamplingParamsError(f"{name}={value!r} is not served by this version: {field.remedy}")

    kind.__init__ = __init__  # type: ignore[method-assign, assignment]  # that is the decorator's work
    return kind


def _refuse_unknown(names: Iterable[str], own: frozenset[str]) -> None:
    for name in names:
        if name in FOREIGN_FIELDS:
            continue
        near = difflib.get_close_matches(name, [*sorted(own), *FOREIGN_FIELDS], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"valid are {', '.join(sorted(own))}"
        raise UnknownSamplingParamError(f"unknown sampling parameter {name!r}; {hint}")
