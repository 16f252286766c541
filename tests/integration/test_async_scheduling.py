"""Steps planned while one runs give what the plain order gives, over the ways that an engine can compute them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from equivalence import values

from quire import LLM, SamplingParams
from quire.api.config import PluginSettings
from quire.api.errors import ConfigError
from quire.api.outputs import RequestOutput
from quire.plugins import PluginHost
from quire.testing.tiny_models import write_tiny_llama

VOCAB = 97
DRAW = random.Random(5)
PREFIX = [DRAW.randrange(VOCAB) for _ in range(19)]
PROMPTS = [
    (PREFIX if index % 3 == 0 else []) + [DRAW.randrange(VOCAB) for _ in range(1 + 5 * index % 30)]
    for index in range(14)
]


def params_of(index: int) -> SamplingParams:
    """Greedy ones, seeded ones, choices; ends by length, by token; some that need the host at each token."""
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.9, "seed": index, "top_p": 0.9},
        {"temperature": 1.0, "seed": index, "n": 2, "top_k": 30},
        {"temperature": 0.0, "stop_token_ids": list(range(0, VOCAB, 5))},
        {"temperature": 1.2, "seed": index, "stop_token_ids": list(range(1, VOCAB, 9))},
        {"temperature": 0.0, "stop_token_ids": list(range(0, VOCAB, 2)), "min_tokens": 3},
        {"temperature": 0.0, "frequency_penalty": 0.5},
        {"temperature": 0.0, "logprobs": 2, "prompt_logprobs": 1},
    ]
    return SamplingParams(max_tokens=4 + 3 * index % 17, **kinds[index % len(kinds)])


PLAIN = [index for index in range(len(PROMPTS)) if index % 8 < 5]
"""Those that never need the host."""


def run(
    folder: Path, chosen: list[int], **settings: Any
) -> tuple[list[list[tuple[Any, ...]]], dict[str, float]]:
    """Per request and choice tokens, end and logprobs; and the counters."""
    with LLM(
        folder,
        host=PluginHost.discover(PluginSettings(deny=("native-kernels", "triton-kernels"))),
        device="cpu",
        dtype="float64",
        skip_tokenizer_init=True,
        max_model_len=64,
        max_num_seqs=8,
        block_size=4,
        **settings,
    ) as llm:
        prompts = [{"prompt_token_ids": PROMPTS[index]} for index in chosen]
        found = []
        for _ in range(2):  # the second time with a warm prefix cache
            outputs = llm.generate(prompts, [params_of(index) for index in chosen], use_tqdm=False)
            found += [seen(output) for output in outputs]
        metrics = llm.get_metrics()
    return found, values(metrics) | values(metrics, "gauge")


def seen(output: RequestOutput) -> list[tuple[Any, ...]]:
    assert output.error is None
    choices = [(c.token_ids, c.finish_reason, c.stop_reason, rounded(c.logprobs)) for c in output.outputs]
    return [(rounded(output.prompt_logprobs),), *choices]


def rounded(positions: list[Any] | None) -> list[dict[int, tuple[float, int]]]:
    """Which requests run together, and so what chunks there are, differs: the last bits do too."""
    return [
        {token: (round(entry.logprob, 9), entry.rank) for token, entry in (position or {}).items()}
        for position in positions or ()
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("kind", ["plain", "mixed"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_num_batched_tokens": 7},
        {"num_kv_blocks": 17, "max_num_batched_tokens": 16},
        {"enable_prefix_caching": False, "max_num_batched_tokens": 16},
        {"enable_chunked_prefill": False, "max_num_batched_tokens": 64},
    ],
    ids=["ample", "chunks", "scarce", "no-cache", "whole"],
)
def test_results_are_those_of_the_plain_order(folder: Path, settings: dict[str, Any], kind: str) -> None:
    chosen = PLAIN if kind == "plain" else list(range(len(PROMPTS)))
    expected, plain = run(folder, chosen, async_scheduling=False, **settings)
    found, ahead = run(folder, chosen, async_scheduling=True, **settings)
    assert found == expected
    assert ahead["generation_tokens"] == plain["generation_tokens"]
    assert ahead["kv_cache_usage_perc"] == 0.0
    if "num_kv_blocks" not in settings:
        assert ahead["num_scheduled_tokens"] > plain["num_scheduled_tokens"], "no end came late"
    ends = {choice[1] for choices in expected for choice in choices[1:]}
    assert ends == {"stop", "length"}
    assert (ahead["num_preemptions"] > 0) == ("num_kv_blocks" in settings)
    assert (ahead["prefix_cache_hits"] > 0) == settings.get("enable_prefix_caching", True)
    assert ahead["num_forks"] > 0


def test_drafts_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="does not go with speculative_config"):
        LLM(
            folder,
            device="cpu",
            skip_tokenizer_init=True,
            async_scheduling=True,
            speculative_config={"method": "ngram", "num_speculative_tokens": 2},
        )
