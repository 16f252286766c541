"""What every EngineClient does alike: an engine in this process, and one in a process of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest

from quire import LLM, SamplingParams
from quire.api.client import EngineClient, EngineRequest
from quire.api.commands import EngineProcessOptions
from quire.api.config import EngineConfig
from quire.api.errors import EngineClosedError, PluginError, PromptError, QuireError, SamplingParamsError
from quire.engine.local_client import LocalEngine
from quire.engine.supervisor import SupervisedEngine

T = TypeVar("T")

KEYWORDS: dict[str, object] = {"model": "tiny", "dtype": "float64", "max_num_seqs": 2}
PROMPT = [5, 6, 7, 8]
SHORT = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
ENDLESS = SamplingParams(temperature=0.0, max_tokens=1900, ignore_eos=True)


async def start(kind: str) -> EngineClient:
    config = EngineConfig.from_keywords(KEYWORDS)
    if kind == "local":
        return await LocalEngine.start(config)
    return await SupervisedEngine.start(config, EngineProcessOptions(watchdog_s=8.0))


@dataclass
class Running:
    """A client, and the event loop that it lives in."""

    client: EngineClient
    runner: asyncio.Runner

    def run(self, check: Callable[[EngineClient], Coroutine[Any, Any, T]]) -> T:
        return self.runner.run(check(self.client))


@dataclass
class Got:
    """What a stream gave."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    reason: str | None = None
    error: Exception | None = None


@pytest.fixture(scope="module", params=["local", "supervised"])
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    with asyncio.Runner() as runner:
        client = runner.run(start(request.param))
        yield Running(client, runner)
        runner.run(client.close())


async def read(client: EngineClient, request: EngineRequest) -> Got:
    got, is_finished = Got(), False
    async with aclosing(client.stream(request)) as deltas:
        async for delta in deltas:
            assert not is_finished and delta.request_id == request.request_id
            [choice] = delta.choices
            got.text += choice.text
            got.token_ids += choice.token_ids
            got.reason, got.error, is_finished = choice.finish_reason, delta.error, delta.finished
    assert is_finished
    return got


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.005)


async def check_is_idle(client: EngineClient) -> None:
    """Nothing runs, waits, or holds a block."""
    status = client.status()
    assert (status.num_requests, status.num_waiting_tokens) == (0, 0)
    figures = {metric.name: metric.value for metric in await client.get_metrics()}
    assert figures["quire:num_requests_running"] == figures["quire:num_requests_waiting"] == 0
    assert figures["quire:kv_cache_usage_perc"] == 0
    await until(lambda: client.status().num_running + client.status().num_waiting == 0)
    assert client.status().is_ready and client.status().reason == ""


def test_streams_what_the_model_says(running: Running) -> None:
    async def check(client: EngineClient) -> Got:
        requests = [EngineRequest(f"r{index}", PROMPT, SHORT) for index in range(5)]
        got = await asyncio.gather(*(read(client, request) for request in requests))
        assert got == [got[0]] * 5
        await check_is_idle(client)
        return got[0]

    got = running.run(check)
    with LLM(**KEYWORDS) as llm:  # type: ignore[arg-type]  # keywords of several types
        [output] = llm.generate([PROMPT], SHORT, use_tqdm=False)
    assert (got.token_ids, got.text) == (output.outputs[0].token_ids, output.outputs[0].text)
    assert got.reason == "length"


def test_status_follows_the_requests(running: Running) -> None:
    async def check(client: EngineClient) -> None:
        names = ["a", "b", "c"]
        tasks = [asyncio.create_task(read(client, EngineRequest(name, PROMPT, ENDLESS))) for name in names]
        await asyncio.sleep(0)
        assert client.status().num_requests == 3 and client.status().num_waiting_tokens == 3 * len(PROMPT)
        await until(lambda: client.status().num_running == 2 and client.status().num_waiting == 1)
        await until(lambda: client.status().num_waiting_tokens == len(PROMPT))
        for name in names:
            await client.abort(name)
        await asyncio.gather(*tasks)
        await check_is_idle(client)

    running.run(check)


def test_aborts_in_each_state(running: Running) -> None:
    async def check(client: EngineClient) -> None:
        async def begin(name: str) -> asyncio.Task[Got]:
            task = asyncio.create_task(read(client, EngineRequest(name, PROMPT, ENDLESS)))
            await asyncio.sleep(0)
            return task

        await client.abort("nobody's")
        new = await begin("new")
        await client.abort("new")  # before the engine can have seen it
        assert (await new).reason == "abort"
        others = [await begin("first"), await begin("second")]
        await until(lambda: client.status().num_running == 2 and not client.status().num_waiting_tokens)
        waiting = await begin("waiting")
        await until(lambda: client.status().num_waiting == 1)
        await client.abort("waiting")
        got = await waiting
        assert got.reason == "abort" and got.token_ids == [] and got.error is None
        for name, task in zip(("first", "second"), others, strict=True):
            await client.abort(name)
            got = await task
            assert got.reason == "abort" and 0 < len(got.token_ids) < 1900
        await client.abort("first")  # which has ended
        await check_is_idle(client)

    running.run(check)


def test_leaving_a_stream_ends_its_request(running: Running) -> None:
    async def check(client: EngineClient) -> None:
        unread = client.stream(EngineRequest("unread", PROMPT, ENDLESS))
        await unread.aclose()  # it was never submitted
        left = client.stream(EngineRequest("left", PROMPT, ENDLESS))
        await anext(left)
        await left.aclose()
        await check_is_idle(client)
        for delay_s in (0.0, 0.1):
            task = asyncio.create_task(read(client, EngineRequest("cancelled", PROMPT, ENDLESS)))
            await asyncio.sleep(delay_s)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await check_is_idle(client)

    running.run(check)


