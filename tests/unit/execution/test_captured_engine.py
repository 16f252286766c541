"""Engines whose steps are replayed: the bits of engines that run them call by call, whatever happens."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from quire import LLM, SamplingParams
from quire.api.batch import DeviceInfo, ForwardBatch
from quire.api.outputs import RequestOutput
from quire_kernels.native import bfloat16

REFUSAL = bfloat16.bfloat16_refusal(DeviceInfo("cpu"), "bfloat16")
if REFUSAL is not None:
    pytest.skip(REFUSAL, allow_module_level=True)

from quire_kernels.paged_attention.native import NativePagedAttention  # noqa: E402  # the same
from quire_kernels.replay.program import Program  # noqa: E402  # it binds the library when imported

SETTINGS: dict[str, Any] = {
    "dtype": "bfloat16",
    "num_kv_blocks": 400,
    "max_num_seqs": 64,
    "max_num_batched_tokens": 128,
    "max_model_len": 96,
    "block_size": 4,
    "skip_tokenizer_init": True,
}
DRAW = random.Random(0)
PREFIX = [DRAW.randrange(90) for _ in range(18)]
PROMPTS = [
    (PREFIX if index % 3 == 0 else []) + [DRAW.randrange(90) for _ in range(1 + 7 * index % 60)]
    for index in range(64)
]
GREEDY = SamplingParams(temperature=0.0, max_tokens=9, ignore_eos=True, logprobs=3)
SEEDED = SamplingParams(temperature=1.0, seed=3, n=3, max_tokens=7, ignore_eos=True, logprobs=0)
READ = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True, prompt_logprobs=2)

Values = list[tuple[list[int], list[list[tuple[int, float]]]]]


class Runs:
    """Sizes of the replayed programs, in their order."""

    def __init__(self) -> None:
        self.layers: list[int] = []
        self.heads: list[int] = []


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    seen = Runs()
    run = Program.run

    def counted(self: Program, num_tokens: int, *args: Any, **keywords: Any) -> torch.Tensor:
        (seen.heads if keywords.get("given") is not None else seen.layers).append(num_tokens)
        return run(self, num_tokens, *args, **keywords)

    monkeypatch.setattr(Program, "run", counted)
    return seen


@pytest.fixture
def keep_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def values(outputs: Sequence[RequestOutput]) -> list[Values]:
    """Tokens and exact log-probabilities of every choice, and those of the prompt."""
    found: list[Values] = []
    for output in outputs:
        choices: Values = [([], pairs(output.prompt_logprobs))]
        choices += [(list(choice.token_ids), pairs(choice.logprobs)) for choice in output.outputs]
        found.append(choices)
    return found


def pairs(steps: Sequence[Any] | None) -> list[list[tuple[int, float]]]:
    return [[(token, entry.logprob) for token, entry in (step or {}).items()] for step in steps or []]


def generate(llm: LLM, prompts: Sequence[list[int]], params: SamplingParams) -> list[Values]:
    given: Any = [{"prompt_token_ids": ids} for ids in prompts]
    return values(llm.generate(given, params, use_tqdm=False))


def make(*, is_eager: bool = False, **more: Any) -> LLM:
    return LLM("tiny", enforce_eager=is_eager, **{**SETTINGS, **more})


def test_the_log_says_what_became_of_it(caplog: pytest.LogCaptureFixture, runs: Runs) -> None:
    caplog.set_level(logging.INFO, "quire")
    with make() as llm:
        assert "steps: replayed by native-replay: " in caplog.text
        runs.layers.clear()
        generate(llm, PROMPTS[:1], GREEDY)
    assert runs.layers == [len(PROMPTS[0])] + [1] * 8
    caplog.clear()
    runs.layers.clear()
    with make(is_eager=True) as llm:
        generate(llm, PROMPTS[:1], GREEDY)
    assert "steps: call by call (enforce_eager)" in caplog.text and not runs.layers
    caplog.clear()
    with make(plugins={"deny": ["native-kernels"]}) as llm:
        generate(llm, PROMPTS[:1], GREEDY)
    assert "steps: call by call (" in caplog.text and not runs.layers


@pytest.mark.parametrize(
    "params", [GREEDY, SEEDED, READ], ids=["greedy", "three seeded choices", "prompt_logprobs"]
)
def test_batches_of_any_size_give_the_same_bits(params: SamplingParams, runs: Runs) -> None:
    """Prompts in parts beside decodes, shared prefixes, forks that copy blocks, and waiting requests."""
    sizes = (1, 2, 5, 17, 64)
    with make(is_eager=True) as llm:
        expected = [generate(llm, PROMPTS[:size], params) for size in sizes]
    assert not runs.layers
    with make() as llm:
        runs.layers.clear()
        runs.heads.clear()
        for size, wanted in zip(sizes, expected, strict=True):
            assert generate(llm, PROMPTS[:size], params) == wanted, f"{size} requests"
        counts = {metric.name: metric.value for metric in llm.get_metrics() if not metric.labels}
    assert params is READ or counts["quire:prefix_cache_hits"] > 0
    assert len(runs.layers) > 20 and max(runs.layers) == 128 and min(runs.layers) <= 3
    assert max(runs.heads) > 10 and min(runs.heads) <= 3


@pytest.mark.parametrize(
    "config",
    [
        {"method": "ngram", "num_speculative_tokens": 3, "adaptive": False},
        {"method": "draft-model", "model": "tiny", "num_speculative_tokens": 2, "adaptive": False},
    ],
    ids=lambda config: str(config["method"]),
)
def test_speculation(config: dict[str, Any], runs: Runs) -> None:
    """A draft model has the target's attention backend, and batches of its own."""
    prompts = [ids + ids[:9] + ids[:9] for ids in PROMPTS[3:9]]
    with make(is_eager=True, speculative_config=config) as llm:
        expected = generate(llm, prompts, SEEDED)
    with make(speculative_config=config) as llm:
        runs.layers.clear()
        runs.heads.clear()
        found = generate(llm, prompts, SEEDED)
        counts = {metric.name: metric.value for metric in llm.get_metrics() if not metric.labels}
    assert found == expected
    assert runs.layers and max(runs.heads) > 3 * len(prompts), "no step with drafts was replayed"
    assert sum(value for name, value in counts.items() if "draft" in name and "tokens" in name) > 0


