"""What the supervised engine does about its processes, which the test plays."""

from __future__ import annotations

import asyncio
import errno
import threading

import pytest
from fake_process import FakeProcess, Spawner, start, started, until

from quire.api.client import EngineRequest
from quire.api.errors import ConfigError, EngineClosedError, PluginError, QuireError
from quire.api.outputs import ChoiceDelta, Metric, OutputDelta
from quire.api.request import SamplingParams
from quire.engine import keeper, supervisor
from quire.engine.child import EngineProcess
from quire.engine.messages import (
    Call,
    Counters,
    Deltas,
    Heartbeat,
    Reply,
    StartFailed,
    Submit,
    TakingIn,
)
from quire.engine.supervisor import SupervisedEngine

GREEDY = SamplingParams(temperature=0.0, max_tokens=9)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "BACKOFF_S", 0.01)


async def last_delta(client: SupervisedEngine, name: str) -> OutputDelta:
    deltas = [delta async for delta in client.stream(EngineRequest(name, [5, 6, 7], GREEDY))]
    return deltas[-1]


def test_a_process_that_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        first, second = FakeProcess(started()), FakeProcess(started())
        spawner = Spawner(monkeypatch, [first, OSError(errno.EMFILE, "too many files"), second])
        client = await start()
        first.die()
        await until(lambda: second.told_of(Submit) or client.status().num_restarts == 2)
        await until(lambda: client.status().is_ready)
        assert client.status().reason == "" and spawner.num_spawned == 3 and first.is_reaped
        await client.close()
        assert second.is_reaped

    asyncio.run(main())


def test_it_gives_up_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        first = FakeProcess(started())
        failing = [FakeProcess(StartFailed(QuireError("no model"))), FakeProcess(None)]
        spawner = Spawner(monkeypatch, [first, *failing, OSError("no memory")])
        client = await start(max_restarts=3)
        streams = [asyncio.create_task(last_delta(client, name)) for name in ("a", "b")]
        await until(lambda: len(first.told_of(Submit)) == 2)
        begin = asyncio.get_running_loop().time()
        first.die()
        for delta in await asyncio.gather(*streams):
            assert delta.finished and [choice.finish_reason for choice in delta.choices] == ["error"]
            assert isinstance(delta.error, EngineClosedError) and "given up after 4 deaths" in str(
                delta.error
            )
        assert asyncio.get_running_loop().time() - begin >= 0.01 + 0.02 + 0.04, "it did not back off"
        status = client.status()
        assert (status.is_ready, status.num_restarts, status.num_requests) == (False, 3, 0)
        assert "no memory" in status.reason and spawner.num_spawned == 4
        assert all(process.is_reaped for process in (first, *failing))
        with pytest.raises(EngineClosedError, match="given up"):
            await last_delta(client, "c")
        with pytest.raises(EngineClosedError, match="given up"):
            await client.set_plugin("ngram", is_enabled=False)
        await client.close()

    asyncio.run(main())


