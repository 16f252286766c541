"""The runner with steps that are launched and read later, on a device whose memory is apart from the host's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from slow_device import SlowDevice
from torch.utils._python_dispatch import TorchDispatchMode

from quire import LLM, SamplingParams
from quire.api.config import PluginSettings
from quire.api.request import FinishReason
from quire.api.step import StepPlan
from quire.execution import batch_builder
from quire.execution.ahead import LaunchedStep, TokensAhead
from quire.execution.executor import CompletedStep
from quire.execution.runner import ModelRunner
from quire.plugins import PluginHost
from quire.testing.tiny_models import write_tiny_llama

PROMPTS = [[5, 4, 3], [7] * 11, [1], list(range(3, 30)), [5, 4, 3, 5, 4, 3, 5, 4]]
GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
RANDOM = SamplingParams(temperature=1.0, top_k=40, top_p=0.9, seed=3, max_tokens=8, ignore_eos=True, n=2)


class NoHostReads(TorchDispatchMode):
    """Refuses what makes the host wait for a device."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function)
        assert "_local_scalar_dense" not in name and "nonzero" not in name, name
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def make_llm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., LLM]]:
    made: list[LLM] = []

    def make(device: SlowDevice | None = None, **settings: Any) -> LLM:
        monkeypatch.setattr(batch_builder, "transfers_of", lambda _: device)
        made.append(
            LLM(
                folder,
                host=PluginHost.discover(PluginSettings(deny=("native-kernels", "triton-kernels"))),
                device="cpu",
                dtype="float32",
                skip_tokenizer_init=True,
                max_model_len=64,
                max_num_batched_tokens=12,
                max_num_seqs=7,
                block_size=4,
                **settings,
            )
        )
        return made[-1]

    yield make
    for llm in made:
        llm.close()


def tokens(llm: LLM, params: list[SamplingParams]) -> list[list[list[int]]]:
    prompts = [{"prompt_token_ids": ids} for ids in PROMPTS]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    return [[choice.token_ids for choice in output.outputs] for output in outputs]


def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[StepPlan, object]]:
    """Plans that are launched from now on, and what became of them."""
    seen: list[tuple[StepPlan, object]] = []
    launch = ModelRunner.launch

    def noted(self: ModelRunner, plan: StepPlan) -> Any:
        pending = launch(self, plan)
        seen.append((plan, pending))
        return pending

    monkeypatch.setattr(ModelRunner, "launch", noted)
    return seen


@pytest.mark.parametrize("params", [GREEDY, RANDOM], ids=["greedy", "random"])
def test_tokens_of_a_slow_device(
    make_llm: Callable[..., LLM], params: SamplingParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tokens(make_llm(), [params] * 5)
    seen = launched(monkeypatch)
    device = SlowDevice()
    assert tokens(make_llm(device, async_scheduling=True), [params] * 5) == expected
    assert len(seen) > 8 and all(type(pending) is LaunchedStep for _, pending in seen)
    assert device.num_to_host == len(seen)


def test_a_decode_step_is_one_copy_to_the_device_and_one_back(make_llm: Callable[..., LLM]) -> None:
    device = SlowDevice()
    engine = make_llm(device, async_scheduling=True).engine
    names = [engine.add_request(prompt, RANDOM) for prompt in PROMPTS[:2]]
    for _ in range(4):
        engine.step()
    copies, reads = len(device.to_device_bytes), device.num_to_host
    for number in range(1, 4):
        waited = len(device.waits)
        engine.step()
        assert (len(device.to_device_bytes) - copies, device.num_to_host - reads) == (number, number)
        # the copy of two steps before, which has ended long ago, and the tokens of the step before
        assert len(device.waits) - waited == 2
    for name in names:
        engine.discard(name)


def test_building_and_sampling_a_greedy_step_reads_nothing_on_the_host(
    make_llm: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_llm(SlowDevice(), async_scheduling=True).engine
    engine.add_request(PROMPTS[0], GREEDY, request_id="a")
    checked: list[str] = []

    def without_reads(name: str) -> None:
        call = getattr(TokensAhead, name)

        def watched(*args: Any) -> Any:
            checked.append(name)
            with NoHostReads(), monkeypatch.context() as patch:
                patch.setattr(torch.Tensor, "tolist", None)
                return call(*args)

        monkeypatch.setattr(TokensAhead, name, watched)

    without_reads("build")
    without_reads("launch")
    while not engine.is_finished("a"):
        engine.step()
    assert engine.output("a").error is None
    assert checked == ["build", "launch"] * 8


@pytest.mark.parametrize(
    "special",
    [
        {"presence_penalty": 1.0},
        {"min_tokens": 4, "stop_token_ids": [5]},
        {"logit_bias": {3: 2.0}},
        {"logprobs": 2},
        {"prompt_logprobs": 1},
    ],
    ids=lambda special: next(iter(special)),
)
def test_a_step_that_needs_the_host_is_run_to_its_end(
    make_llm: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch, special: dict[str, Any]
) -> None:
    """Beside requests that do not, before and after it."""
    params = [
        GREEDY,
        SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True, **special),
        RANDOM,
        GREEDY,
        RANDOM,
    ]
    expected = tokens(make_llm(), params)
    seen = launched(monkeypatch)
    assert tokens(make_llm(SlowDevice(), async_scheduling=True), params) == expected
    kinds = {type(pending) for _, pending in seen}
    assert kinds == {LaunchedStep, CompletedStep}


def test_drafts_are_verified_in_the_plain_order(make_llm: Callable[..., LLM]) -> None:
    config = {"method": "ngram", "num_speculative_tokens": 2}
    llm = make_llm(speculative_config=config)
    assert not llm.engine._executor.is_ahead


def test_a_slot_that_is_taken_over_before_its_token_is_read(make_llm: Callable[..., LLM]) -> None:
    """A victim of a failed row is preempted while its next row runs, and its slot goes to another request."""
    llm = make_llm(async_scheduling=True)
    engine = llm.engine
    runner, scheduler = engine._executor.runner, engine._scheduler
    engine.add_request([5, 4, 3], GREEDY, request_id="a")
    plan = scheduler.schedule()
    pending = runner.launch(plan)
    state = scheduler._requests.find("a")
    scheduler._requests.preempt(state)
    scheduler._in_flight[plan.step_id][0].is_discarded = True
    state.request.num_in_flight = 0
    scheduler._requests.end(state, FinishReason.ABORT, None, None)
    engine.add_request([9, 8], GREEDY, request_id="b")
    after = scheduler.schedule()
    assert after.assignments[0].slot == plan.rows[0].slot
    late = runner.launch(after)
    pending.result()
    assert runner._builder.num_known(after.assignments[0].slot) == 2, "the old request's token was noted"
    late.result()
    assert runner._builder.num_known(after.assignments[0].slot) == 3