def test_one_request_with_drafts(runs: Runs) -> None:
    config = {"method": "draft-model", "model": "tiny", "num_speculative_tokens": 3, "adaptive": False}
    prompt = [5, 6, 7, 8, 9, 5, 6, 7, 8, 9, 5, 6, 7]
    with make(is_eager=True, max_num_seqs=1, speculative_config=config) as llm:
        expected = generate(llm, [prompt], GREEDY)
    with make(max_num_seqs=1, speculative_config=config) as llm:
        runs.heads.clear()
        assert generate(llm, [prompt], GREEDY) == expected
    assert max(runs.heads) > 1


def test_other_numbers_of_threads_between_steps(runs: Runs, keep_threads: None) -> None:
    def run(llm: LLM) -> list[Values]:
        names = [llm.engine.add_request(ids, GREEDY) for ids in PROMPTS[:6]]
        count = 0
        while llm.engine.has_unfinished:
            torch.set_num_threads((1, 3, 2, 4)[count % 4])
            llm.engine.step()
            count += 1
        torch.set_num_threads(1)
        found = values([llm.engine.output(name) for name in names])
        for name in names:
            llm.engine.discard(name)
        return found

    with make(is_eager=True) as llm:
        expected = run(llm)
    with make() as llm:
        runs.layers.clear()
        assert run(llm) == expected
    assert len(runs.layers) >= 9


def test_long_and_shared_contexts(monkeypatch: pytest.MonkeyPatch, runs: Runs, keep_threads: None) -> None:
    """Contexts that threads share, and beginnings that rows share: layers are told of them anew in each step."""
    torch.set_num_threads(3)
    more = {"max_model_len": 700, "num_kv_blocks": 900, "max_num_batched_tokens": 700}
    shared = [DRAW.randrange(90) for _ in range(160)]
    prompts = [shared + PROMPTS[index] for index in range(6)] + [PROMPTS[1] * 60, PROMPTS[2] * 40]
    prompts = [ids[:650] for ids in prompts]
    seen = {"num_shared": 0, "num_merges": 0, "num_pieces": 0}
    prepare = NativePagedAttention.prepare

    def counted(self: NativePagedAttention, batch: ForwardBatch) -> Any:
        step = prepare(self, batch)
        for name in seen:
            seen[name] += getattr(step.arguments, name)
        return step

    with make(is_eager=True, **more) as llm:
        expected = generate(llm, prompts, GREEDY)
    with make(**more) as llm:
        runs.layers.clear()
        monkeypatch.setattr(NativePagedAttention, "prepare", counted)
        assert generate(llm, prompts, GREEDY) == expected
    assert len(runs.layers) > 9 and all(seen.values()), seen


def test_an_interrupt_leaves_a_right_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    with make(is_eager=True) as llm:
        expected = generate(llm, PROMPTS[:5], SEEDED)
    with make() as llm:
        real, count = Program.run, 0

        def interrupted(self: Program, *args: Any, **keywords: Any) -> torch.Tensor:
            nonlocal count
            count += 1
            result = real(self, *args, **keywords)
            if count in places:
                raise KeyboardInterrupt
            return result

        monkeypatch.setattr(Program, "run", interrupted)
        for places in ({1}, {2}, {5}, {8}):
            count = 0
            with pytest.raises(KeyboardInterrupt):
                generate(llm, PROMPTS[:5], SEEDED)
            assert not llm.engine.has_unfinished
            places = set()
            llm.reset_prefix_cache()
            assert generate(llm, PROMPTS[:5], SEEDED) == expected


def test_two_engines_in_one_process(runs: Runs) -> None:
    with make(is_eager=True) as llm:
        expected = generate(llm, PROMPTS[:6], GREEDY)
    with make() as one, make(block_size=8, max_num_seqs=4) as other:
        runs.layers.clear()
        names = [(llm, llm.engine.add_request(ids, GREEDY)) for ids in PROMPTS[:6] for llm in (one, other)]
        while one.engine.has_unfinished or other.engine.has_unfinished:
            for llm in (one, other):
                if llm.engine.has_unfinished:
                    llm.engine.step()
        found = values([llm.engine.output(name) for llm, name in names])
    assert [tokens for tokens, _ in found[0]] == [tokens for tokens, _ in expected[0]]
    assert found[::2] == expected
    assert [tokens_of(each) for each in found[1::2]] == [tokens_of(each) for each in expected]
    assert len(runs.layers) > 18


def tokens_of(choices: Values) -> list[list[int]]:
    return [tokens for tokens, _ in choices]
