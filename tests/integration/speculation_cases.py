"""Ways to run with drafts, requests of many kinds, and what must come out: what comes without drafts."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path

import pytest
import torch
from equivalence import MAX_MODEL_LEN, make_jobs, values
from safetensors.torch import load_file, save_file
from speculation_drafters import Continuations, cheap_drafts, mix, speculation_plugin

from quire import LLM, SamplingParams
from quire.api.outputs import CompletionOutput, RequestOutput
from quire.api.speculation import DraftOutcome
from quire.plugins import PluginHost

DRAFTERS = ("ngram", "suffix", "draft-model", "oracle", "junk")
LENGTHS = (1, 3, 5, 8)
CHUNKS: tuple[int | None, ...] = (1, 7, 16, None)
CACHES = ("off", "cold", "warm")
BLOCK_SIZES = (1, 4, 16)
POOLS = ("ample", "scarce")
SAMPLING = ("greedy", "seeded")
TOLERANCE = 1e-9
_SETTINGS: Mapping[str, Mapping[str, object]] = {
    "ngram": {"prompt_lookup_min": 1, "prompt_lookup_max": 4},
    "suffix": {"suffix_decoding_max_spec_factor": 8.0},
}
_PAST_END = 8


@dataclass(frozen=True)
class Case:
    """One way to run.

    Attributes:
        chunk: token budget of a step. cache: of prefixes. pool: of KV blocks.
    """

    model: str
    sampling: str
    drafter: str
    max_drafts: int
    is_adaptive: bool
    chunk: int | None
    cache: str
    block_size: int
    pool: str

    def __str__(self) -> str:
        adaptive = "adaptive" if self.is_adaptive else "fixed"
        return (
            f"{self.model},{self.sampling},{self.drafter}-{self.max_drafts}-{adaptive},"
            f"chunk={self.chunk or 'off'},cache={self.cache},block={self.block_size},pool={self.pool}"
        )

    @property
    def is_possible(self) -> bool:
        """Not where so few requests run, or so few blocks are needed, that nothing is ever preempted."""
        return self.pool == "ample" or self.chunk is None or (self.chunk > 1 and self.block_size < 16)


def pairwise_cases(**fixed: Sequence[object]) -> list[Case]:
    """Cases in which every pair of two settings' values occurs; deterministic.

    Args:
        fixed: `model`, and what is to take these values only.
    """
    choices: dict[str, Sequence[object]] = {
        "model": (), "sampling": SAMPLING, "drafter": DRAFTERS, "max_drafts": LENGTHS, "is_adaptive": (False, True),
        "chunk": CHUNKS, "cache": CACHES, "block_size": BLOCK_SIZES, "pool": POOLS, **fixed,
    }  # fmt: skip
    draw = random.Random(0)

    def any_case() -> Case:
        while True:
            case = Case(**{name: draw.choice(options) for name, options in choices.items()})  # type: ignore[arg-type]  # each option is of its field's type
            if case.is_possible:
                return case

    remaining = {
        pair
        for (name, options), (other, others) in combinations(choices.items(), 2)
        for pair in product(product([name], options), product([other], others))
    } - {(("chunk", 1), ("pool", "scarce"))}
    chosen: list[Case] = []
    while remaining:
        best = max((any_case() for _ in range(150)), key=lambda case: len(_pairs(case) & remaining))
        chosen.append(best)
        remaining -= _pairs(best)
    return chosen


def _pairs(case: Case) -> set[tuple[tuple[str, object], ...]]:
    return set(combinations(vars(case).items(), 2))


@dataclass(frozen=True)
class Ask:
    """A request: its prompt and how it is sampled."""

    prompt: list[int]
    params: SamplingParams


_KINDS: tuple[dict[str, object], ...] = (
    {},
    {"max_draft_tokens": 0},
    {"logit_bias": {5: 40.0, 6: 40.0, 7: 39.5}},
    {"repetition_penalty": 0.4, "presence_penalty": -0.5, "frequency_penalty": 0.1},
    {"stop_token_ids": list(range(10, 24)), "min_tokens": 3},
    {"logprobs": 3},
    {"prompt_logprobs": 2, "logprobs": 0},
    {"n": 3, "logit_bias": {8: 40.0, 9: 40.0, 10: 39.0}},
    {"extra_args": {"nudge": {}}},
    {"stop_token_ids": list(range(30, 50)), "max_draft_tokens": 2},
    {"repetition_penalty": 1.4, "logprobs": 2, "extra_args": {"nudge": {}}},
    {"n": 2, "logprobs": 1},
)
_NEEDS_TEXT: dict[str, object] = {"stop": ["e ", "a", "the", "3"], "min_tokens": 1}
_FILTERS: tuple[dict[str, object], ...] = (
    {"temperature": 0.8},
    {"temperature": 0.6, "top_k": 9},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 0.9, "min_p": 0.05, "top_p": 0.95},
)


def make_asks(prompts: Sequence[list[int]], sampling: str, has_text: bool) -> list[Ask]:
    """Requests of all kinds, in turn.

    Args:
        has_text: whether the model has a tokenizer, so that stop strings can be asked for.
    """
    kinds = (*_KINDS, _NEEDS_TEXT) if has_text else _KINDS
    asks = []
    for index, prompt in enumerate(prompts):
        fields = dict(kinds[index % len(kinds)])
        fields["temperature"] = 0.0
        if sampling == "seeded":
            fields |= _FILTERS[index // len(kinds) % len(_FILTERS)] | {"seed": 1000 + index}
        ends = "stop_token_ids" not in fields and "stop" not in fields
        max_tokens = 16 + mix(index) % 17
        asks.append(Ask(prompt, SamplingParams(max_tokens=max_tokens, ignore_eos=ends, **fields)))  # type: ignore[arg-type]  # each value is of its field's type
    return asks


def random_prompts(count: int, seed: int = 0) -> list[list[int]]:
    """Prompts of random tokens, half of them with a common prefix; every third repeats itself."""
    prompts = [job.prompt for job in make_jobs(count, vocab_size=96, seed=seed)]
    return [(p[:12] * 5)[: len(p)] if index % 3 == 0 else p for index, p in enumerate(prompts)]


@dataclass(frozen=True)
class Prepared:
    """A model, requests, and what they give without drafts.

    Attributes:
        dtype: of the model. known: what the oracle is told. draft_folder: a model that often agrees.
    """

    dtype: str
    folder: Path | str
    has_text: bool
    asks: Sequence[Ask]
    expected: Sequence[RequestOutput]
    known: Continuations
    draft_folder: Path


def write_disturbed(folder: Path, target: Path) -> Path:
    """A copy of a checkpoint whose weights are each a little off, made if it is not there; the folder."""
    if not target.exists():
        target.mkdir()
        for file in folder.glob("*.json"):
            (target / file.name).write_bytes(file.read_bytes())
        draw = torch.Generator().manual_seed(0)
        tensors = load_file(folder / "model.safetensors")
        for tensor in tensors.values():
            noise = torch.randn(tensor.shape, generator=draw)
            tensor.add_((noise * 0.02 * tensor.float().std(correction=0)).to(tensor.dtype))
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def prepare(
    folder: Path | str, asks: Sequence[Ask], has_text: bool, draft_folder: Path, dtype: str = "float64"
) -> Prepared:
    """Generate without drafts: to the requests' ends, and for the oracle past them."""
    past_ends = [
        replace(
            ask.params, stop=None, stop_token_ids=None, min_tokens=0, ignore_eos=True, logprobs=None,
            prompt_logprobs=None, max_tokens=(ask.params.max_tokens or 0) + _PAST_END,
        )
        for ask in asks
    ]  # fmt: skip
    prompts = [{"prompt_token_ids": ask.prompt} for ask in asks]
    with open_llm(folder, has_text, {}, dtype=dtype) as llm:
        expected = llm.generate(prompts, [ask.params for ask in asks], use_tqdm=False)
        known: dict[tuple[int, ...], list[list[int]]] = {}
        for ask, output in zip(asks, llm.generate(prompts, past_ends, use_tqdm=False), strict=True):
            known.setdefault(tuple(ask.prompt), []).extend(choice.token_ids for choice in output.outputs)
    return Prepared(dtype, folder, has_text, asks, expected, known, draft_folder)