def test_plugins_are_switched_again_before_requests_come(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        first, second = FakeProcess(started()), FakeProcess(started())
        Spawner(monkeypatch, [first, second])
        client = await start()
        await client.set_plugin("one", is_enabled=False)
        await client.set_plugin("two", is_enabled=False)
        await client.set_plugin("two", is_enabled=True)
        first.answers_calls = False
        refused = asyncio.create_task(client.set_plugin("three", is_enabled=False))
        await until(lambda: len(first.told_of(Call)) == 4)
        first.say(Reply(first.told_of(Call)[-1].number, [], PluginError("there is no three")))  # type: ignore[union-attr]  # a Call
        with pytest.raises(PluginError, match="no three"):
            await refused
        stream = asyncio.create_task(last_delta(client, "a"))
        await until(lambda: first.told_of(Submit))
        first.die()
        await until(lambda: second.told_of(Submit))
        told = [(m.method, m.arguments) if isinstance(m, Call) else "submit" for m in second.told]
        assert told == [("disable_plugin", ["one"]), "submit"], "each engine begins with all plugins on"
        await client.close()
        with pytest.raises(EngineClosedError):
            await stream

    asyncio.run(main())


def test_a_switch_that_is_refused_after_a_death_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        first, second, third = (FakeProcess(started(), answers_calls=False) for _ in range(3))
        Spawner(monkeypatch, [first, second, third])
        client = await start()
        refused = asyncio.create_task(client.set_plugin("fixed", is_enabled=False))
        await until(lambda: first.told_of(Call))
        first.die()
        await until(lambda: client._calls._futures and second.told_of(Call))
        call = second.told_of(Call)[-1]
        second.say(Reply(call.number, [], PluginError("it is fixed")))  # type: ignore[union-attr]  # a Call
        with pytest.raises(PluginError, match="fixed"):
            await refused
        second.die()
        await until(lambda: client.status().num_restarts == 2 and client.status().is_ready)
        assert not third.told_of(Call), "the next engine is told nothing of it"
        await client.close()

    asyncio.run(main())


def test_other_plugins_in_the_process_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        other = FakeProcess(started("f" * 64))
        Spawner(monkeypatch, [other])
        with pytest.raises(ConfigError, match="other plugins .fingerprint ffffffffffff"):
            await start()
        assert other.is_reaped
        first, changed = FakeProcess(started()), FakeProcess(started("f" * 64))
        Spawner(monkeypatch, [first, changed])
        client = await start(max_restarts=1)
        first.die()
        await until(lambda: client.status().is_ended)
        assert "other plugins" in client.status().reason and changed.is_reaped
        await client.close()

    asyncio.run(main())


def figures(num_requests: int) -> list[Metric]:
    return [Metric("quire:num_requests", float(num_requests), "counter"), Metric("quire:g", 3.0, "gauge")]


async def told_figures(client: SupervisedEngine) -> dict[str, float]:
    return {metric.name: metric.value for metric in await client.get_metrics()}


def test_counters_do_not_fall_over_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        first, second = (FakeProcess(started(), answers_calls=False) for _ in range(2))
        Spawner(monkeypatch, [first, second])
        client = await start()
        streams = [asyncio.create_task(last_delta(client, "counted"))]
        await until(lambda: first.told_of(Submit))
        asked = asyncio.create_task(told_figures(client))
        await until(lambda: first.told_of(Call))
        [call] = first.told_of(Call)
        assert isinstance(call, Call)
        first.say(TakingIn("counted"), Reply(call.number, figures(7)))
        assert (await asked)["quire:num_requests"] == 7
        failing = asyncio.create_task(told_figures(client))
        await until(lambda: len(first.told_of(Call)) == 2)
        first.say(Reply(call.number + 1, [], QuireError("cannot be told")))
        assert (await failing)["quire:num_requests"] == 7, "an error erased the counters"
        streams.append(asyncio.create_task(last_delta(client, "untold")))
        await until(lambda: len(first.told_of(Submit)) == 2)
        ended = asyncio.create_task(last_delta(client, "ended"))
        await until(lambda: len(first.told_of(Submit)) == 3)
        last = OutputDelta("ended", [ChoiceDelta(0, "a", [7], None, "stop")], True)
        first.say(TakingIn("ended"), Deltas([last], 0, 0))
        assert (await ended).finished
        dying = asyncio.create_task(told_figures(client))
        await until(lambda: len(first.told_of(Call)) == 3)
        first.say(TakingIn("untold"))
        first.die()
        assert (await dying)["quire:num_requests"] == 9, "what it had taken in and not told is counted"
        await until(lambda: len(second.told_of(Submit)) == 2)
        flags = {m.request_id: m.is_counted for m in second.told if isinstance(m, Submit)}
        assert flags == {"counted": True, "untold": True}
        second.say(Counters(figures(0)), Reply(999))
        second.answers_calls = True
        assert await told_figures(client) == {
            "quire:num_requests": 9,
            "quire:prompt_tokens": 6,  # of the untold ones
            "quire:request_success": 0,  # of the last reason
            "quire:g": 3,
            "quire:engine_restarts": 1,
        }
        await client.close()
        await asyncio.gather(*streams, return_exceptions=True)

    asyncio.run(main())


def test_all_who_close_return_when_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(FakeProcess):
        async def stop(self, limit_s: float) -> None:
            try:
                await asyncio.sleep(0.1 if limit_s else 0)
            finally:
                await self.reap()

    async def main() -> None:
        process = Slow(started())
        Spawner(monkeypatch, [process])
        client = await start()
        closing = [asyncio.create_task(client.close()) for _ in range(2)]
        for task in asyncio.as_completed(closing):
            await task
            assert process.is_reaped, "a close returned before the engine had ended"

    asyncio.run(main())


def test_a_cancelled_close_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(FakeProcess):
        async def stop(self, limit_s: float) -> None:
            try:
                await asyncio.sleep(60)
            finally:
                await self.reap()

    async def main() -> None:
        process = Stuck(started())
        Spawner(monkeypatch, [process])
        client = await start()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.close(), 0.05)
        assert process.is_reaped and asyncio.all_tasks() == {asyncio.current_task()}
        await client.close()

    asyncio.run(main())


@pytest.mark.parametrize("is_built", [False, True], ids=["being built", "tokenizer loads"])
def test_a_cancelled_start_leaves_nothing(monkeypatch: pytest.MonkeyPatch, is_built: bool) -> None:
    async def main() -> None:
        released = threading.Event()
        monkeypatch.setattr(supervisor, "_load_tokenizer", lambda *arguments: released.wait(5))
        process = FakeProcess(started() if is_built else Heartbeat(0, False))
        Spawner(monkeypatch, [process])
        starting = asyncio.create_task(start())
        await asyncio.sleep(0.1)
        starting.cancel()
        if not is_built:
            released.set()
        with pytest.raises(asyncio.CancelledError):
            await starting
        released.set()
        assert process.is_reaped and asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_a_start_that_is_cancelled_at_its_end_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        process = FakeProcess(started())
        Spawner(monkeypatch, [process])
        starting = asyncio.create_task(start())
        opened = supervisor.SupervisedEngine.engine_up

        def cancelling(self: SupervisedEngine, engine: EngineProcess) -> None:
            opened(self, engine)
            starting.cancel()

        monkeypatch.setattr(supervisor.SupervisedEngine, "engine_up", cancelling)
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert process.is_reaped and asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_closing_at_once_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        process = FakeProcess(started())
        Spawner(monkeypatch, [process])
        await (await start()).close()
        assert process.is_reaped

    asyncio.run(main())
