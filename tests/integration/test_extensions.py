"""Plugins that run with requests, over a tiny model: processors, policies, observers, and an engine's life."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
import torch
from equivalence import values
from extension_plugins import (
    VOCAB,
    HistoryFactory,
    RecordingObserver,
    forced,
    history_plugin,
    make_plugin,
    open_llm,
    policy_plugin,
)
from pydantic import BaseModel, ConfigDict

import quire
from quire import LLM, RequestOutput, SamplingParams
from quire.api.config import EngineConfig
from quire.api.errors import ConfigError, ExtensionError, PluginError, SamplingParamsError
from quire.api.extensions import EngineInfo, EngineObserver, ExtensionContext
from quire.api.hookspecs import HOOKS
from quire.api.specs import Capabilities, LogitsProcessorSpec, PluginInfo, PolicySpec
from quire.engine.build import build_engine
from quire.plugins import PluginHost
from quire.testing.tiny_models import write_tiny_llama, write_tiny_mistral

PROMPT = list(range(3, 24))
OTHERS = [[index + 30, *range(5, 9 + index)] for index in range(8)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
SEEDED = [
    SamplingParams(temperature=1.0, top_p=0.95, seed=index, max_tokens=8, ignore_eos=True)
    for index in range(8)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("llama"), max_position_embeddings=128)


def ask(offset: object = 3, **params: object) -> SamplingParams:
    """Parameters with the history processor."""
    defaults = {"temperature": 0.0, "max_tokens": 8, "ignore_eos": True}
    # for mypy: fields by name
    return SamplingParams(**{**defaults, **params}, extra_args={"history": {"offset": offset}})  # type: ignore[arg-type]


def run(llm: LLM, prompts: list[list[int]], params: object) -> list[RequestOutput]:
    return llm.generate(prompts, params, use_tqdm=False)  # type: ignore[arg-type]  # prompts as they are


def tokens(outputs: list[RequestOutput]) -> list[list[list[int]]]:
    return [[choice.token_ids for choice in output.outputs] for output in outputs]


def plugin_counts(llm: LLM, plugin: str, name: str = "quire:plugin_calls") -> dict[str, float]:
    return {
        metric.labels["point"]: metric.value
        for metric in llm.get_metrics()
        if metric.name == name and metric.labels["plugin"] == plugin
    }


# An engine's life.


def test_every_hook_is_called_in_the_order_of_an_engine_s_life_and_none_in_a_step(folder: Path) -> None:
    called: list[str] = []
    infos: list[EngineInfo] = []

    def note(name: str, answer: object = None) -> object:
        called.append(name)
        return answer

    hooks: dict[str, Callable[..., object]] = {
        name.removeprefix("quire_"): (lambda name=name: note(name, [])) for name in HOOKS
    }
    hooks |= {
        "plugin_info": lambda: note("quire_plugin_info", PluginInfo(api=">=1,<2")),
        "resolve_model": lambda name: note("quire_resolve_model", folder if name == "mine" else None),
        "open_checkpoint": lambda path: note("quire_open_checkpoint"),
        "prepare_model": lambda model, config: note("quire_prepare_model"),
        "create_observers": lambda config: note("quire_create_observers", [EngineObserver()]),
        "engine_started": lambda info: infos.append(info) or note("quire_engine_started"),
        "engine_stopping": lambda info, error: note(f"quire_engine_stopping {error!r}"),
    }
    host = PluginHost.discover(extra_plugins=[make_plugin("all-hooks", **hooks)])
    hook_calls: Counter[str] = Counter()
    host._manager.add_hookcall_monitoring(
        lambda name, impls, values: hook_calls.update([name]), lambda *arguments: None
    )
    with (
        pytest.raises(ZeroDivisionError),
        LLM("mine", host=host, dtype="float32", skip_tokenizer_init=True) as llm,
    ):
        engine = llm.engine
        assert called == [name for name in HOOKS if name != "quire_engine_stopping"]
        assert [info.fingerprint for info in infos] == [llm.plugins.fingerprint]
        assert infos[0].architecture == "LlamaForCausalLM" and "all-hooks" in infos[0].plugins
        before = list(called)
        run(llm, OTHERS, SamplingParams(max_tokens=100, ignore_eos=True))
        assert values(llm.get_metrics())["num_steps"] >= 100
        assert called == before and not hook_calls
        raise ZeroDivisionError
    engine.close()
    assert called == [*before, "quire_engine_stopping ZeroDivisionError()"]


def test_config_problems_are_found_before_weights_are_loaded(folder: Path) -> None:
    from quire.api.extensions import ConfigProblem

    problem = ConfigProblem("block_size=4 is too small", "give 16")
    loaded: list[object] = []
    plugin = make_plugin(
        "picky",
        check_config=lambda config: [problem] if config.cache.block_size == 4 else [],
        prepare_model=lambda model: loaded.append(model),
    )
    with pytest.raises(ConfigError, match="picky.*block_size=4 is too small.*give 16"):
        open_llm(folder, plugin)
    assert not loaded
    open_llm(folder, plugin, block_size=8).close()
    assert len(loaded) == 1


@pytest.mark.parametrize("is_policy", [True, False])
def test_an_impossible_combination_is_refused_before_weights_are_loaded(
    folder: Path, is_policy: bool
) -> None:
    able = Capabilities(prefix_caching=False)
    loaded: list[object] = []
    specs: dict[str, Callable[..., object]] = {
        "register_policies": lambda: [PolicySpec("lifo", lambda context: object(), capabilities=able)],
        "register_logits_processors": lambda: [
            LogitsProcessorSpec("history", HistoryFactory, is_always_on=True, capabilities=able)
        ],
    }
    name = "register_policies" if is_policy else "register_logits_processors"
    if is_policy:
        specs[name] = lambda: [PolicySpec("lifo", policy_plugin_class(), capabilities=able)]
    plugin = make_plugin("narrow", prepare_model=lambda model: loaded.append(model), **{name: specs[name]})
    settings = {"scheduling_policy": "lifo"} if is_policy else {}
    with pytest.raises(ConfigError, match="'narrow'.*enable_prefix_caching"):
        open_llm(folder, plugin, **settings)
    assert not loaded
    open_llm(folder, plugin, enable_prefix_caching=False, **settings).close()


def test_sliding_windows_are_found_in_the_model_before_its_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny_mistral(tmp_path, sliding_window=8)
    able = Capabilities(sliding_windows=False)
    specs = [LogitsProcessorSpec("history", HistoryFactory, is_always_on=True, capabilities=able)]
    plugin = make_plugin("narrow", register_logits_processors=lambda: specs)
    monkeypatch.setattr(
        "quire.engine.model_loading.load_weights", lambda *values: pytest.fail("weights were read")
    )
    with pytest.raises(ConfigError, match="'narrow'.*the sliding windows of.*MistralForCausalLM"):
        open_llm(path, plugin)


class UnshowableError(Exception):
    """Fails when it is shown, with itself."""

    def __str__(self) -> str:
        raise UnshowableError


def test_an_exception_that_cannot_be_shown_costs_its_request_only(folder: Path) -> None:
    def fail(prompt: object, output: object, logits: torch.Tensor) -> torch.Tensor:
        raise UnshowableError

    class Factory:
        def for_request(self, arguments: object, params: SamplingParams) -> object:
            return None if arguments is None else fail

    specs = [LogitsProcessorSpec("history", lambda context: Factory())]
    with open_llm(folder, make_plugin("shy", register_logits_processors=lambda: specs)) as llm:
        good, bad = run(llm, [PROMPT, PROMPT], [GREEDY, ask()])
        assert good.error is None and "UnshowableError, whose str() fails" in str(bad.error)
        assert plugin_counts(llm, "shy", "quire:plugin_errors")["LogitsProcessor.__call__"] == 1


@pytest.mark.parametrize("has_windows", [False, True])
def test_a_processor_that_does_not_go_with_the_engine_is_refused_by_name(
    folder: Path, tmp_path: Path, has_windows: bool
) -> None:
    able = Capabilities(sliding_windows=False) if has_windows else Capabilities(devices=("cuda",))
    specs = [LogitsProcessorSpec("history", HistoryFactory, capabilities=able)]
    plugin = make_plugin("narrow", register_logits_processors=lambda: specs)
    path = write_tiny_mistral(tmp_path, sliding_window=8) if has_windows else folder
    with open_llm(path, plugin) as llm:
        with pytest.raises(SamplingParamsError, match="'history' of plugin 'narrow'.*does not go with"):
            run(llm, [[1, 2]], ask())
        assert run(llm, [[1, 2]], SamplingParams(max_tokens=2))[0].error is None


def policy_plugin_class() -> Callable[..., object]:
    from extension_plugins import LastFirst

    return LastFirst


def test_a_plugin_s_checkpoint_reader_fills_the_model(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    for name in ("config.json",):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    tensors = load_file(folder / "model.safetensors")

    class Reader:
        def names(self) -> list[str]:
            return list(tensors)

        def shape(self, name: str) -> tuple[int, ...]:
            return tuple(tensors[name].shape)

        def read(self, name: str) -> torch.Tensor:
            if broken and name.endswith("norm.weight"):
                raise broken[0]
            return tensors[name]

        def metadata(self) -> dict[str, str]:
            return {}

    broken: list[BaseException] = []
    plugin = make_plugin("reader", open_checkpoint=lambda path: Reader() if path == tmp_path else None)
    with open_llm(folder) as plain, open_llm(tmp_path, plugin) as llm:
        assert tokens(run(llm, OTHERS, GREEDY)) == tokens(run(plain, OTHERS, GREEDY))
    for error in (RuntimeError("disk"), SystemExit(3)):
        broken[:] = [error]
        with pytest.raises(quire.api.errors.CheckpointError, match=r"Reader\.read\('.*norm.weight'\) failed"):
            open_llm(tmp_path, plugin)


# Logits processors.


def test_a_processor_changes_its_own_request_and_no_other(folder: Path) -> None:
    with open_llm(folder) as plain:
        alone = tokens(run(plain, OTHERS, GREEDY)), tokens(run(plain, OTHERS, SEEDED))
    with open_llm(folder, history_plugin()) as llm:
        for expected, params in zip(alone, ([GREEDY] * 8, SEEDED), strict=True):
            for own in (ask(), ask(temperature=1.0, seed=1)):
                *neighbours, mine = run(llm, [*OTHERS, PROMPT], [*params, own])
                assert tokens(neighbours) == expected
                assert mine.outputs[0].token_ids == forced(PROMPT, 8, 3)
        counts = plugin_counts(llm, "history")
        assert counts["LogitsProcessor.__call__"] == 4 * 8


def test_processors_see_the_right_history_with_choices_preemption_and_prefix_hits(folder: Path) -> None:
    prompts = [PROMPT[index:] + [index] * 5 for index in range(8)]
    params = [ask(index, max_tokens=24) for index in range(8)]
    expected = [[forced(prompt, 24, index)] for index, prompt in enumerate(prompts)]
    with open_llm(folder, history_plugin(), num_kv_blocks=20, max_model_len=64) as scarce:
        assert tokens(run(scarce, prompts, params)) == expected
        assert values(scarce.get_metrics())["num_preemptions"] > 0
    with open_llm(folder, history_plugin(), max_num_batched_tokens=7) as llm:
        assert tokens(run(llm, prompts, params)) == expected
        before = values(llm.get_metrics())["prefix_cache_hits"]
        assert tokens(run(llm, prompts, params)) == expected
        assert values(llm.get_metrics())["prefix_cache_hits"] > before
        [output] = run(llm, [PROMPT], ask(5, n=3, temperature=1.0))
        assert tokens([output]) == [[forced(PROMPT, 8, 5)] * 3]
        assert values(llm.get_metrics())["num_forks"] == 2


def test_processors_come_between_min_tokens_and_penalties(folder: Path) -> None:
    seen: list[torch.Tensor] = []

    class Factory:
        def for_request(self, arguments: object, params: SamplingParams) -> object:
            def processor(prompt: object, output: object, logits: torch.Tensor) -> torch.Tensor:
                seen.append(logits.clone())
                return torch.where(torch.arange(VOCAB) == 7, 1.0, 0.0)

            return processor

    specs = [LogitsProcessorSpec("flat", lambda context: Factory())]
    with open_llm(folder, make_plugin("flat", register_logits_processors=lambda: specs)) as llm:
        params = SamplingParams(
            temperature=0.0,
            max_tokens=2,
            min_tokens=2,
            stop_token_ids=[11],
            logit_bias={12: 50.0},
            presence_penalty=2.0,
            extra_args={"flat": None},
        )
        [output] = run(llm, [[1, 2]], params)
    assert output.outputs[0].token_ids == [7, 0]  # 7 was generated: 1 - 2 is less than 0
    assert [float(logits[11]) for logits in seen] == [float("-inf")] * 2
    assert int(seen[0].argmax()) == 12


def test_a_processor_that_is_always_on_can_pass(folder: Path) -> None:
    specs = [LogitsProcessorSpec("history", HistoryFactory, is_always_on=True)]
    with open_llm(folder) as plain:
        expected = tokens(run(plain, OTHERS, GREEDY))
    with open_llm(folder, make_plugin("always", register_logits_processors=lambda: specs)) as llm:
        *neighbours, mine = run(llm, [*OTHERS, PROMPT], [*[GREEDY] * 8, ask()])
        assert tokens(neighbours) == expected
        assert mine.outputs[0].token_ids == forced(PROMPT, 8, 3)
        assert plugin_counts(llm, "always")["LogitsProcessorFactory.for_request"] == 9 + 1


def test_wrong_names_and_arguments_are_refused_and_nothing_stays(folder: Path) -> None:
    with open_llm(folder, history_plugin()) as llm:
        for extra_args, words in (
            ({"histori": {"offset": 1}}, "no logits processor is called so; did you mean 'history'"),
            ({"history": {"offset": "x"}}, "'history' of plugin 'history'.*give {'offset': integer}"),
        ):
            with pytest.raises(SamplingParamsError, match=words):
                run(llm, [PROMPT], SamplingParams(extra_args=extra_args))
        assert not llm.engine.has_unfinished
        assert tokens(run(llm, [PROMPT], ask())) == [[forced(PROMPT, 8, 3)]]
    with open_llm(folder) as plain, pytest.raises(SamplingParamsError, match="no logits processor"):
        run(plain, [PROMPT], ask())


def test_what_a_caller_changes_after_submitting_changes_nothing(folder: Path) -> None:
    arguments = {"offset": 3}
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, extra_args={"history": arguments})
    with open_llm(folder, history_plugin()) as llm:
        name = llm.engine.add_request(PROMPT, params)
        arguments["offset"] = 4
        while not llm.engine.is_finished(name):
            llm.engine.step()
        assert llm.engine.pop_output(name).outputs[0].token_ids == forced(PROMPT, 8, 3)


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (lambda row: row[:-1], r"returned torch\.float32 \[96\] on cpu, expected torch\.float32 \[97\]"),
        (lambda row: row[None], r"\[1, 97\]"),
        (lambda row: row.double(), r"torch\.float64"),
        (lambda row: row.to("meta"), "on meta"),
        (lambda row: row.tolist(), "returned a list"),
        (lambda row: torch.full_like(row, float("nan")), "NaN"),
        (lambda row: torch.full_like(row, float("inf")), "infinity"),
        (lambda row: torch.full_like(row, float("-inf")), "no token that can be sampled"),
    ],
)
def test_a_wrong_result_fails_its_request_and_names_the_plugin(
    folder: Path, result: Callable[[torch.Tensor], object], words: str
) -> None:
    class Factory:
        def for_request(self, arguments: object, params: object) -> object:
            return lambda prompt, output, row: result(row)

    specs = [LogitsProcessorSpec("wrong", lambda context: Factory())]
    with open_llm(folder, make_plugin("bad", register_logits_processors=lambda: specs)) as llm:
        good, bad = run(llm, [PROMPT, PROMPT], [GREEDY, SamplingParams(extra_args={"wrong": None})])
        assert good.error is None and len(good.outputs[0].token_ids) == 8
        assert bad.outputs[0].finish_reason == "error" and isinstance(bad.error, ExtensionError)
        with pytest.raises(ExtensionError, match=f"'wrong' of plugin 'bad' .*{words}"):
            raise bad.error
        llm.engine._scheduler.check_invariants()


@pytest.mark.parametrize("is_factory_wrong", [True, False])
def test_a_factory_that_fails_ends_the_start(folder: Path, is_factory_wrong: bool) -> None:
    def fail(context: object) -> object:
        raise SystemExit("planted")

    factory = (lambda context: 7) if is_factory_wrong else fail
    specs = [LogitsProcessorSpec("broken", factory)]
    plugin = make_plugin("bad", register_logits_processors=lambda: specs)
    with pytest.raises(PluginError, match="plugin 'bad'.*(planted|no for_request)"):
        open_llm(folder, plugin)
    policies = [PolicySpec("broken", factory)]
    with pytest.raises(PluginError, match="plugin 'bad'.*(planted|no key)"):
        plugin = make_plugin("bad", register_policies=lambda: policies)
        open_llm(folder, plugin, scheduling_policy="broken")


def test_of_an_optional_plugin_a_broken_processor_is_left_out(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    specs = [LogitsProcessorSpec("history", lambda context: 7)]
    host = PluginHost.discover(
        extra_plugins=[make_plugin("broken", register_logits_processors=lambda: specs)]
    )
    settings = {"model": folder, "skip_tokenizer_init": True, "plugins": {"optional": ["broken"]}}
    engine = build_engine(EngineConfig.from_keywords(settings), host)
    assert "goes on without it" in caplog.text
    with pytest.raises(SamplingParamsError, match="no for_request"):
        engine.add_request(PROMPT, ask())
    engine.close()


# Policies.


def test_a_plugin_s_policy_orders_the_waiting(folder: Path) -> None:
    for policy, expected in (("fcfs", [0, 1, 2]), ("lifo", [2, 1, 0])):
        with open_llm(folder, policy_plugin(), scheduling_policy=policy, max_num_seqs=1) as llm:
            names = [llm.engine.add_request(prompt, GREEDY) for prompt in OTHERS[:3]]
            ended: dict[str, None] = {}
            while llm.engine.has_unfinished:
                ended |= dict.fromkeys(n for n in llm.engine.step() if llm.engine.is_finished(n))
            assert list(ended) == [names[index] for index in expected]


def test_an_unknown_policy_is_refused_with_the_nearest(folder: Path) -> None:
    with pytest.raises(ConfigError, match="'lifos' is not known: did you mean 'lifo'.*fcfs, lifo, priority"):
        open_llm(folder, policy_plugin(), scheduling_policy="lifos")


def test_a_policy_s_request_that_was_aborted_spares_the_next_of_its_name(folder: Path) -> None:
    class Bad:
        def key(self, request: object, index: int) -> tuple[float, ...]:
            return (float("nan"),) if index == 0 else (1.0,)

    plugin = policy_plugin("nan", lambda context: Bad())
    with open_llm(folder, plugin, scheduling_policy="lifo") as llm:
        llm.engine.add_request(PROMPT, GREEDY, request_id="a")
        llm.engine.discard("a")
        llm.engine.add_request(PROMPT, GREEDY, request_id="a")
        while not llm.engine.is_finished("a"):
            llm.engine.step()
        assert llm.engine.output("a").error is None


# Observers.


def test_observers_see_requests_and_steps(folder: Path) -> None:
    observer = RecordingObserver()
    plugin = make_plugin("watch", create_observers=lambda: [observer])
    with open_llm(folder, plugin) as llm:
        outputs = run(llm, OTHERS[:2], SamplingParams(n=2, max_tokens=5, seed=1, ignore_eos=True))
        name = llm.engine.add_request(PROMPT, GREEDY)
        llm.engine.abort(name)
        metrics = values(llm.get_metrics())
    added, finished, steps = (observer.of(kind) for kind in ("added", "finished", "step"))
    assert [view.request_id for view in added] == [*(output.request_id for output in outputs), name]
    assert [view.num_prompt_tokens for view in added] == [5, 6, len(PROMPT)]
    assert [(view.num_output_tokens, reason) for view, reason in finished] == [
        (10, "length"),
        (10, "length"),
        (0, "abort"),
    ]
    assert len(steps) == metrics["num_steps"]
    assert sum(step.num_tokens for step in steps) == metrics["num_scheduled_tokens"]
    assert sum(step.num_generated for step in steps) == 20
    assert all(0 < step.seconds < 60 for step in steps)
    assert (steps[0].num_running, steps[-1].num_running) != (0, 1)


def test_failed_observer_creation_starts_without_it(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> object:
        raise RuntimeError("planted")

    observer = RecordingObserver()
    plugins = [
        make_plugin("bad", create_observers=fail),
        make_plugin("good", create_observers=lambda: [observer]),
    ]
    with open_llm(folder, *plugins) as llm:
        run(llm, OTHERS, GREEDY)
        assert plugin_counts(llm, "bad", "quire:plugin_errors")["quire_create_observers"] == 1
    assert "'bad'" in caplog.text and "planted" in caplog.text
    assert len(observer.of("finished")) == 8


def test_without_extensions_a_step_runs_none_of_their_code(folder: Path) -> None:
    root = Path(quire.__file__).parent
    watched = tuple(
        str(root / name)
        for name in (
            "plugins",
            "engine/observers.py",
            "engine/guarded_policy.py",
            "engine/processor_desk.py",
            "execution/processors.py",
            "scheduling/policies.py",
        )
    )
    seen: Counter[str] = Counter()

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(watched):
            seen[frame.f_code.co_qualname] += 1

    def count(llm: LLM) -> Counter[str]:
        seen.clear()
        for prompt in OTHERS:
            llm.engine.add_request(prompt, SamplingParams(max_tokens=40, ignore_eos=True))
        llm.engine.step()
        sys.setprofile(profile)
        try:
            for _ in range(30):
                llm.engine.step()
        finally:
            sys.setprofile(None)
        return seen

    with open_llm(folder, history_plugin()) as llm:
        assert not count(llm)
    with open_llm(folder, make_plugin("idle", create_observers=lambda: [EngineObserver()])) as llm:
        assert not count(llm)
    observer = RecordingObserver()
    with open_llm(folder, make_plugin("watch", create_observers=lambda: [observer])) as llm:
        assert count(llm)["PluginCalls.call"] == 30


def test_errors_and_times_are_counted_by_plugin_and_point(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_llm(folder, history_plugin()) as llm, caplog.at_level(logging.WARNING):
        run(llm, [PROMPT], ask())
        calls, errors, seconds = (
            plugin_counts(llm, "history", f"quire:plugin_{what}") for what in ("calls", "errors", "seconds")
        )
    assert calls["LogitsProcessor.__call__"] == 8
    assert calls["LogitsProcessorFactory.for_request"] == 2  # when added, and where it runs
    assert not any(errors.values())
    assert 0 < seconds["LogitsProcessor.__call__"] < 10


class StrictArguments(BaseModel):
    model_config = ConfigDict(extra="forbid")
    only: int = 0


class StrictFactory:
    """Reads its arguments with pydantic."""

    def __init__(self, context: ExtensionContext) -> None:
        pass

    def for_request(self, arguments: object, params: SamplingParams) -> None:
        StrictArguments.model_validate(arguments)


def test_pydantic_s_complaints_are_one_line(folder: Path) -> None:
    plugin = make_plugin(
        "strict", register_logits_processors=lambda: [LogitsProcessorSpec("strict", StrictFactory)]
    )
    with open_llm(folder, plugin) as llm, pytest.raises(SamplingParamsError) as caught:
        llm.generate([1, 2], SamplingParams(extra_args={"strict": {"onlyy": 3}}), use_tqdm=False)
    assert "onlyy: Extra inputs are not permitted" in str(caught.value)
    assert "pydantic" not in str(caught.value) and "\n" not in str(caught.value)
