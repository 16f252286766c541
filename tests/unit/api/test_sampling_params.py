"""SamplingParams of a vLLM script: neutral values of foreign fields pass, others are refused by name."""

from __future__ import annotations

import dataclasses
import inspect
import time
from enum import Enum

import pytest

from quire.api.errors import SamplingParamsError, UnknownSamplingParamError
from quire.api.foreign_fields import FOREIGN_FIELDS
from quire.api.plain_data import plain_copy
from quire.api.request import SamplingParams


class Kind(Enum):
    CUMULATIVE = 0
    DELTA = 1


NEUTRAL = [
    ("allowed_token_ids", []),
    ("bad_words", []),
    ("best_of", 1),
    ("early_stopping", False),
    ("flat_logprobs", False),
    ("length_penalty", 1.0),
    ("logits_processors", []),
    ("output_kind", 0),
    ("output_kind", Kind.CUMULATIVE),
    ("skip_reading_prefix_cache", False),
    ("stream_interval", 1),
    ("use_beam_search", False),
    # Served: here vLLM's default is what Quire does.
    ("extra_args", None),
    ("extra_args", {}),
    ("include_stop_str_in_output", False),
    ("skip_special_tokens", True),
    ("spaces_between_special_tokens", True),
]
REFUSED = [
    ("allowed_token_ids", [1]),
    ("bad_words", ["x"]),
    ("best_of", 2),
    ("early_stopping", True),
    ("flat_logprobs", True),
    ("guided_decoding", {"json": {}}),
    ("length_penalty", 0.5),
    ("logits_processors", [print]),
    ("logprob_token_ids", [1]),
    ("output_kind", Kind.DELTA),
    ("output_kind", 1),
    ("repetition_detection", {"max_pattern_size": 2}),
    ("skip_clone", True),
    ("skip_reading_prefix_cache", True),
    ("stream_interval", 4),
    ("structured_outputs", {"regex": "a"}),
    ("thinking_token_budget", 0),
    ("truncate_prompt_tokens", -1),
    ("use_beam_search", True),
]


@pytest.mark.parametrize(("name", "value"), [*((name, None) for name in FOREIGN_FIELDS), *NEUTRAL])
def test_a_neutral_value_changes_nothing(name: str, value: object) -> None:
    # for mypy: a field by name
    plain, found = SamplingParams(max_tokens=3), SamplingParams(max_tokens=3, **{name: value})  # type: ignore[arg-type]
    found.extra_args = plain.extra_args
    assert found == plain


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_any_other_value_is_refused_with_name_value_and_remedy(name: str, value: object) -> None:
    with pytest.raises(SamplingParamsError) as caught:
        SamplingParams(**{name: value})  # type: ignore[arg-type]  # a field by name
    text = str(caught.value)
    assert text.startswith(f"{name}={value!r} is not served by this version: ")
    assert len(text.split(": ", 1)[1]) > 10


def test_every_foreign_field_is_refused_at_some_value_and_is_no_field_of_ours() -> None:
    assert {name for name, _ in REFUSED} == set(FOREIGN_FIELDS)
    assert not FOREIGN_FIELDS.keys() & {field.name for field in dataclasses.fields(SamplingParams)}


def test_extra_args_are_plain_data_and_copied() -> None:
    given = {"mask": {"ids": [1, (2, 3)], "on": True, "by": None, "scale": 0.5}, "other": "x"}
    params = SamplingParams(extra_args=given)
    copied = params.extra_args_copy()
    assert copied == {"mask": {"ids": [1, [2, 3]], "on": True, "by": None, "scale": 0.5}, "other": "x"}
    given["mask"]["ids"].append(9)  # type: ignore[index]  # plain data, of these types
    assert copied["mask"]["ids"] == [1, [2, 3]]  # type: ignore[index]  # plain data, of these types
    assert SamplingParams().extra_args_copy() == {}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1], "must map names"),
        ({1: 2}, "has the key 1"),
        ({"a": {"b": [object()]}}, r"extra_args\['a'\]\['b'\]\[0\] is a object: give plain data"),
        ({"a": {1, 2}}, r"\['a'\] is a set"),
    ],
)
def test_extra_args_that_are_not_plain_are_refused(value: object, words: str) -> None:
    with pytest.raises(SamplingParamsError, match=words):
        SamplingParams(extra_args=value)  # type: ignore[arg-type]  # to be refused


def test_extra_args_that_hold_themselves_are_refused() -> None:
    loop: dict[str, object] = {}
    loop["a"] = loop
    with pytest.raises(SamplingParamsError, match="nested more than 16 deep"):
        SamplingParams(extra_args=loop)


def test_a_read_only_copy_keeps_its_own() -> None:
    params = SamplingParams(stop="a", stop_token_ids=[1], logit_bias={2: 1.0}, extra_args={"x": [1]})
    copied = params.read_only_copy()
    assert (copied.stop, copied.stop_token_ids) == (("a",), (1,))
    assert dict(copied.logit_bias or {}) == {2: 1.0} and dict(copied.extra_args or {}) == {"x": [1]}
    copied.temperature = 0.0
    copied.extra_args["x"].append(2)  # type: ignore[index]  # plain data, of these types
    with pytest.raises(TypeError):
        copied.logit_bias[3] = 1.0  # type: ignore[index]  # to be refused
    assert params == SamplingParams(stop="a", stop_token_ids=[1], logit_bias={2: 1.0}, extra_args={"x": [1]})


def test_best_of_as_many_as_n_is_plain_sampling() -> None:
    assert SamplingParams(n=3, best_of=3) == SamplingParams(n=3)  # type: ignore[call-arg]  # a foreign field
    with pytest.raises(SamplingParamsError, match="best_of=4"):
        SamplingParams(n=3, best_of=4)  # type: ignore[call-arg]  # a foreign field


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("temprature", "temperature"), ("max_token", "max_tokens"), ("bad_word", "bad_words")],
)
@pytest.mark.parametrize("kind", [UnknownSamplingParamError, SamplingParamsError, TypeError])
def test_an_unknown_name_is_an_error_that_names_the_nearest(
    name: str, nearest: str, kind: type[Exception]
) -> None:
    with pytest.raises(kind, match=f"unknown sampling parameter '{name}'; did you mean '{nearest}'"):
        SamplingParams(**{name: None})  # type: ignore[arg-type]  # a field by name


def test_a_name_like_no_other_gets_the_list() -> None:
    with pytest.raises(UnknownSamplingParamError, match="valid are detokenize, .*, top_p"):
        SamplingParams(qqq=1)  # type: ignore[call-arg]  # a foreign field


def test_bounds_are_checked_beside_foreign_fields() -> None:
    with pytest.raises(SamplingParamsError, match="top_p"):
        SamplingParams(top_p=2.0, bad_words=None)  # type: ignore[call-arg]  # a foreign field
    with pytest.raises(SamplingParamsError, match="temperature"):
        dataclasses.replace(SamplingParams(), temperature=float("nan"))


def test_the_signature_is_that_of_the_fields() -> None:
    names = [field.name for field in dataclasses.fields(SamplingParams)]
    assert list(inspect.signature(SamplingParams).parameters) == names


def test_copying_plain_data_does_not_spell_out_where_everything_is() -> None:
    value = {"k" * 1_000_000: [1] * 20_000}
    begin = time.process_time()
    assert plain_copy(value, "place") == value
    assert time.process_time() - begin < 1  # names of a megabyte for each entry took minutes