def test_an_id_is_free_again_as_soon_as_its_request_is_over(running: Running) -> None:
    async def check(client: EngineClient) -> None:
        short, endless = EngineRequest("same", PROMPT, SHORT), EngineRequest("same", PROMPT, ENDLESS)
        expected = await read(client, short)
        assert await read(client, short) == expected
        left = client.stream(endless)
        await anext(left)
        with pytest.raises(PromptError, match="'same' is in use"):
            await anext(client.stream(short))
        assert client.status().num_requests == 1 and client.status().num_waiting_tokens == 0
        await left.aclose()
        assert await read(client, short) == expected
        task = asyncio.create_task(read(client, endless))
        await asyncio.sleep(0)
        await client.abort("same")
        assert (await task).reason == "abort"
        with pytest.raises(QuireError):
            await read(client, EngineRequest("same", [], SHORT))
        last = client.stream(short)
        while not (await anext(last)).finished:
            pass
        assert await read(client, short) == expected  # though the one before is not closed
        await last.aclose()
        await check_is_idle(client)

    running.run(check)


REFUSED: list[tuple[EngineRequest, type[QuireError]]] = [
    (EngineRequest("r", [], SHORT), PromptError),
    (EngineRequest("r", [10**9], SHORT), PromptError),
    (EngineRequest("r", [10**30], SHORT), PromptError),
    (EngineRequest("r", ["5"], SHORT), PromptError),  # type: ignore[list-item]  # on purpose
    (EngineRequest("r", [5] * 5000, SHORT), PromptError),
    (EngineRequest("r", PROMPT, SamplingParams(), priority="1"), PromptError),  # type: ignore[arg-type]  # on purpose
    (EngineRequest(7, PROMPT, SamplingParams()), PromptError),  # type: ignore[arg-type]  # on purpose
    (EngineRequest("r", PROMPT, SamplingParams(extra_args={"nobody": 1})), SamplingParamsError),
]


@pytest.mark.parametrize("index", range(len(REFUSED)))
def test_refuses(running: Running, index: int) -> None:
    request, kind = REFUSED[index]

    async def check(client: EngineClient) -> None:
        with pytest.raises(kind):
            await anext(client.stream(request))
        await check_is_idle(client)

    running.run(check)


def test_plugins_and_prefixes(running: Running) -> None:
    async def check(client: EngineClient) -> None:
        with pytest.raises(PluginError, match="nobody"):
            await client.set_plugin("nobody", is_enabled=False)
        await client.set_plugin("ngram", is_enabled=False)
        await client.set_plugin("ngram", is_enabled=True)
        await client.reset_prefix_cache()
        figures = {metric.name: metric.value for metric in await client.get_metrics()}
        assert figures["quire:kv_blocks_cached"] == 0

    running.run(check)


@pytest.mark.parametrize("kind", ["local", "supervised"])
def test_close_ends_all(kind: str) -> None:
    async def main() -> None:
        client = await start(kind)
        tasks = [
            asyncio.create_task(read(client, EngineRequest(f"r{index}", PROMPT, ENDLESS)))
            for index in range(4)
        ]
        await until(lambda: client.status().num_waiting_tokens == 2 * len(PROMPT))
        await asyncio.gather(client.close(), client.close())
        for task in tasks:
            with pytest.raises(EngineClosedError, match="closed"):
                await task
        await client.close()
        status = client.status()
        assert not status.is_ready and "closed" in status.reason
        assert (status.num_requests, status.num_running, status.num_waiting, status.num_waiting_tokens) == (
            0,
            0,
            0,
            0,
        )
        await client.abort("r0")
        calls: list[Callable[[], Coroutine[Any, Any, object]]] = [
            lambda: read(client, EngineRequest("late", PROMPT, SHORT)),
            client.get_metrics,
            client.reset_prefix_cache,
            lambda: client.set_plugin("ngram", is_enabled=False),
        ]
        for call in calls:
            with pytest.raises(EngineClosedError, match="closed"):
                await call()

    asyncio.run(main())


def test_a_broken_engine_in_this_process_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[str]:
        raise SystemExit("of a plugin")

    async def main() -> None:
        engine = await LocalEngine.start(EngineConfig.from_keywords(KEYWORDS))
        task = asyncio.create_task(read(engine, EngineRequest("a", PROMPT, ENDLESS)))
        await until(lambda: engine.status().num_requests > 0 and not engine.status().num_waiting_tokens)
        monkeypatch.setattr(engine._llm._engine, "step", broken)
        got = await task  # no other engine can go on with it
        assert got.reason == "error" and "SystemExit: of a plugin" in str(got.error) and got.token_ids
        await until(lambda: not engine.status().is_ready)
        assert "SystemExit: of a plugin" in engine.status().reason
        assert engine.status().num_requests == engine.status().num_running == 0
        with pytest.raises(EngineClosedError, match="of a plugin"):
            await read(engine, EngineRequest("b", PROMPT, SHORT))
        await engine.close()

    asyncio.run(main())


def test_a_start_that_is_cancelled_leaves_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []

    class Slow:
        def close(self, error: BaseException | None = None) -> None:
            closed.append(True)

    async def main() -> None:
        may_build = asyncio.Event()
        loop = asyncio.get_running_loop()

        def build(*arguments: object) -> Slow:
            asyncio.run_coroutine_threadsafe(may_build.wait(), loop).result()
            return Slow()

        monkeypatch.setattr("quire.engine.async_llm.build_engine", build)
        task = asyncio.create_task(LocalEngine.start(EngineConfig()))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        may_build.set()
        await until(lambda: bool(closed))

    asyncio.run(main())
