"""The draft model in an engine: it agrees with a target that it equals, and its KV is what it would compute anew."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from equivalence import values
from speculation_cases import write_disturbed
from tokenizers import Tokenizer as Backend
from tokenizers import models

from quire import LLM, SamplingParams
from quire.api.errors import ConfigError, ModelNotFoundError, QuireError
from quire.api.speculation import DraftRequest
from quire.execution.drafting.draft_model import PagedDraftModel
from quire.testing.tiny_models import write_tiny_gpt2, write_tiny_llama

MAX_MODEL_LEN = 48
NUM_DRAFTS = 4


@dataclass(frozen=True)
class Case:
    """One way to run."""

    block_size: int = 4
    settings: Mapping[str, object] = field(default_factory=dict)
    num_choices: int = 1
    is_warm: bool = False

    def __str__(self) -> str:
        parts = [f"block={self.block_size}", *(f"{key}={value}" for key, value in self.settings.items())]
        parts += [f"n={self.num_choices}"] * (self.num_choices > 1) + ["warm"] * self.is_warm
        return ",".join(parts)


CASES = [
    Case(1, {"max_num_batched_tokens": 9}),
    Case(4, {"enable_prefix_caching": False}),
    Case(16, {"max_num_batched_tokens": 12}, num_choices=3),
    Case(4, {"num_kv_blocks": 15}, is_warm=True),
    Case(1, {"num_kv_blocks": 56}, num_choices=2),
    Case(4, {"num_kv_blocks": 17, "max_num_batched_tokens": 16}, num_choices=3),
    Case(16, {}, is_warm=True),
    Case(4, {"max_num_batched_tokens": 24}, num_choices=2, is_warm=True),
]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(
        tmp_path_factory.mktemp("other"), seed=5, num_hidden_layers=1, hidden_size=16, num_attention_heads=2
    )


@dataclass(frozen=True)
class Run:
    """Token ids of all choices, and counters."""

    tokens: list[list[int]]
    counters: dict[str, float]


def run(folder: Path, draft: Path | None, case: Case = CASES[1], **more: object) -> Run:
    """Generate greedy and sampled requests, half with a common prefix; a warm case has done it without drafts."""
    draw = random.Random(1)
    prefix = [draw.randrange(97) for _ in range(17)]
    prompts = [
        {"prompt_token_ids": prefix * (i % 2) + [draw.randrange(97) for _ in range(draw.randrange(1, 14))]}
        for i in range(10)
    ]
    styles: list[dict[str, object]] = [
        {"temperature": 0.0},
        {"top_p": 0.9},
        {"temperature": 0.6, "top_k": 30},
    ]
    common = {"max_tokens": 17, "ignore_eos": True, "n": case.num_choices}
    params = [SamplingParams(seed=i, **common, **styles[i % 3]) for i in range(10)]  # type: ignore[arg-type]  # checked there
    with engine(folder, draft, {"block_size": case.block_size, **case.settings, **more}) as llm:
        if case.is_warm:
            silent = [SamplingParams(max_tokens=9, temperature=0.0, max_draft_tokens=0) for _ in prompts]
            llm.generate(prompts, silent, use_tqdm=False)
        before = values(llm.get_metrics())
        outputs = llm.generate(prompts, params, use_tqdm=False)
        after = values(llm.get_metrics())
    tokens = [list(choice.token_ids) for output in outputs for choice in output.outputs]
    return Run(tokens, {name: after[name] - before.get(name, 0.0) for name in after})


def engine(folder: Path, draft: Path | None, settings: Mapping[str, object] | None = None) -> LLM:
    config = {"model": draft, "num_speculative_tokens": NUM_DRAFTS, "adaptive": False}
    keywords: dict[str, object] = {"skip_tokenizer_init": True, "max_num_seqs": 8, **(settings or {})}
    return LLM(
        folder,
        dtype="float64",
        max_model_len=MAX_MODEL_LEN,
        attention_backend="torch-paged",
        speculative_config=None if draft is None else config,
        **keywords,
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_draft_model_that_is_the_target_is_always_right(target: Path, case: Case) -> None:
    plain, drafted = run(target, None, case), run(target, target, case)
    assert drafted.tokens == plain.tokens
    counters = drafted.counters
    assert counters["spec_decode_num_draft_tokens"] > 2.5 * len(drafted.tokens)
    assert counters["spec_decode_num_accepted_tokens"] == counters["spec_decode_num_draft_tokens"]
    if "num_kv_blocks" in case.settings:
        assert counters["num_preemptions"] > 0, "nothing was preempted"
    if case.settings.get("enable_prefix_caching", True):
        assert counters["prefix_cache_hits"] > 0, "the prefix cache was not hit"
    if case.num_choices > 1:
        assert counters["num_forks"] > 0, "nothing was forked"


@pytest.mark.parametrize("case", CASES[2:6], ids=str)
def test_a_draft_model_that_is_often_right_changes_no_token(target: Path, case: Case) -> None:
    disturbed = write_disturbed(target, target.parent / "disturbed")
    plain, drafted = run(target, None, case), run(target, disturbed, case)
    assert drafted.tokens == plain.tokens
    rate = (
        drafted.counters["spec_decode_num_accepted_tokens"] / drafted.counters["spec_decode_num_draft_tokens"]
    )
    assert 0.2 < rate < 0.8


class Oracle:
    """Compares what a draft model holds and says with transformers, at every call."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        self.num_valid = self.num_missing = self.num_tokens = 0

    def check_slots(self, draft: PagedDraftModel, request: DraftRequest) -> None:
        """KV below the last token that counts as valid is what transformers computes."""
        runtime = draft._runtime
        assert runtime is not None
        num_known = len(request.token_ids) - 1
        if num_known == 0:
            return
        blocks = runtime.builder.block_ids(runtime.slot_of(request), num_known)
        is_valid = draft._slots._is_valid[blocks].reshape(-1)[:num_known]
        cache = self._forward(request.token_ids.tolist()[:-1]).past_key_values
        for layer, kv in zip(cache.layers, draft._kv_caches, strict=True):
            found = kv[torch.from_numpy(blocks)].flatten(0, 1)[:num_known]  # [n, 2 * K, D]
            expected = torch.cat([layer.keys[0], layer.values[0]]).transpose(0, 1)
            mask = torch.from_numpy(is_valid)
            torch.testing.assert_close(found[mask], expected[mask], rtol=1e-9, atol=1e-9)
        self.num_valid += int(is_valid.sum())
        self.num_missing += int((~is_valid).sum())

    def check_token(self, request: DraftRequest, draft_ids: Sequence[int], token_id: int | None) -> None:
        """The token of a greedy request is the likeliest one."""
        if token_id is None or request.params.temperature > 0.0:
            return
        logits = self._forward([*request.token_ids.tolist(), *draft_ids]).logits[0, -1]
        assert token_id == int(logits.argmax())
        self.num_tokens += 1

    def _forward(self, token_ids: list[int]):  # type: ignore[no-untyped-def]  # transformers' own
        with torch.inference_mode():
            return self.model(torch.tensor([token_ids]), use_cache=True)


