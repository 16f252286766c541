"""Drafters that misbehave, and what drafts must not do to others: the engine goes on with the same tokens."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from equivalence import values
from extension_plugins import make_plugin, open_llm

from quire import LLM, SamplingParams
from quire.api.errors import ConfigError
from quire.api.specs import DrafterSpec
from quire.api.speculation import Drafter, DraftRequest
from quire.testing.tiny_models import write_tiny_llama

PROMPTS = [[1, 2, 3], [4, 5, 6, 7]]
PARAMS = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("llama"), max_position_embeddings=128)


class Scripted(Drafter):
    def __init__(self, propose: Callable[[Sequence[DraftRequest]], Any]) -> None:
        self._propose = propose

    def propose(self, requests: Sequence[DraftRequest]) -> Any:
        return self._propose(requests)


def open_with(folder: Path | str, propose: Callable[[Sequence[DraftRequest]], Any], **keywords: Any) -> LLM:
    specs = [DrafterSpec("my_drafter", lambda context: Scripted(propose))]
    plugin = make_plugin("drafts", register_drafters=lambda: specs)
    config = {"method": "my_drafter", "num_speculative_tokens": 8, "adaptive": False}
    return open_llm(folder, plugin, **{"speculative_config": config, **keywords})


def tokens(llm: LLM, params: SamplingParams = PARAMS) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(PROMPTS, params, use_tqdm=False)]


class Lazy(Sequence[list[int]]):
    """Says that it has two entries, and raises or goes on for ever when they are looked at."""

    def __init__(self, raises: bool) -> None:
        self._raises = raises

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: Any) -> Any:
        if self._raises:
            raise RuntimeError("nothing here")
        return [1]


class BadIndex:
    def __index__(self) -> int:
        raise BadTextError


class BadTextError(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


def mutate(requests: Any) -> list[list[int]]:
    requests.clear()
    return []


def leave(requests: Any) -> Any:
    raise GeneratorExit


FAULTS: dict[str, Callable[[Any], Any]] = {
    "changes what it was given": mutate,
    "entries that raise": lambda requests: Lazy(True),
    "entries without end": lambda requests: Lazy(False),
    "tokens without end": lambda requests: [itertools.repeat(1) for _ in requests],
    "far too many tokens": lambda requests: [[1] * 10**6 for _ in requests],
    "an error without text": lambda requests: [[BadIndex()] for _ in requests],
    "an error for coroutines": leave,
    "one entry too few": lambda requests: [[1] for _ in requests][1:],
    "nothing": lambda requests: None,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_costs_drafts_and_nothing_else(
    folder: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    with open_llm(folder) as plain:
        expected = tokens(plain)
    with open_with(folder, FAULTS[fault]) as llm:
        assert tokens(llm) == expected
        assert tokens(llm) == expected
        assert values(llm.get_metrics())["spec_decode_num_draft_tokens"] == 0
    assert "my_drafter" in caplog.text and "'drafts'" in caplog.text and "gets no more drafts" in caplog.text


def test_what_a_drafter_does_to_parameters_reaches_nothing(folder: Path) -> None:
    def spoil(requests: Sequence[DraftRequest]) -> list[list[int]]:
        for request in requests:
            request.params.max_tokens = 1
            request.params.temperature = 2.0
        return [[1] for _ in requests]

    with open_llm(folder) as plain:
        expected = tokens(plain)
    with open_with(folder, spoil) as llm:
        assert tokens(llm) == expected


def junk(requests: Sequence[DraftRequest]) -> list[list[int]]:
    return [[1] * request.max_drafts for request in requests]


def test_drafts_do_not_keep_others_from_starting(folder: Path) -> None:
    num_steps = {}
    for name, config in {"plain": None, "drafts": {"method": "my_drafter", "adaptive": False}}.items():
        with open_with(folder, junk, max_num_batched_tokens=16, speculative_config=config) as llm:
            for index in range(2):
                llm.engine.add_request(
                    {"prompt_token_ids": [index + 5] * 4},
                    SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True),
                )
            for _ in range(5):
                llm.engine.step()
            late = llm.engine.add_request({"prompt_token_ids": list(range(10, 40))}, PARAMS)
            num_steps[name] = 0
            while not llm.engine.output(late).outputs[0].token_ids:
                llm.engine.step()
                num_steps[name] += 1
    assert num_steps["drafts"] == num_steps["plain"]


def test_drafts_preempt_nobody(folder: Path) -> None:
    """Requests of 22, 8 and 8 tokens in 26 blocks of one token: they fit, but not with drafts of 8 each."""
    settings = {"block_size": 1, "num_kv_blocks": 26, "max_model_len": 24, "max_num_seqs": 3}
    params = [SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True) for n in (20, 6, 6)]
    found = {}
    for name, config in {
        "plain": None,
        "drafts": {"method": "my_drafter", "num_speculative_tokens": 8},
    }.items():
        with open_with(
            folder, junk, speculative_config=config, enable_prefix_caching=False, **settings
        ) as llm:
            outputs = llm.generate([[5, 5], [6, 6], [7, 7]], params, use_tqdm=False)
            metrics = values(llm.get_metrics())
            found[name] = ([output.outputs[0].token_ids for output in outputs], metrics["num_preemptions"])
    assert found["drafts"] == found["plain"] and found["plain"][1] == 0


class Oracle(Drafter):
    """Drafts an output that it was told."""

    def __init__(self, output: Sequence[int]) -> None:
        self._output = list(output)

    def propose(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        starts = [len(request.token_ids) - request.num_prompt_tokens for request in requests]
        return [
            self._output[start : start + request.max_drafts]
            for start, request in zip(starts, requests, strict=True)
        ]


@pytest.mark.parametrize("stop", ["string", "token", "length"])
def test_steps_saved_are_the_steps_of_plain_decoding_less_those_with_drafts(stop: str) -> None:
    prompt, params = (
        "Reverse the word: planet. Then count to nine.",
        SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True),
    )
    with open_llm("tiny", skip_tokenizer_init=False, max_model_len=256) as plain:
        full = plain.generate([prompt], params, use_tqdm=False)[0].outputs[0]
        stops: dict[str, dict[str, Any]] = {
            "string": {"stop": [full.text[len(full.text) // 2 :][:3]]},
            "token": {"stop_token_ids": [max(full.token_ids[4:], key=full.token_ids.index)]},
            "length": {"max_tokens": 13},
        }
        cut = SamplingParams(**{"temperature": 0.0, "max_tokens": 40, "ignore_eos": True, **stops[stop]})
        before = values(plain.get_metrics())["num_steps"]
        expected = plain.generate([prompt], cut, use_tqdm=False)[0].outputs[0]
        num_plain = values(plain.get_metrics())["num_steps"] - before
    specs = [DrafterSpec("oracle", lambda context: Oracle(full.token_ids))]
    plugin = make_plugin("drafts", register_drafters=lambda: specs)
    config = {"method": "oracle", "num_speculative_tokens": 8, "adaptive": False}
    settings = {"skip_tokenizer_init": False, "max_model_len": 256, "speculative_config": config}
    with open_llm("tiny", plugin, **settings) as llm:
        output = llm.generate([prompt], cut, use_tqdm=False)[0]
        metrics = values(llm.get_metrics())
    assert output.outputs[0].token_ids == expected.token_ids and output.outputs[0].text == expected.text
    assert output.metrics is not None and output.metrics.speculation is not None
    saved = output.metrics.speculation.num_steps_saved
    assert saved == metrics["spec_decode_num_steps_saved"] == num_plain - metrics["num_steps"] > 0
    assert metrics["num_prefill_chunks"] == 1  # rows that verify drafts are none


def test_a_request_without_drafts_has_no_figures_of_them(folder: Path) -> None:
    with open_with(folder, junk) as llm:
        params = [PARAMS, SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True, max_draft_tokens=0)]
        outputs = llm.generate(PROMPTS, params, use_tqdm=False)
        found = [output.metrics.speculation for output in outputs if output.metrics is not None]
    assert found[0] is not None and found[0].num_drafts > 0 and found[0].propose_s > 0
    assert found[1] is None


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"method": "my-drafter"}, ("my-drafter", "my_drafter", "registered")),
        ({}, ("names no method", "ngram")),
        ({"method": "ngram", "num_speculative_tokens": True}, ("num_speculative_tokens", "integer")),
        ({"method": "ngram", "num_speculative_tokens": 65}, ("65", "64")),
        ({"method": "suffix", "model": "ngram"}, ("model", "suffix")),
        ("[" * 100_000, ("JSON",)),
    ],
)
def test_settings_are_refused_by_name(folder: Path, config: object, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        open_with(folder, junk, speculative_config=config)
    assert all(word in str(caught.value) for word in words), str(caught.value)
