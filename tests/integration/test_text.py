"""Text through the whole engine, with the embedded model; transformers is the oracle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from equivalence import values

import quire_models
from quire import LLM, SamplingParams
from quire.api.errors import PromptError

FOLDER = Path(quire_models.__file__).parent / "tiny"
PROMPTS = ["Hello, my name is", "The capital of France is", "San Franciso is a", "Zürich – 東京 🙂 naïve"]
GREEDY = SamplingParams(temperature=0.0, max_tokens=24)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(model="tiny", dtype="float32", max_model_len=512, max_num_seqs=8) as engine:
        yield engine


def _text(llm: LLM, prompt: str, params: SamplingParams = GREEDY) -> str:
    return llm.generate(prompt, params, use_tqdm=False)[0].outputs[0].text


def test_greedy_text_equals_transformers(llm: LLM) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    chat = [{"role": "user", "content": "What is 2 + 3?"}]
    template = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    outputs = llm.generate([*PROMPTS, template], GREEDY, use_tqdm=False)
    for output in outputs:
        ids = tokenizer(output.prompt, return_tensors="pt").input_ids
        assert output.prompt_token_ids == ids[0].tolist()
        with torch.inference_mode():
            full = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24
            )
        answer = full[0, ids.shape[1] :].tolist()
        assert output.outputs[0].token_ids == answer
        assert output.outputs[0].text == tokenizer.decode(answer, skip_special_tokens=True)
    [chatted] = llm.chat(chat, GREEDY, use_tqdm=False)
    assert chatted.outputs[0].token_ids == outputs[-1].outputs[0].token_ids


def test_streamed_text_only_grows_and_ends_as_the_whole(llm: LLM) -> None:
    params = SamplingParams(temperature=1.5, seed=3, max_tokens=60, ignore_eos=True)
    whole = _text(llm, PROMPTS[3], params)
    seen = [output.outputs[0].text for output in llm.stream(PROMPTS[3], params)]
    assert len(seen) == 60
    assert all(later.startswith(earlier) for earlier, later in zip(seen, seen[1:], strict=False))
    assert seen[-1] == whole


@pytest.mark.parametrize("is_included", [False, True])
def test_a_stop_string_over_tokens_cuts_the_text(llm: LLM, is_included: bool) -> None:
    free = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
    text = _text(llm, PROMPTS[1], free)
    stop = text[8:12]
    params = SamplingParams(
        temperature=0.0, max_tokens=40, ignore_eos=True, stop=[stop, "never there"],
        include_stop_str_in_output=is_included,
    )  # fmt: skip
    [output] = llm.generate(PROMPTS[1], params, use_tqdm=False)
    choice = output.outputs[0]
    end = text.index(stop) + (len(stop) if is_included else 0)
    assert (choice.text, choice.finish_reason, choice.stop_reason) == (text[:end], "stop", stop)
    assert len(choice.token_ids) < 40
    assert values(llm.get_metrics(), "gauge")["kv_cache_usage_perc"] == 0


def test_choices_stop_each_by_itself(llm: LLM) -> None:
    params = SamplingParams(n=4, temperature=1.3, seed=1, max_tokens=30, stop=["e"], ignore_eos=True)
    [output] = llm.generate(PROMPTS[0], params, use_tqdm=False)
    assert len({choice.text for choice in output.outputs}) > 1
    for choice in output.outputs:
        assert "e" not in choice.text
        assert (choice.finish_reason == "stop") == (choice.stop_reason == "e")


def test_without_a_tokenizer_only_the_texts_are_missing(llm: LLM) -> None:
    [expected] = llm.generate(PROMPTS[0], GREEDY, use_tqdm=False)
    with LLM(model="tiny", dtype="float32", max_model_len=512, skip_tokenizer_init=True) as bare:
        [output] = bare.generate([expected.prompt_token_ids], GREEDY, use_tqdm=False)
    assert (output.outputs[0].text, output.outputs[0].token_ids) == ("", expected.outputs[0].token_ids)
    [silent] = llm.generate(
        PROMPTS[0], SamplingParams(temperature=0.0, max_tokens=24, detokenize=False), use_tqdm=False
    )
    assert (silent.outputs[0].text, silent.outputs[0].token_ids) == ("", expected.outputs[0].token_ids)


def test_an_empty_text_and_bad_messages_are_refused(llm: LLM) -> None:
    with pytest.raises(PromptError, match="empty"):
        llm.generate("", use_tqdm=False)
    for messages in ({"role": "user"}, [{"role": "user"}], [{"content": "x"}], "text", [3]):
        with pytest.raises(PromptError):
            llm.chat(messages, use_tqdm=False)  # type: ignore[arg-type]  # to be refused
    assert not llm.engine.has_unfinished
