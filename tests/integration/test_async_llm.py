"""The asynchronous API: streams equal offline outputs, and leave nothing behind however they end."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from quire import LLM, AsyncLLM, SamplingParams
from quire.api.errors import EngineClosedError, PluginError, PromptError, SamplingParamsError
from quire.api.outputs import PositionLogprobs, RequestOutput
from quire.api.step import TokenLogprobs
from quire.engine.choice import PieceDecoder
from quire.testing.tiny_models import write_tiny_llama

SETTINGS: dict[str, object] = {
    "dtype": "float64", "max_model_len": 64, "skip_tokenizer_init": True, "max_num_seqs": 4, "num_kv_blocks": 24,
    "block_size": 4, "max_num_batched_tokens": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture
def llm(folder: Path) -> Iterator[AsyncLLM]:
    engine = AsyncLLM(folder, **SETTINGS)
    yield engine
    engine.close()


def make_requests(count: int) -> list[tuple[list[int], SamplingParams]]:
    draw = random.Random(3)
    made = []
    for index in range(count):
        prompt = [draw.randrange(96) for _ in range(draw.randrange(1, 24))]
        made.append(
            (
                prompt,
                SamplingParams(
                    temperature=0.9 * (index % 2), seed=index, n=1 + index % 3 % 2 * (index % 2), max_tokens=4 + index,
                    logprobs=1 if index % 4 == 0 else None, ignore_eos=True,
                ),
            )
        )  # fmt: skip
    return made


async def last(stream: AsyncIterator[RequestOutput]) -> RequestOutput:
    outputs = [output async for output in stream]
    assert outputs[-1].finished
    return outputs[-1]


async def wait_until_idle(llm: AsyncLLM) -> None:
    """Nothing runs, and no block is in use."""
    for _ in range(100):
        metrics = await llm.get_metrics()
        found = {metric.name.removeprefix("quire:"): metric.value for metric in metrics if not metric.labels}
        if not found["num_requests_running"] + found["num_requests_waiting"] + found["kv_cache_usage_perc"]:
            break
        await asyncio.sleep(0.01)
    else:
        raise AssertionError(f"not idle: {found}")
    assert not llm._streams and not llm._engine._book.ids()


def test_streams_equal_offline_outputs(folder: Path, llm: AsyncLLM) -> None:
    requests = make_requests(12)
    with LLM(folder, **SETTINGS) as offline:
        prompts = [{"prompt_token_ids": prompt} for prompt, _ in requests]
        expected = offline.generate(prompts, [params for _, params in requests], use_tqdm=False)

    async def run() -> list[RequestOutput]:
        outputs = await asyncio.gather(*(last(llm.generate(prompt, params)) for prompt, params in requests))
        await wait_until_idle(llm)
        return outputs

    for found, wanted in zip(asyncio.run(run()), expected, strict=True):
        assert len(found.outputs) == len(wanted.outputs)
        for choice, other in zip(found.outputs, wanted.outputs, strict=True):
            assert choice.token_ids == other.token_ids
            assert choice.finish_reason == other.finish_reason
            assert choice.cumulative_logprob == pytest.approx(other.cumulative_logprob, abs=1e-9)
            assert [list(entries) for entries in choice.logprobs or ()] == [
                list(entries) for entries in other.logprobs or ()
            ]
        assert found.metrics is not None and found.metrics.finished_s is not None
        assert found.prompt_token_ids == wanted.prompt_token_ids


def test_outputs_are_cumulative_and_stay_as_they_were(llm: AsyncLLM) -> None:
    async def run() -> None:
        seen = [
            output async for output in llm.generate([5, 6], SamplingParams(max_tokens=12, ignore_eos=True))
        ]
        lengths = [len(output.outputs[0].token_ids) for output in seen]
        assert lengths == sorted(lengths) and lengths[-1] == 12
        assert all(
            output.outputs[0].token_ids == seen[-1].outputs[0].token_ids[:n]
            for output, n in zip(seen, lengths, strict=True)
        )
        assert [output.finished for output in seen] == [False] * (len(seen) - 1) + [True]

    asyncio.run(run())


def test_a_slow_reader_gets_all_and_delays_nobody(llm: AsyncLLM) -> None:
    async def run() -> None:
        stream = llm.generate([1, 2, 3], SamplingParams(max_tokens=20, ignore_eos=True))
        first = await anext(stream)
        await last(llm.generate([4], SamplingParams(max_tokens=30, ignore_eos=True)))
        rest = [output async for output in stream]
        assert len(first.outputs[0].token_ids) + len(rest) < 20
        assert len(rest[-1].outputs[0].token_ids) == 20

    asyncio.run(run())


@pytest.mark.parametrize("num_read", [0, 1, 4])
@pytest.mark.parametrize("how", ["close", "cancel", "abort"])
def test_a_request_is_aborted_in_any_state(llm: AsyncLLM, how: str, num_read: int) -> None:
    """Of seven requests for four slots: some wait, one is in its prompt, others decode."""
    params = SamplingParams(max_tokens=40, ignore_eos=True, n=2, temperature=1.0)

    async def read(name: str, prompt: list[int]) -> str | None:
        reason = None
        async with aclosing(llm.stream_deltas(prompt, params, name)) as deltas:
            count = 0
            async for delta in deltas:
                count += 1
                reason = delta.choices[-1].finish_reason if delta.choices else reason
                if how == "close" and count > num_read:
                    break
                if how == "cancel" and count > num_read:
                    raise asyncio.CancelledError
                if how == "abort" and count > num_read:
                    await llm.abort(name)
        return reason

    async def run() -> None:
        tasks = [asyncio.create_task(read(f"r{i}", [i + 1] * (3 * i + 1))) for i in range(7)]
        await asyncio.sleep(0.002 * num_read)
        tasks[-1].cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(found[-1], asyncio.CancelledError)
        if how == "abort":
            assert set(found[:-1]) == {"abort"}
        await wait_until_idle(llm)
        assert (await last(llm.generate([7], SamplingParams(max_tokens=3, ignore_eos=True)))).finished

    asyncio.run(run())


def test_refusals_cost_nobody_else(llm: AsyncLLM) -> None:
    async def run() -> None:
        going = asyncio.create_task(
            last(llm.generate([1], SamplingParams(max_tokens=30, ignore_eos=True), "one"))
        )
        while "one" not in llm._streams:
            await asyncio.sleep(0)
        for error, prompt, params, name in (
            (PromptError, [], None, None),
            (PromptError, [10**9], None, None),
            (SamplingParamsError, [1], SamplingParams(logit_bias={10**6: 1.0}), None),
            (SamplingParamsError, [1], "hot", None),
            (PromptError, [1], None, "one"),
        ):
            with pytest.raises(error):
                await last(llm.generate(prompt, params, name))  # type: ignore[arg-type]  # to be refused
        await llm.abort("unknown")
        assert len((await going).outputs[0].token_ids) == 30
        await wait_until_idle(llm)

    asyncio.run(run())


def test_close_ends_streams_and_refuses_new_requests(folder: Path) -> None:
    async def run() -> None:
        async with AsyncLLM(folder, **SETTINGS) as llm:
            going = asyncio.create_task(
                last(llm.generate([1], SamplingParams(max_tokens=60, ignore_eos=True)))
            )
            while not llm._streams:
                await asyncio.sleep(0)
        with pytest.raises(EngineClosedError, match="did not end"):
            await going
        with pytest.raises(EngineClosedError):
            await last(llm.generate([1]))
        llm.close()

    asyncio.run(run())


def test_a_broken_engine_is_told_to_all(llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[str]:
        raise SystemExit("of a plugin")

    async def run() -> None:
        params = SamplingParams(max_tokens=60, ignore_eos=True)
        tasks = [asyncio.create_task(last(llm.generate([i], params))) for i in range(3)]
        while len(llm._streams) < 3:
            await asyncio.sleep(0)
        monkeypatch.setattr(llm._engine, "step", broken)
        for task in tasks:
            with pytest.raises(EngineClosedError, match="SystemExit: of a plugin"):
                await task

    asyncio.run(run())


def test_requests_come_from_several_event_loops(llm: AsyncLLM) -> None:
    async def run(index: int) -> RequestOutput:
        return await last(
            llm.generate([index], SamplingParams(max_tokens=9, ignore_eos=True, temperature=0.0))
        )

    async def both() -> None:
        others = [asyncio.to_thread(asyncio.run, run(3)) for _ in range(3)]
        found = await asyncio.gather(run(3), *others)
        assert len({tuple(output.outputs[0].token_ids) for output in found}) == 1

    asyncio.run(both())


def test_what_ends_all_requests_between_steps_is_told_to_all(
    llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing() -> None:
        raise RuntimeError("of the pool")

    async def run() -> None:
        params = SamplingParams(max_tokens=60, ignore_eos=True)
        tasks = [asyncio.create_task(last(llm.generate([i], params))) for i in range(6)]
        while len(llm._streams) < 6:
            await asyncio.sleep(0)
        monkeypatch.setattr(llm._engine._scheduler.block_manager, "reset_prefix_cache", failing)
        with pytest.raises(RuntimeError, match="of the pool"):
            await llm.reset_prefix_cache()
        for task in tasks:
            assert "of the pool" in str((await task).error)
        await wait_until_idle(llm)

    asyncio.run(run())


def test_an_exit_within_a_call_reaches_its_caller(llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def leaving() -> None:
        raise SystemExit("of a metric")

    async def run() -> None:
        monkeypatch.setattr(llm._engine, "get_metrics", leaving)
        with pytest.raises(EngineClosedError, match="of a metric"):
            await llm.get_metrics()
        with pytest.raises(EngineClosedError, match="of a metric"):
            await last(llm.generate([1]))

    asyncio.run(run())


def test_an_abort_while_the_prompt_is_read_is_heeded(llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = llm._engine.prepare_prompt

    def slowly(prompt: object) -> object:
        time.sleep(0.2)
        return prepare(prompt)  # type: ignore[arg-type]  # passed on

    async def run() -> None:
        monkeypatch.setattr(llm._engine, "prepare_prompt", slowly)
        params = SamplingParams(max_tokens=60, ignore_eos=True)
        task = asyncio.create_task(last(llm.generate([1], params, "early")))
        await asyncio.sleep(0.05)
        await llm.abort("early")
        assert (await task).outputs[0].finish_reason == "abort"
        await wait_until_idle(llm)

    asyncio.run(run())


def test_ids_of_choices_are_nobody_elses(llm: AsyncLLM) -> None:
    async def run() -> None:
        params = SamplingParams(max_tokens=30, ignore_eos=True, n=2, temperature=1.0, seed=1)
        task = asyncio.create_task(last(llm.generate([1], params, "x")))
        while "x" not in llm._streams:
            await asyncio.sleep(0)
        with pytest.raises(PromptError, match="x/1"):
            await last(llm.generate([2], SamplingParams(max_tokens=3), "x/1"))
        for wrong in ({"priority": "high"}, {"salt": 5}):
            with pytest.raises(PromptError, match=next(iter(wrong))):
                await last(llm.generate([2], None, **wrong))  # type: ignore[arg-type]  # to be refused
        assert len((await task).outputs[1].token_ids) == 30
        await wait_until_idle(llm)

    asyncio.run(run())


def test_a_failing_decoder_costs_its_request_only(llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    position = PieceDecoder.position

    def failing(self: PieceDecoder, entry: TokenLogprobs) -> PositionLogprobs:
        if len(entry.top_ids) == 2:
            raise ValueError("no such piece")
        return position(self, entry)

    async def run() -> None:
        monkeypatch.setattr(PieceDecoder, "position", failing)
        good = asyncio.create_task(
            last(llm.generate([1], SamplingParams(max_tokens=20, ignore_eos=True, logprobs=1)))
        )
        bad = await last(llm.generate([2], SamplingParams(max_tokens=20, ignore_eos=True, logprobs=2, n=2)))
        assert "no such piece" in str(bad.error)
        assert [choice.finish_reason for choice in bad.outputs] == ["error", "error"]
        assert len((await good).outputs[0].token_ids) == 20
        await wait_until_idle(llm)

    asyncio.run(run())


def test_a_failing_close_is_told_to_all(llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    close = llm._engine.close

    def leaving(error: BaseException | None = None) -> None:
        close(error)
        raise SystemExit("of a plugin")

    async def run() -> None:
        monkeypatch.setattr(llm._engine, "close", leaving)
        task = asyncio.create_task(last(llm.generate([1], SamplingParams(max_tokens=60, ignore_eos=True))))
        while not llm._streams:
            await asyncio.sleep(0)
        await asyncio.to_thread(llm.close)
        with pytest.raises(EngineClosedError, match="did not end"):
            await task

    asyncio.run(run())


def test_a_request_ends_with_its_event_loop(llm: AsyncLLM) -> None:
    loop = asyncio.new_event_loop()
    stream = llm.generate([1], SamplingParams(max_tokens=62, ignore_eos=True), "left")
    loop.run_until_complete(anext(stream))
    loop.close()
    asyncio.run(wait_until_idle(llm))


def test_plugins_are_switched_between_steps(folder: Path) -> None:
    config = {"method": "ngram", "adaptive": False, "prompt_lookup_min": 1}
    params = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True, logit_bias={5: 90.0})

    async def run() -> list[bool]:
        found = []
        async with AsyncLLM(folder, speculative_config=config, **SETTINGS) as llm:
            for switch in (None, llm.disable_plugin, llm.enable_plugin):
                if switch is not None:
                    await switch("ngram")
                output = await last(llm.generate([5, 5, 5], params))
                assert output.metrics is not None
                found.append(output.metrics.speculation is not None)
            with pytest.raises(PluginError, match="nothing"):
                await llm.disable_plugin("nothing")
        return found

    assert asyncio.run(run()) == [True, False, True]


def test_salts_keep_prefixes_apart(llm: AsyncLLM) -> None:
    async def cached(salt: str) -> int:
        output = await last(llm.generate([9] * 20, SamplingParams(max_tokens=2), salt=salt))
        return output.num_cached_tokens

    async def run() -> list[int]:
        return [await cached(salt) for salt in ("", "", "other")]

    first, again, other = asyncio.run(run())
    assert first == other == 0 < again