@pytest.fixture
def oracle(other: Path, monkeypatch: pytest.MonkeyPatch) -> Oracle:
    """Watches all draft models, which are `other`."""
    found, next_tokens = Oracle(other), PagedDraftModel.next_tokens

    def watched(
        draft: PagedDraftModel, requests: Sequence[DraftRequest], drafts: Sequence[Sequence[int]]
    ) -> list[int | None]:
        if not any(drafts):
            for request in requests:
                found.check_slots(draft, request)
        tokens = next_tokens(draft, requests, drafts)
        for request, draft_ids, token_id in zip(requests, drafts, tokens, strict=True):
            found.check_token(request, draft_ids, token_id)
        return tokens

    monkeypatch.setattr(PagedDraftModel, "next_tokens", watched)
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_counts_as_valid_is_valid(target: Path, other: Path, case: Case, oracle: Oracle) -> None:
    result = run(target, other, case)
    assert result.counters["spec_decode_num_draft_tokens"] > 0
    assert oracle.num_valid > 500 and oracle.num_missing > 100 and oracle.num_tokens > 100


def test_kv_of_accepted_drafts_is_not_computed_again(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    num_computed: list[int] = []
    compute = PagedDraftModel._compute

    def counted(draft: PagedDraftModel, built):  # type: ignore[no-untyped-def]  # as it is called
        num_computed.append(built.batch.num_tokens)
        return compute(draft, built)

    monkeypatch.setattr(PagedDraftModel, "_compute", counted)
    params = SamplingParams(temperature=0.0, max_tokens=21, ignore_eos=True)
    with engine(target, target) as llm:
        llm.generate({"prompt_token_ids": [5] * 9}, params, use_tqdm=False)
    first, rest = num_computed[0], num_computed[1:]
    assert first == 10, "the prompt and a token"
    assert max(rest) == 2, "the last draft, which was only proposed, and the token after it"


@pytest.mark.parametrize("max_position_embeddings", [20, 48])
def test_a_shorter_context_ends_the_drafts(
    target: Path, tmp_path: Path, max_position_embeddings: int
) -> None:
    short = write_tiny_gpt2(tmp_path / "short", n_positions=max_position_embeddings)
    plain, drafted = run(target, None), run(target, short)
    assert drafted.tokens == plain.tokens
    expected = {20: (10, 200), 48: (300, 2000)}[max_position_embeddings]
    assert expected[0] < drafted.counters["spec_decode_num_draft_tokens"] < expected[1]


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, logger="quire"):
        yield caplog


