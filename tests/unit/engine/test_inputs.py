"""What is refused at the door, and with which words."""

from __future__ import annotations

import numpy as np
import pytest

from quire.api.errors import PromptError, SamplingParamsError, TokenizerError
from quire.api.request import SamplingParams
from quire.engine.inputs import InputProcessor


class Letters:
    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [ord(char) - 97 for char in text]

    def decode(self, token_ids, *, skip_special_tokens: bool = True) -> str:
        return "".join(chr(97 + token_id) for token_id in token_ids)


INPUTS = InputProcessor(vocab_size=26, max_model_len=8, tokenizer=Letters())
BARE = InputProcessor(vocab_size=26, max_model_len=8, tokenizer=None)


@pytest.mark.parametrize(
    ("prompt", "text", "token_ids"),
    [
        ("abz", "abz", [0, 1, 25]),
        ([0, 25], None, [0, 25]),
        ((3, 4), None, [3, 4]),
        ([np.int64(3), np.uint8(4)], None, [3, 4]),
        ({"prompt": "ab"}, "ab", [0, 1]),
        ({"prompt_token_ids": [5]}, None, [5]),
        ({"prompt": "as shown", "prompt_token_ids": [5]}, "as shown", [5]),
        ([1] * 7, None, [1] * 7),
    ],
)
def test_prompts_become_token_ids(prompt, text, token_ids):
    processed = INPUTS.process_prompt(prompt)
    assert (processed.text, processed.token_ids) == (text, token_ids)
    assert all(type(token_id) is int for token_id in processed.token_ids)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "the prompt is empty: give at least one token"),
        ([], "the prompt is empty"),
        ({"prompt_token_ids": []}, "the prompt is empty"),
        ([1, 26], "token id 26 is outside the model's logits: give 0 to 25"),
        ([-1, 1], "token id -1 is outside"),
        ([10**30], "is outside the model's logits"),
        ([1] * 8, "the prompt has 8 tokens, the context holds 8 .* raise max_model_len"),
        ([1, 2.0], "token ids must be integers, got 2.0"),
        ([True], "token ids must be integers, got True"),
        ([float("nan")], "token ids must be integers, got nan"),
        ([None], "got None"),
        (["a"], "got 'a'"),
        ({}, "'prompt' or 'prompt_token_ids'"),
        ({"prompt": None}, "'prompt' or 'prompt_token_ids'"),
        ({"prompt": "a", "multi_modal_data": {}}, "multi_modal_data"),
        ({"prompt": 5}, "must be a string"),
        ({"prompt_token_ids": "ab"}, "a list of integers"),
        ({"prompt_token_ids": 5}, "a list of integers"),
        (b"ab", "got bytes"),
        (5, "got int"),
        (None, "got NoneType"),
    ],
)
def test_bad_prompts_are_refused(prompt, words):
    with pytest.raises(PromptError, match=words):
        INPUTS.process_prompt(prompt)


def test_a_text_without_a_tokenizer_is_refused_and_ids_are_not():
    with pytest.raises(TokenizerError, match="give prompt_token_ids, or drop skip_tokenizer_init"):
        BARE.process_prompt("ab")
    assert BARE.process_prompt({"prompt": "shown", "prompt_token_ids": [1]}).token_ids == [1]


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"logprobs": 27}, "logprobs=27 is more than the vocabulary has: give at most 26, or -1"),
        ({"prompt_logprobs": 27}, "prompt_logprobs=27"),
        ({"logit_bias": {26: 1.0}}, "logit_bias holds token id 26, .* give 0 to 25"),
        ({"stop_token_ids": [3, 26]}, "stop_token_ids holds token id 26"),
    ],
)
def test_parameters_beyond_the_model_are_refused(params, words):
    with pytest.raises(SamplingParamsError, match=words):
        INPUTS.process_params(SamplingParams(**params))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", float("nan")),
        ("top_p", float("nan")),
        ("min_p", float("inf")),
        ("presence_penalty", float("nan")),
        ("repetition_penalty", float("-inf")),
        ("top_k", -5),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("n", 0),
        ("n", 1.5),
        ("logit_bias", {1: float("nan")}),
    ],
)
def test_values_set_after_construction_are_checked_too(name, value):
    params = SamplingParams()
    setattr(params, name, value)
    with pytest.raises(SamplingParamsError, match=name):
        INPUTS.process_params(params)


def test_bounds_of_the_model_itself_pass():
    INPUTS.process_params(
        SamplingParams(logprobs=26, prompt_logprobs=-1, logit_bias={25: 1}, stop_token_ids=[0])
    )


def test_stop_strings_need_a_tokenizer():
    INPUTS.process_params(SamplingParams(stop="x"))
    with pytest.raises(SamplingParamsError, match="use stop_token_ids"):
        BARE.process_params(SamplingParams(stop="x"))


@pytest.mark.parametrize(("max_tokens", "limit"), [(None, 3), (2, 2), (3, 3), (99, 3)])
def test_output_is_cut_to_what_the_context_leaves(max_tokens, limit):
    assert INPUTS.output_limit(5, SamplingParams(max_tokens=max_tokens)) == limit
