"""Plugins turned off and on again while an engine runs requests."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
from equivalence import values
from extension_plugins import (
    HistoryFactory,
    LastFirst,
    RecordingObserver,
    forced,
    history_plugin,
    make_plugin,
    open_llm,
    policy_plugin,
)

from quire import LLM, SamplingParams
from quire.api.config import PluginSettings
from quire.api.errors import PluginError, SamplingParamsError
from quire.api.extensions import EngineObserver, StepReport
from quire.api.specs import DrafterSpec, LogitsProcessorSpec, OpSpec, PluginInfo
from quire.api.speculation import Drafter, DraftRequest
from quire.plugins import PluginHost
from quire.testing.tiny_models import write_tiny_llama

PROMPT = list(range(3, 24))
GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
OWN = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, extra_args={"history": {"offset": 3}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("llama"), max_position_embeddings=128)


def finish(llm: LLM, *names: str) -> list[list[int]]:
    while not all(llm.engine.is_finished(name) for name in names):
        llm.engine.step()
    return [llm.engine.pop_output(name).outputs[0].token_ids for name in names]


def hits(llm: LLM) -> float:
    return values(llm.get_metrics())["prefix_cache_hits"]


def test_requests_with_a_disabled_processor_finish_with_it_and_new_ones_are_refused(folder: Path) -> None:
    # So few blocks that running requests are preempted and bound again after the switch.
    with open_llm(folder, history_plugin(), num_kv_blocks=20, max_model_len=64) as llm:
        prompts = [PROMPT[index:] + [index] * 5 for index in range(8)]
        params = SamplingParams(
            temperature=0.0, max_tokens=24, ignore_eos=True, extra_args={"history": {"offset": 3}}
        )
        names = [llm.engine.add_request(prompt, params) for prompt in prompts]
        for _ in range(3):
            llm.engine.step()
        llm.plugins.disable("history")
        llm.plugins.disable("history")
        preempted = values(llm.get_metrics())["num_preemptions"]
        with pytest.raises(
            SamplingParamsError, match="'history': its plugin 'history' is disabled; enable it"
        ):
            llm.engine.add_request(PROMPT, OWN)
        assert finish(llm, *names) == [forced(prompt, 24, 3) for prompt in prompts]
        assert values(llm.get_metrics())["num_preemptions"] > preempted
        llm.plugins.enable("history")
        llm.plugins.enable("history")
        assert finish(llm, llm.engine.add_request(PROMPT, OWN)) == [forced(PROMPT, 8, 3)]


def test_one_that_is_always_on_stops_with_the_switch_for_new_requests_only(folder: Path) -> None:
    class Always(HistoryFactory):
        def for_request(self, arguments: object, params: object) -> object:  # type: ignore[override]  # looser on purpose
            return super().for_request(arguments or {"offset": 7}, params)

    specs = [LogitsProcessorSpec("history", Always, is_always_on=True)]
    with open_llm(folder) as plain:
        expected = finish(plain, plain.engine.add_request(PROMPT, GREEDY))
    with open_llm(folder, make_plugin("always", register_logits_processors=lambda: specs)) as llm:
        before = llm.engine.add_request(PROMPT, GREEDY)
        llm.plugins.disable("always")
        after = llm.engine.add_request(PROMPT, GREEDY)
        llm.plugins.enable("always")
        last = llm.engine.add_request(PROMPT, GREEDY)
        on = forced(PROMPT, 8, 7)
        assert finish(llm, before, after, last) == [on, *expected, on]


def test_the_fingerprint_changes_and_returns_and_so_do_prefix_hits(folder: Path) -> None:
    with open_llm(folder, history_plugin()) as llm:
        first = llm.generate([PROMPT], GREEDY, use_tqdm=False)[0]
        on = llm.plugins.fingerprint
        assert first.metadata["fingerprint"] == on and "history" in first.metadata["plugins"].split(",")
        llm.plugins.disable("history")
        off = llm.plugins.fingerprint
        assert off != on
        known = hits(llm)
        second = llm.generate([PROMPT], GREEDY, use_tqdm=False)[0]
        assert hits(llm) == known, "a block of another fingerprint was hit"
        assert second.metadata["fingerprint"] == off
        assert "history" not in second.metadata["plugins"].split(",")
        llm.generate([PROMPT], GREEDY, use_tqdm=False)
        assert hits(llm) > known
        llm.plugins.enable("history")
        assert llm.plugins.fingerprint == on
        known = hits(llm)
        third = llm.generate([PROMPT], GREEDY, use_tqdm=False)[0]
        assert hits(llm) - known == 20  # five blocks of four; the last token is computed
        assert [o.outputs[0].token_ids for o in (second, third)] == [first.outputs[0].token_ids] * 2
        llm.engine._scheduler.check_invariants()
    with open_llm(folder) as plain:
        assert plain.plugins.fingerprint == off, "as if it had never been loaded"


def test_what_cannot_change_outputs_leaves_fingerprint_and_hits(folder: Path) -> None:
    observer = RecordingObserver()
    plugin = make_plugin("watch", create_observers=lambda: [observer])
    with open_llm(folder, plugin) as llm:
        llm.generate([PROMPT], GREEDY, use_tqdm=False)
        before = llm.plugins.fingerprint, hits(llm)
        llm.plugins.disable("watch")
        llm.generate([PROMPT], GREEDY, use_tqdm=False)
        assert llm.plugins.fingerprint == before[0] and hits(llm) > before[1]


def test_observers_stop_at_once_and_go_on(folder: Path) -> None:
    observer, other = RecordingObserver(), RecordingObserver()
    plugins = [
        make_plugin("watch", create_observers=lambda: [observer]),
        make_plugin("other", create_observers=lambda: [other]),
    ]
    with open_llm(folder, *plugins) as llm:
        name = llm.engine.add_request(PROMPT, GREEDY)
        llm.engine.step()
        llm.plugins.disable("watch")
        seen = len(observer.events)
        llm.engine.step()
        llm.engine.step()
        assert len(observer.events) == seen == 2
        llm.plugins.enable("watch")
        finish(llm, name)
        kinds = [kind for kind, _ in observer.events]
        assert kinds == ["added", "step", *["step"] * 4, "finished", "step"]
        assert len(other.of("step")) == 8


def test_a_detached_observer_stays_detached(folder: Path) -> None:
    class Bad(EngineObserver):
        num_calls = 0

        def step_finished(self, step: StepReport) -> None:
            self.num_calls += 1
            raise RuntimeError("planted")

    bad = Bad()
    with open_llm(folder, make_plugin("bad", create_observers=lambda: [bad])) as llm:
        llm.generate([PROMPT], GREEDY, use_tqdm=False)
        llm.plugins.disable("bad")
        llm.plugins.enable("bad")
        llm.generate([PROMPT], GREEDY, use_tqdm=False)
        assert bad.num_calls == 1


def test_a_disabled_policy_gives_way_to_fcfs_and_comes_back(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_llm(folder, policy_plugin(), scheduling_policy="lifo", max_num_seqs=1) as llm:
        engine = llm.engine
        names = [engine.add_request(PROMPT[index:], GREEDY) for index in range(6)]
        ended: list[str] = []

        def run_until(count: int) -> None:
            while len(ended) < count:
                ended.extend(name for name in engine.step() if engine.is_finished(name))

        run_until(1)
        with caplog.at_level(logging.WARNING):
            llm.plugins.disable("lifo")
        assert "scheduling policy: fcfs from now on, was lifo" in caplog.text
        assert llm.plugins.snapshot.policy == "fcfs"
        engine._scheduler.check_invariants()
        run_until(3)
        llm.plugins.enable("lifo")
        run_until(6)
        assert ended == [names[index] for index in (5, 0, 1, 4, 3, 2)]


def test_the_order_of_running_requests_is_rebuilt(folder: Path) -> None:
    with open_llm(folder, policy_plugin(), scheduling_policy="lifo") as llm:
        engine = llm.engine
        names = [engine.add_request(PROMPT[index:], GREEDY) for index in range(3)]
        engine.step()
        running = engine._scheduler._requests.running
        assert [state.request.request_id for state in running] == names[::-1]
        llm.plugins.disable("lifo")
        assert [state.request.request_id for state in running] == names
        engine._scheduler.check_invariants()
        llm.plugins.enable("lifo")
        assert [state.request.request_id for state in running] == names[::-1]
        finish(llm, *names)


def test_a_policy_that_fails_while_it_comes_back_costs_that_request(folder: Path) -> None:
    class Sometimes(LastFirst):
        is_bad = False

        def key(self, request: object, arrival_index: int) -> tuple[float, ...]:
            if Sometimes.is_bad and arrival_index == 1:
                raise RuntimeError("planted")
            return (-arrival_index,)

    with open_llm(folder, policy_plugin(policy=Sometimes), scheduling_policy="lifo") as llm:
        names = [llm.engine.add_request(PROMPT[index:], GREEDY) for index in range(3)]
        llm.engine.step()
        llm.plugins.disable("lifo")
        Sometimes.is_bad = True
        llm.plugins.enable("lifo")
        while not all(llm.engine.is_finished(name) for name in names):
            llm.engine.step()
        reasons = [llm.engine.pop_output(name).outputs[0].finish_reason for name in names]
        assert reasons == ["length", "error", "length"]
        llm.engine._scheduler.check_invariants()


class RepeatingDrafter(Drafter):
    """The last token again; notes for how many requests it was asked."""

    def __init__(self) -> None:
        self.num_asked = 0

    def propose(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        self.num_asked += len(requests)
        return [[int(request.token_ids[-1])] for request in requests]


def test_a_drafter_is_let_go_and_comes_back(folder: Path) -> None:
    drafter = RepeatingDrafter()
    specs = [DrafterSpec("guess", lambda context: drafter)]
    plugin = make_plugin("drafts", register_drafters=lambda: specs)
    config = {"method": "guess", "adaptive": False}
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    with open_llm(folder, plugin, speculative_config=config) as llm:
        assert "guess" in llm.plugins.snapshot.drafters
        expected = llm.generate([[1, 2, 3]], params, use_tqdm=False)[0].outputs[0].token_ids
        num_asked = drafter.num_asked
        assert num_asked > 0
        llm.plugins.disable("drafts")
        assert "guess" not in llm.plugins.snapshot.drafters and llm.plugins.disabled == {"drafts"}
        assert llm.generate([[1, 2, 3]], params, use_tqdm=False)[0].outputs[0].token_ids == expected
        assert drafter.num_asked == num_asked
        llm.plugins.enable("drafts")
        assert "guess" in llm.plugins.snapshot.drafters
        assert llm.generate([[1, 2, 3]], params, use_tqdm=False)[0].outputs[0].token_ids == expected
        assert drafter.num_asked > num_asked


@pytest.mark.parametrize(
    ("hooks", "words"),
    [
        ({}, "brought none of what can be"),
        (
            {"register_ops": lambda: [OpSpec("twice", "(Tensor x) -> Tensor", lambda x: x)]},
            "it brought the op twice, with which the engine was built",
        ),
        ({"prepare_model": lambda model: None}, "changes to the loaded model"),
        (
            {"open_checkpoint": lambda path: None, "create_observers": lambda: [RecordingObserver()]},
            "a reader of checkpoints",
        ),
        (
            {
                "register_ops": lambda: [OpSpec("twice", "(Tensor x) -> Tensor", lambda x: x)],
                "create_observers": lambda: [RecordingObserver()],
            },
            "the op twice",
        ),
    ],
)
def test_what_the_model_was_built_with_stays(folder: Path, hooks: dict[str, object], words: str) -> None:
    with open_llm(folder, make_plugin("fixed", **hooks)) as llm:  # type: ignore[arg-type]  # hooks by name
        with pytest.raises(PluginError, match=f"plugin 'fixed' .*{words}.*--no-plugin fixed"):
            llm.plugins.disable("fixed")
        llm.plugins.enable("fixed")
        assert not llm.plugins.disabled


def test_models_core_and_unknown_names_are_refused(folder: Path) -> None:
    with open_llm(folder, history_plugin()) as llm:
        with pytest.raises(PluginError, match="plugin 'llama'.*the architecture LlamaForCausalLM"):
            llm.plugins.disable("llama")
        with pytest.raises(PluginError, match="plugin 'core'"):
            llm.plugins.disable("core")
        for ask in (llm.plugins.disable, llm.plugins.enable):
            with pytest.raises(PluginError, match="'histori'.*did you mean 'history'"):
                ask("histori")


def test_a_plugin_that_the_engine_was_started_without(folder: Path) -> None:
    host = PluginHost.discover(PluginSettings(deny=("gpt2",)))
    with LLM(folder, host=host, skip_tokenizer_init=True, dtype="float32") as llm:
        llm.plugins.disable("gpt2")  # it is off
        with pytest.raises(PluginError, match="'gpt2' was not loaded.*denied.*build a new engine"):
            llm.plugins.enable("gpt2")


def test_a_switch_asked_for_within_a_step_waits_for_its_end(folder: Path) -> None:
    """A plugin of the same process may reach the engine; the step goes on with what it began with."""
    seen: list[frozenset[str]] = []

    class Inside(EngineObserver):
        def step_finished(self, step: StepReport) -> None:
            if step.step_id == 1:
                llm.plugins.disable("watch")
                llm.plugins.disable("history")
            seen.append(llm.plugins.snapshot.disabled)

    observer = RecordingObserver()
    plugins = [
        make_plugin("inside", create_observers=lambda: [Inside()]),
        make_plugin("watch", create_observers=lambda: [observer]),
        history_plugin(),
    ]
    with open_llm(folder, *plugins) as llm:
        name = llm.engine.add_request(PROMPT, OWN)
        assert finish(llm, name) == [forced(PROMPT, 8, 3)]
        assert seen == [frozenset()] * 2 + [frozenset({"watch", "history"})] * 6
        assert len(observer.of("step")) == 2


def test_a_plugin_says_itself_whether_it_affects_outputs(folder: Path) -> None:
    specs = [LogitsProcessorSpec("history", HistoryFactory)]
    plugin = make_plugin(
        "quiet",
        plugin_info=lambda: PluginInfo(api=">=1,<2", affects_outputs=False),
        register_logits_processors=lambda: specs,
    )
    with open_llm(folder, plugin) as llm:
        before = llm.plugins.fingerprint
        llm.plugins.disable("quiet")
        assert llm.plugins.fingerprint == before


def test_switching_under_load_changes_no_tokens(folder: Path) -> None:
    prompts = [PROMPT[index:] + [index] * 5 for index in range(8)]
    params = [
        SamplingParams(temperature=float(index % 2), seed=index, max_tokens=24, ignore_eos=True)
        for index in range(8)
    ]
    with open_llm(folder) as plain:
        expected = [o.outputs[0].token_ids for o in plain.generate(prompts, params, use_tqdm=False)]
    plugins = [
        history_plugin(),
        policy_plugin(),
        make_plugin("watch", create_observers=lambda: [RecordingObserver()]),
    ]
    settings = {"num_kv_blocks": 20, "max_model_len": 64, "scheduling_policy": "lifo"}
    with open_llm(folder, *plugins, **settings) as llm:
        names = [llm.engine.add_request(p, q) for p, q in zip(prompts, params, strict=True)]
        switched = ("history", "lifo", "watch")
        num_steps = 0
        while not all(llm.engine.is_finished(name) for name in names):
            name = switched[num_steps % 3]
            switch = llm.plugins.enable if name in llm.plugins.disabled else llm.plugins.disable
            switch(name)
            llm.engine.step()
            llm.engine._scheduler.check_invariants()
            num_steps += 1
        assert values(llm.get_metrics())["num_preemptions"] > 0
        assert [llm.engine.pop_output(name).outputs[0].token_ids for name in names] == expected