def test_it_says_what_it_costs(target: Path, other: Path, messages: pytest.LogCaptureFixture) -> None:
    memory = 1_000_000
    engine(target, None, {"kv_cache_memory_bytes": memory, "block_size": 4, "max_num_seqs": 64}).close()
    engine(target, other, {"kv_cache_memory_bytes": memory, "block_size": 4, "max_num_seqs": 64}).close()
    # Two layers of 2 KV heads of 8, and one layer of 2 of 8, in float64, of which a key and a value each.
    [one, both] = [text for text in messages.messages if text.startswith("KV cache")]
    assert f"{memory // (2 * 2 * 2 * 8 * 8 * 4)} blocks" in one
    assert f"{memory // (3 * 2 * 2 * 8 * 8 * 4)} blocks" in both
    [said] = [text for text in messages.messages if text.startswith("draft model")]
    assert str(other) in said and "KV of 1024 bytes per block" in said and "up to 48 tokens" in said


def write_tokenizer(folder: Path, tokens: Sequence[str]) -> Path:
    Backend(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=tokens[0])).save(
        str(folder / "tokenizer.json")
    )
    return folder


def test_vocabularies_are_compared(tmp_path: Path) -> None:
    words = [f"w{i}" for i in range(90)]
    target = write_tokenizer(write_tiny_llama(tmp_path / "a"), words)
    padded = write_tokenizer(write_tiny_llama(tmp_path / "b", vocab_size=104), words)
    swapped = write_tokenizer(write_tiny_llama(tmp_path / "c"), [*words[:7], "w8", "w7", *words[9:]])
    longer = write_tokenizer(write_tiny_llama(tmp_path / "d"), [*words, "more"])
    text = {"skip_tokenizer_init": False}
    for one, two in ((target, padded), (padded, target)):
        plain, drafted = run(one, None, **text), run(one, two, **text)
        assert drafted.tokens == plain.tokens
        assert drafted.counters["spec_decode_num_draft_tokens"] > 0
    with pytest.raises(
        ConfigError, match=r"speculative_config\.model=.*token 'w8' is id 7 in the first and id 8 in"
    ):
        engine(target, swapped, text)
    with pytest.raises(
        ConfigError, match="token 'more' is id 90 in the first and missing in the second: take a"
    ):
        engine(target, longer, text)
    with pytest.raises(ConfigError, match=r"has 104 token ids, .* has 97, .*skip_tokenizer_init=False"):
        engine(target, padded)


@pytest.mark.parametrize(
    ("draft", "kind", "text"),
    [
        ("nowhere/at/all", ModelNotFoundError, r"speculative_config\.model='nowhere/at/all': .*no folder"),
        (".", ModelNotFoundError, r"speculative_config\.model='\.': .*no config\.json"),
        ("", ConfigError, r"speculative_config\.model='': .*at least 1 character"),
        (None, ConfigError, r"speculative_config\.model is required"),
    ],
)
def test_a_draft_model_that_is_not_there_is_named(
    target: Path, draft: str | None, kind: type[QuireError], text: str
) -> None:
    config = {"method": "draft-model", "model": draft}
    with pytest.raises(kind, match=f"(?is){text}"):
        LLM(target, skip_tokenizer_init=True, speculative_config=config)