def open_llm(folder: Path | str, has_text: bool, known: Continuations, **settings: object) -> LLM:
    """An engine with the tests' drafters beside the installed ones."""
    host = PluginHost.discover(extra_plugins=[speculation_plugin(known)])
    given = {"max_model_len": MAX_MODEL_LEN, "max_num_seqs": 16, **settings}
    return LLM(folder, host=host, skip_tokenizer_init=not has_text, **given)  # type: ignore[arg-type]  # keywords by name


@dataclass(frozen=True)
class Outcome:
    """What came out, and what the engine counted.

    Attributes:
        drafts: verified drafts by whether they were "accepted", "partly" accepted or "rejected".
    """

    outputs: Sequence[RequestOutput]
    counters: Mapping[str, float]
    drafts: Mapping[str, int]


def run_case(prepared: Prepared, case: Case) -> Outcome:
    """Generate all in one engine; with a warm cache, twice."""
    config: dict[str, object] = {
        "method": case.drafter, "num_speculative_tokens": case.max_drafts, "adaptive": case.is_adaptive,
        **_SETTINGS.get(case.drafter, {}),
    }  # fmt: skip
    if case.drafter == "draft-model":
        config["model"] = str(prepared.draft_folder)
    settings: dict[str, object] = {"speculative_config": config, "dtype": prepared.dtype}
    if case.pool == "scarce":  # room for the longest request and a bit
        longest = max(len(ask.prompt) + (ask.params.max_tokens or 0) for ask in prepared.asks)
        settings["max_model_len"] = longest
        settings["num_kv_blocks"] = -(-longest // case.block_size) + max(1, 12 // case.block_size)
    if case.chunk is not None:
        settings["max_num_batched_tokens"] = case.chunk
        settings["max_num_seqs"] = (
            6 if case.pool == "scarce" else 4
        )  # else decodes alone would take the budget
    settings |= {
        "block_size": case.block_size,
        "enable_prefix_caching": case.cache != "off",
        "enable_chunked_prefill": case.chunk is not None,
    }
    prompts = [{"prompt_token_ids": ask.prompt} for ask in prepared.asks]
    params = [ask.params for ask in prepared.asks]
    with (
        cheap_drafts() if case.is_adaptive else nullcontext(),
        open_llm(prepared.folder, prepared.has_text, prepared.known, **settings) as llm,
        _watched(llm) as drafts,
    ):
        if case.cache == "warm":
            llm.generate(prompts, params, use_tqdm=False)
        drafts.clear()
        before = values(llm.get_metrics())
        outputs = llm.generate(prompts, params, use_tqdm=False)
        after = values(llm.get_metrics())
    return Outcome(outputs, {name: after[name] - before.get(name, 0.0) for name in after}, drafts)


@contextmanager
def _watched(llm: LLM) -> Iterator[Counter[str]]:
    """Count what the drafter is told."""
    drafter = llm.engine._executor.runner._speculator.drafter  # type: ignore[attr-defined]  # a look inside
    tell, counts = drafter.verified, Counter[str]()

    def counted(outcomes: Sequence[DraftOutcome]) -> None:
        for outcome in outcomes:
            is_whole = outcome.num_accepted == outcome.num_drafts
            counts["accepted" if is_whole else "partly" if outcome.num_accepted else "rejected"] += 1
        tell(outcomes)

    drafter.verified = counted
    yield counts


def assert_same(found: Sequence[RequestOutput], expected: Sequence[RequestOutput]) -> None:
    """Token for token, with text, ends and log-probabilities."""
    assert len(found) == len(expected)
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.error is None and other.error is None, (index, one.error, other.error)
        assert [_ends(choice) for choice in one.outputs] == [_ends(choice) for choice in other.outputs], index
        for choice, wanted in zip(one.outputs, other.outputs, strict=True):
            assert choice.cumulative_logprob == _near(wanted.cumulative_logprob)
            _assert_same_logprobs(choice.logprobs, wanted.logprobs)
        _assert_same_logprobs(one.prompt_logprobs, other.prompt_logprobs)


def num_certain(choice: CompletionOutput, margin: float) -> int:
    """How many tokens come before the first that is less than `margin` likelier, in nats, than another.

    Args:
        choice: greedy, with two logprobs.
    """
    for position, entries in enumerate(choice.logprobs or ()):
        first, second = sorted((entry.logprob for entry in entries.values()), reverse=True)[:2]
        if first - second <= margin:
            return position
    return len(choice.token_ids)


def _ends(choice: CompletionOutput) -> tuple[object, ...]:
    return choice.index, choice.token_ids, choice.text, choice.finish_reason, choice.stop_reason


def _near(value: float | None) -> object:
    return None if value is None else pytest.approx(value, rel=0, abs=TOLERANCE)


def _assert_same_logprobs(found: Sequence[object] | None, expected: Sequence[object] | None) -> None:
    if found is None or expected is None:
        assert found is expected
        return
    assert len(found) == len(expected)
    for position, (one, other) in enumerate(zip(found, expected, strict=True)):
        if one is None or other is None:
            assert one is other, position
            continue
        assert isinstance(one, dict) and isinstance(other, dict)
        assert [(key, entry.rank) for key, entry in one.items()] == [
            (key, entry.rank) for key, entry in other.items()
        ], position
        for key, entry in one.items():
            assert entry.logprob == _near(other[key].logprob), (position, key)


def assert_exercised(case: Case, outcome: Outcome) -> None:
    """Check by counters that the case did what its name says."""
    seen, drafts = outcome.counters, outcome.drafts
    if case.chunk == 1:
        assert seen["spec_decode_num_drafts"] == 0, "drafts beside a budget of one token"
    else:
        assert seen["num_forks"] > 0
        assert drafts["rejected"] > 0, "no draft was rejected"
        is_left_out = case.is_adaptive and case.drafter == "draft-model"  # where it is seldom right
        assert drafts["accepted"] > 0 or case.drafter == "junk" or is_left_out, "no draft was accepted"
        assert seen["spec_decode_num_drafts"] >= sum(drafts.values()) > 0
    if case.chunk != 1 and case.drafter == "oracle" and case.max_drafts > 1:
        assert drafts["partly"] > 0, "no draft was accepted in part"
        # A stop token within accepted drafts drops those after it.
        is_cut = seen["spec_decode_num_accepted_tokens"] > seen["spec_decode_num_steps_saved"]
        is_long = case.max_drafts > 3 and case.chunk != 7 and not case.is_adaptive
        assert is_cut or not is_long, "no stop within accepted drafts"
    assert (seen["num_preemptions"] > 0) == (case.pool == "scarce")
    if case.cache == "off":
        assert seen["prefix_cache_hits"] == 0
    elif case.pool == "ample":
        assert seen["prefix_cache_hits"] > 0, "the prefix cache was not hit"
