"""The offline API over a tiny random model: choices, seeds, logprobs, stops, streams, errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from equivalence import values

from quire import LLM, RequestOutput, SamplingParams
from quire.api.errors import (
    CapacityError,
    ConfigError,
    EngineClosedError,
    ModelNotFoundError,
    PromptError,
    QuireError,
    SamplingParamsError,
    TokenizerError,
    UnsupportedModelError,
)
from quire.testing.tiny_models import write_tiny_llama

VOCAB = 97
PROMPT = list(range(3, 24))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("llama"), max_position_embeddings=128)


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(folder, dtype="float64", skip_tokenizer_init=True, block_size=4, max_num_seqs=8) as engine:
        yield engine


def _one(llm: LLM, prompt: list[int], **params: object) -> RequestOutput:
    return llm.generate([prompt], SamplingParams(**params), use_tqdm=False)[0]  # type: ignore[arg-type]  # fields by name


def _tokens(output: RequestOutput) -> list[list[int]]:
    return [choice.token_ids for choice in output.outputs]


def test_choices_share_the_prompt_and_equal_requests_of_their_own(llm: LLM) -> None:
    before = values(llm.get_metrics())
    output = _one(llm, PROMPT, n=4, temperature=1.0, seed=7, max_tokens=12)
    after = values(llm.get_metrics())
    assert after["num_forks"] - before["num_forks"] == 3
    # The prompt once, its last token again for each further choice, and the decodes.
    assert after["num_scheduled_tokens"] - before["num_scheduled_tokens"] <= len(PROMPT) + 3 + 4 * 11
    assert len({tuple(tokens) for tokens in _tokens(output)}) > 1
    assert _tokens(_one(llm, PROMPT, n=4, temperature=1.0, seed=7, max_tokens=12)) == _tokens(output)
    assert _tokens(_one(llm, PROMPT, n=1, temperature=1.0, seed=7, max_tokens=12)) == _tokens(output)[:1]


def test_forked_choices_equal_choices_without_a_prefix_cache(folder: Path, llm: LLM) -> None:
    expected = _tokens(_one(llm, PROMPT, n=3, temperature=0.9, seed=3, max_tokens=10))
    with LLM(
        folder, dtype="float64", skip_tokenizer_init=True, enable_prefix_caching=False, block_size=16
    ) as other:
        assert _tokens(_one(other, PROMPT, n=3, temperature=0.9, seed=3, max_tokens=10)) == expected
        assert values(other.get_metrics())["num_forks"] == 2


def test_seeded_text_is_the_same_alone_in_a_batch_and_after_preemption(folder: Path, llm: LLM) -> None:
    prompts = [PROMPT[index:] + [index] * 5 for index in range(8)]
    params = [
        SamplingParams(
            temperature=1.1,
            top_p=0.9,
            top_k=40,
            min_p=0.01,
            seed=index,
            max_tokens=24,
            presence_penalty=0.5,
            repetition_penalty=1.2,
            ignore_eos=True,
        )
        for index in range(8)
    ]
    alone = [_tokens(llm.generate([p], q, use_tqdm=False)[0]) for p, q in zip(prompts, params, strict=True)]
    together = [_tokens(output) for output in llm.generate(prompts, params, use_tqdm=False)]
    assert together == alone
    with LLM(
        folder, dtype="float64", skip_tokenizer_init=True, block_size=4, num_kv_blocks=20, max_model_len=64
    ) as scarce:
        assert [_tokens(output) for output in scarce.generate(prompts, params, use_tqdm=False)] == alone
        assert values(scarce.get_metrics())["num_preemptions"] > 0


def test_requests_submitted_together_compute_a_common_prefix_once(folder: Path) -> None:
    prefix = list(range(40))
    prompts = [[*prefix, 50 + index] for index in range(8)]
    with LLM(folder, dtype="float64", skip_tokenizer_init=True, block_size=4) as engine:
        engine.generate(prompts, SamplingParams(temperature=0.0, max_tokens=1), use_tqdm=False)
        seen = values(engine.get_metrics())
    assert seen["num_steps"] == 1
    assert seen["num_scheduled_tokens"] == len(prefix) + 8
    assert seen["prefix_cache_hits"] == 7 * len(prefix)


def test_logprobs_equal_transformers(folder: Path, llm: LLM) -> None:
    from transformers import AutoModelForCausalLM

    _one(llm, PROMPT, max_tokens=1)  # the prompt is in the prefix cache now
    output = _one(llm, PROMPT, temperature=0.0, max_tokens=4, logprobs=5, prompt_logprobs=-1, ignore_eos=True)
    ids = output.prompt_token_ids + output.outputs[0].token_ids
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.inference_mode():
        expected = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == len(PROMPT)
    for position, entry in enumerate(output.prompt_logprobs[1:], start=1):
        assert entry is not None
        assert len(entry) == VOCAB
        for token_id, value in entry.items():
            assert value.logprob == pytest.approx(expected[position - 1, token_id].item(), abs=1e-6)
    logprobs = output.outputs[0].logprobs
    assert logprobs is not None
    for offset, entry in enumerate(logprobs):
        row = expected[len(PROMPT) + offset - 1]
        assert list(entry) == row.topk(5).indices.tolist()
        assert [value.rank for value in entry.values()] == [1, 2, 3, 4, 5]
    total = sum(
        entry[token].logprob for entry, token in zip(logprobs, output.outputs[0].token_ids, strict=True)
    )
    assert output.outputs[0].cumulative_logprob == pytest.approx(total)


def test_prompt_logprobs_do_not_depend_on_chunks(folder: Path, llm: LLM) -> None:
    expected = _one(llm, PROMPT, temperature=0.0, max_tokens=1, prompt_logprobs=2).prompt_logprobs
    with LLM(
        folder, dtype="float64", skip_tokenizer_init=True, block_size=4, max_num_batched_tokens=5
    ) as engine:
        found = _one(engine, PROMPT, temperature=0.0, max_tokens=1, prompt_logprobs=2).prompt_logprobs
        assert values(engine.get_metrics())["num_steps"] == 5
    assert found is not None and expected is not None
    assert [set(entry or ()) for entry in found] == [set(entry or ()) for entry in expected]


def test_stop_token_bias_and_min_tokens(llm: LLM) -> None:
    free = _one(llm, PROMPT, temperature=0.0, max_tokens=8, ignore_eos=True).outputs[0].token_ids
    stopped = _one(
        llm, PROMPT, temperature=0.0, max_tokens=8, ignore_eos=True, stop_token_ids=[free[2]]
    ).outputs[0]
    end = free.index(free[2]) + 1
    assert (stopped.token_ids, stopped.finish_reason, stopped.stop_reason) == (free[:end], "stop", free[2])
    late = _one(
        llm, PROMPT, temperature=0.0, max_tokens=8, ignore_eos=True, stop_token_ids=[free[0]], min_tokens=4
    )
    assert len(late.outputs[0].token_ids) >= 4
    assert free[0] not in late.outputs[0].token_ids[:4]
    biased = _one(llm, PROMPT, temperature=0.0, max_tokens=3, logit_bias={11: 100.0}, ignore_eos=True)
    assert biased.outputs[0].token_ids == [11, 11, 11]


def test_length_ends_at_max_tokens_and_at_the_context(llm: LLM) -> None:
    output = _one(llm, PROMPT, temperature=0.0, max_tokens=3, ignore_eos=True).outputs[0]
    assert (len(output.token_ids), output.finish_reason) == (3, "length")
    output = _one(llm, PROMPT, temperature=0.0, max_tokens=None, ignore_eos=True).outputs[0]
    assert (len(output.token_ids), output.finish_reason) == (128 - len(PROMPT), "length")


def test_stream_is_cumulative_and_closing_it_aborts(llm: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    seen = [list(output.outputs[0].token_ids) for output in llm.stream(PROMPT, params)]
    assert [len(tokens) for tokens in seen] == [1, 2, 3, 4, 5, 6]
    assert seen[-1] == _tokens(llm.generate([PROMPT], params, use_tqdm=False)[0])[0]
    stream = llm.stream(PROMPT, params)
    next(stream)
    stream.close()
    gauges = values(llm.get_metrics(), "gauge")
    assert (gauges["num_requests_running"], gauges["num_requests_waiting"]) == (0, 0)
    assert gauges["kv_cache_usage_perc"] == 0


def test_a_step_budget_smaller_than_the_number_of_requests(folder: Path, llm: LLM) -> None:
    prompts = [PROMPT[index : index + 5] for index in range(6)]
    params = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True)
    expected = [_tokens(output) for output in llm.generate(prompts, params, use_tqdm=False)]
    with LLM(folder, dtype="float64", skip_tokenizer_init=True, max_num_batched_tokens=2) as engine:
        assert [_tokens(output) for output in engine.generate(prompts, params, use_tqdm=False)] == expected


@pytest.mark.parametrize(
    ("prompt", "error", "text"),
    [
        ([], PromptError, "empty"),
        ([1, VOCAB], PromptError, f"0 to {VOCAB - 1}"),
        ([1, -1], PromptError, "-1"),
        ([1.5, 2], PromptError, "1.5"),
        ([1] * 128, PromptError, "128"),
        ({"prompt_token_id": [1]}, PromptError, "prompt_token_id"),
        ("text", TokenizerError, "prompt_token_ids"),
    ],
)
def test_a_bad_prompt_is_refused_before_its_neighbours_run(
    llm: LLM, prompt: object, error: type[Exception], text: str
) -> None:
    before = values(llm.get_metrics())
    with pytest.raises(error, match=text):
        llm.generate([PROMPT, prompt, PROMPT], use_tqdm=False)  # type: ignore[list-item]  # to be refused
    after = values(llm.get_metrics())
    assert after["num_steps"] == before["num_steps"]
    assert values(llm.get_metrics(), "gauge")["num_requests_waiting"] == 0
    assert len(_tokens(_one(llm, PROMPT, max_tokens=2, ignore_eos=True))[0]) == 2


@pytest.mark.parametrize(
    "bad",
    [
        {"logprobs": VOCAB + 1},
        {"prompt_logprobs": 10**6},
        {"logit_bias": {VOCAB: 1.0}},
        {"stop_token_ids": [VOCAB]},
        {"stop": "x"},
    ],
)
def test_parameters_beyond_the_model_are_refused(llm: LLM, bad: dict[str, object]) -> None:
    with pytest.raises(SamplingParamsError):
        _one(llm, PROMPT, **bad)


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": float("nan")},
        {"temperature": -1.0},
        {"temperature": 1e9},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -2},
        {"min_p": 2.0},
        {"n": 0},
        {"max_tokens": 0},
        {"min_tokens": 5, "max_tokens": 3},
        {"repetition_penalty": 0.0},
        {"presence_penalty": 3.0},
        {"seed": 2**64},
        {"stop": [""]},
        {"logit_bias": {1: float("inf")}},
        {"logprobs": -2},
        {"stop": 5},
        {"stop_token_ids": 5},
        {"logit_bias": [1]},
        {"temperature": 10**400},
    ],
)
def test_absurd_sampling_values_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(SamplingParamsError, match=next(iter(bad))):
        SamplingParams(**bad)  # type: ignore[arg-type]  # fields by name


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"max_model_len": 4096}, ConfigError, "128"),
        ({"max_model_len": 64, "num_kv_blocks": 2}, CapacityError, "kv_cache_memory_bytes"),
        ({"kv_cache_memory_bytes": 10}, CapacityError, "kv_cache_memory_bytes"),
        ({"max_num_seqs": 0}, ConfigError, "max_num_seqs"),
        ({"block_size": -4}, ConfigError, "block_size"),
        ({"blok_size": 4}, ConfigError, "block_size"),
        ({"trust_remote_code": True}, ConfigError, "plugin"),
        ({"quantization": "awq"}, ConfigError, "quantization"),
        ({"tensor_parallel_size": 2}, ConfigError, "tensor_parallel_size=2"),
        ({"scheduling_policy": "lifo"}, ConfigError, "fcfs"),
        ({"enable_chunked_prefill": False, "max_num_batched_tokens": 16}, ConfigError, "max_model_len"),
    ],
)
def test_bad_settings_are_refused(
    folder: Path, settings: dict[str, object], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        LLM(folder, skip_tokenizer_init=True, **settings)


def test_unknown_models_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no-such-model"):
        LLM("./no-such-model/at/all")
    (tmp_path / "config.json").write_text('{"architectures": ["NoSuchForCausalLM"]}')
    with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM"):
        LLM(tmp_path)


def test_a_derived_context_is_cut_to_what_the_cache_holds(folder: Path) -> None:
    with LLM(folder, dtype="float32", skip_tokenizer_init=True, num_kv_blocks=4, block_size=8) as engine:
        with pytest.raises(PromptError, match="the context holds 32"):
            engine.generate([[1] * 32], use_tqdm=False)
        assert len(_tokens(_one(engine, [1] * 20, max_tokens=99, ignore_eos=True))[0]) == 12


def test_rows_with_nan_fail_alone(folder: Path) -> None:
    with LLM(folder, dtype="float64", skip_tokenizer_init=True, block_size=4) as engine:
        params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
        prompts = [PROMPT, [90, 91, 92], PROMPT[5:]]
        good = [_tokens(output) for output in engine.generate(prompts, params, use_tqdm=False)]
        engine.reset_prefix_cache()
        runner = engine.engine._executor.runner  # type: ignore[attr-defined]  # a look inside
        weight = runner._model.embedding.weight
        kept = weight[91].clone()
        with torch.inference_mode():
            weight[91] = float("nan")
        outputs = engine.generate(prompts, params, use_tqdm=False)
        assert outputs[1].outputs[0].finish_reason == "error"
        assert "not finite" in str(outputs[1].error)
        assert [_tokens(outputs[0]), _tokens(outputs[2])] == [good[0], good[2]]
        with torch.inference_mode():
            weight[91] = kept
        assert [_tokens(output) for output in engine.generate(prompts, params, use_tqdm=False)] == good


def test_two_engines_and_a_closed_one(folder: Path, llm: LLM) -> None:
    other = LLM(folder, dtype="float64", skip_tokenizer_init=True)
    params = SamplingParams(temperature=0.0, max_tokens=4)
    assert _tokens(other.generate([PROMPT], params, use_tqdm=False)[0]) == _tokens(
        llm.generate([PROMPT], params, use_tqdm=False)[0]
    )
    other.close()
    other.close()
    with pytest.raises(EngineClosedError):
        other.generate([PROMPT], use_tqdm=False)


def test_forms_of_prompts(llm: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=3)
    expected = _tokens(_one(llm, PROMPT, temperature=0.0, max_tokens=3))
    forms = (
        PROMPT,
        [PROMPT],
        {"prompt_token_ids": PROMPT},
        [{"prompt_token_ids": PROMPT}],
        [torch.tensor(PROMPT)],
    )
    for form in forms:
        # for mypy: each form is one that it takes
        assert _tokens(llm.generate(form, params, use_tqdm=False)[0]) == expected  # type: ignore[arg-type]
    assert (
        _tokens(llm.generate(prompt_token_ids=[PROMPT], sampling_params=params, use_tqdm=False)[0])
        == expected
    )


def test_an_interrupt_loses_the_step_and_not_the_engine(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True)
    expected = _tokens(llm.generate([PROMPT], params, use_tqdm=False)[0])
    runner = llm.engine._executor.runner  # type: ignore[attr-defined]  # a look inside
    forward, calls = runner._pass.layers, []

    def interrupted(batch: object) -> object:
        calls.append(batch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return forward(batch)

    monkeypatch.setattr(runner._pass, "layers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate([PROMPT, PROMPT[3:]], params, use_tqdm=False)
    assert values(llm.get_metrics(), "gauge")["kv_cache_usage_perc"] == 0
    assert _tokens(llm.generate([PROMPT], params, use_tqdm=False)[0]) == expected


def _interrupt_points(llm: LLM) -> dict[str, tuple[object, str]]:
    engine = llm.engine
    scheduler = engine._scheduler
    return {
        "schedule": (scheduler, "schedule"),
        "update": (scheduler, "update"),
        "allocate": (scheduler.block_manager, "allocate"),
        "commit": (scheduler.block_manager, "commit"),
        "confirm": (scheduler.block_manager, "confirm"),
        "emit": (engine._stepper, "_emit"),
    }


@pytest.mark.parametrize("is_after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("nth", [1, 2, 5])
@pytest.mark.parametrize("point", ["schedule", "update", "allocate", "commit", "confirm", "emit"])
def test_an_interrupt_outside_of_the_model_leaves_a_right_engine(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, point: str, nth: int, is_after: bool
) -> None:
    prompts = [PROMPT, PROMPT[:18], PROMPT[5:]]
    params = SamplingParams(temperature=1.0, seed=5, n=2, max_tokens=6, ignore_eos=True)
    llm.reset_prefix_cache()
    expected = [_tokens(output) for output in llm.generate(prompts, params, use_tqdm=False)]
    owner, name = _interrupt_points(llm)[point]
    call, calls = getattr(owner, name), []

    def interrupted(*args: object, **keywords: object) -> object:
        calls.append(args)
        if len(calls) == nth and not is_after:
            raise KeyboardInterrupt
        result = call(*args, **keywords)
        if len(calls) == nth:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(prompts, params, use_tqdm=False)
    assert len(calls) == nth
    scheduler = llm.engine._scheduler
    scheduler.check_invariants()
    usage = scheduler.block_manager.usage()
    assert usage.num_used_blocks == 0
    is_step_whole = point == "update" and not is_after  # then the step alone is lost
    assert (usage.num_cached_blocks > 0) == is_step_whole
    gauges = values(llm.get_metrics(), "gauge")
    assert (gauges["num_requests_running"], gauges["num_requests_waiting"]) == (0, 0)
    assert [_tokens(output) for output in llm.generate(prompts, params, use_tqdm=False)] == expected
    scheduler.check_invariants()


def test_a_progress_bar_that_fails_leaves_no_request(llm: LLM) -> None:
    def broken(**settings: object) -> object:
        raise ValueError("planted")

    with pytest.raises(ValueError, match="planted"):
        llm.generate([PROMPT], SamplingParams(max_tokens=2), use_tqdm=broken)
    assert not llm.engine.has_unfinished


def test_a_failing_step_fails_its_requests_and_not_the_engine(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True)
    expected = _tokens(llm.generate([PROMPT], params, use_tqdm=False)[0])
    runner = llm.engine._executor.runner  # type: ignore[attr-defined]  # a look inside

    def broken(batch: object) -> object:
        raise ValueError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(runner._pass, "layers", broken)
        [output] = llm.generate([PROMPT], params, use_tqdm=False)
    assert output.outputs[0].finish_reason == "error"
    assert "planted" in str(output.error)
    assert _tokens(llm.generate([PROMPT], params, use_tqdm=False)[0]) == expected


def test_a_stream_that_never_started_leaves_nothing(llm: LLM) -> None:
    stream = llm.stream(PROMPT, SamplingParams(max_tokens=4))
    stream.close()  # type: ignore[attr-defined]  # a generator
    assert not llm.engine.has_unfinished


@pytest.mark.parametrize("prompts", [5, None, [5.5], [None]])
def test_prompts_of_a_wrong_type_are_refused(llm: LLM, prompts: object) -> None:
    with pytest.raises(PromptError):
        llm.generate(prompts, use_tqdm=False)  # type: ignore[arg-type]  # to be refused


@pytest.mark.parametrize("params", [{"temperature": 0}, [3], 7, [SamplingParams(), SamplingParams()]])
def test_sampling_params_of_a_wrong_type_or_number_are_refused(llm: LLM, params: object) -> None:
    with pytest.raises(SamplingParamsError):
        llm.generate([PROMPT], params, use_tqdm=False)  # type: ignore[arg-type]  # to be refused


@pytest.mark.parametrize(
    "sizes", [{"intermediate_size": 10**13}, {"vocab_size": 10**12}, {"max_position_embeddings": 10**12}]
)
def test_absurd_sizes_in_a_config_are_refused(folder: Path, tmp_path: Path, sizes: dict[str, int]) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    config = json.loads((folder / "config.json").read_text()) | sizes
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(QuireError):
        LLM(tmp_path, skip_tokenizer_init=True)


def test_arguments_of_a_vllm_script_that_change_nothing(folder: Path) -> None:
    with LLM(
        folder, skip_tokenizer_init=True, seed=None, swap_space=4, kv_cache_dtype="auto", tokenizer_mode="auto",
        enforce_eager=True, use_v2_block_manager=True, max_num_batched_tokens=10**13,
    ) as engine:  # fmt: skip
        params = SamplingParams(seed=-1, max_tokens=2, ignore_eos=True)
        assert len(_tokens(engine.generate([PROMPT], params, use_tqdm=False, lora_request=None)[0])[0]) == 2
        with pytest.raises(ConfigError, match="priority"):
            engine.generate([PROMPT], params, use_tqdm=False, priority=[1])


def test_the_model_may_stand_in_the_file(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "model")
    file = tmp_path / "quire.toml"
    file.write_text(f'[model]\nmodel = "{(tmp_path / "model").as_posix()}"\nskip_tokenizer_init = true\n')
    with LLM(config_file=file, max_model_len=32) as llm:
        assert llm.config.model.model == (tmp_path / "model").as_posix()
