"""The supervised engine: the same outputs as without a process, whatever happens to the process."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from quire import SamplingParams
from quire.api.client import EngineClient, EngineRequest
from quire.api.commands import EngineProcessOptions
from quire.api.config import EngineConfig
from quire.api.errors import (
    ConfigError,
    EngineClosedError,
    ModelNotFoundError,
    PluginError,
    PromptError,
    SamplingParamsError,
    StepError,
)
from quire.api.outputs import ChoiceDelta, OutputDelta
from quire.engine.find_model import find_model
from quire.engine.local_client import LocalEngine
from quire.engine.supervisor import SupervisedEngine

WATCHDOG_S = 4.0
LONG_S = 60.0
"""A watchdog that a busy machine does not set off."""
MAX_TOKENS = 60

FAULTS = """
import os, subprocess, threading
from quire.api.hookspecs import hookimpl
from quire.api.specs import LogitsProcessorSpec, PluginInfo

@hookimpl
def quire_plugin_info():
    return PluginInfo(api=">=1,<2", description="ends or stops its process")

class Fault:
    def __init__(self, arguments):
        self.kind, self.at = arguments["kind"], arguments.get("at", 0)
        self.marker = arguments.get("marker")

    def __call__(self, prompt, output, logits):
        if self.kind == "force":
            logits[10 + len(output)] += 1e6
        elif len(output) == self.at and not (self.marker and os.path.exists(self.marker)):
            if self.kind == "leave":
                child = subprocess.Popen(["sleep", "600"])
            if self.marker:
                with open(self.marker, "w") as file:
                    file.write(str(child.pid) if self.kind == "leave" else "")
            if self.kind in ("exit", "leave"):
                os._exit(3)
            threading.Event().wait()
        return logits

class Faults:
    def for_request(self, arguments, params):
        return None if arguments is None else Fault(arguments)

@hookimpl
def quire_register_logits_processors():
    return [LogitsProcessorSpec(name="fault", factory=lambda context: Faults())]
"""


@dataclass
class Answer:
    """All that a stream gave, choice by choice."""

    texts: list[str]
    token_ids: list[list[int]]
    logprobs: list[list[object]]
    reasons: list[str | None]
    deltas: list[OutputDelta] = field(default_factory=list)

    @property
    def content(self) -> tuple[object, ...]:
        return self.texts, self.token_ids, self.logprobs, self.reasons

    @property
    def tokens_and_texts(self) -> tuple[object, ...]:
        return self.texts, self.token_ids, self.reasons

    def add(self, choice: ChoiceDelta) -> None:
        assert self.reasons[choice.index] is None, "a choice that had ended got more"
        self.texts[choice.index] += choice.text
        self.token_ids[choice.index] += choice.token_ids
        self.logprobs[choice.index] += choice.logprobs or []
        self.reasons[choice.index] = choice.finish_reason


async def answer_of(client: EngineClient, request: EngineRequest) -> Answer:
    count = request.params.n
    answer = Answer([""] * count, [[] for _ in range(count)], [[] for _ in range(count)], [None] * count)
    async with aclosing(client.stream(request)) as deltas:
        async for delta in deltas:
            answer.deltas.append(delta)
            for choice in delta.choices:
                answer.add(choice)
    assert [delta.finished for delta in answer.deltas].count(True) == 1 and answer.deltas[-1].finished
    assert None not in answer.reasons
    return answer


async def answers_of(client: EngineClient, requests: Sequence[EngineRequest]) -> list[Answer]:
    return await asyncio.gather(*(answer_of(client, request) for request in requests))


def config_of(**keywords: object) -> EngineConfig:
    return EngineConfig.from_keywords(
        {"model": "tiny", "dtype": "float64", "num_kv_blocks": 2048, **keywords}
    )


@asynccontextmanager
async def supervised(
    config: EngineConfig, max_restarts: int = 3, watchdog_s: float = LONG_S
) -> AsyncIterator[SupervisedEngine]:
    client = await SupervisedEngine.start(config, EngineProcessOptions(watchdog_s, max_restarts))
    try:
        yield client
    finally:
        await client.close()
        assert not psutil.Process().children(recursive=True), "close left a process"
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not [task for task in others if "quire" in repr(task)], "close left a task"


def requests_of(max_tokens: int) -> list[EngineRequest]:
    """Greedy, seeded, two choices with logprobs and a stop string, and one whose seed the client draws."""
    common: dict[str, Any] = {"max_tokens": max_tokens, "ignore_eos": True}
    params = [
        SamplingParams(temperature=0.0, **common),
        SamplingParams(seed=3, temperature=1.2, **common),
        SamplingParams(n=2, seed=4, logprobs=2, prompt_logprobs=1, temperature=1.5, **common),
        SamplingParams(seed=5, temperature=1.5, stop=["Zzyzx", "ab ", "e"], **common),
        SamplingParams(temperature=1.1, **common),
    ]
    return [
        EngineRequest(f"r{index}", [9 + index, 40, 41, 7], one, text="some text")
        for index, one in enumerate(params)
    ]


@pytest.fixture(scope="module")
def expected() -> list[Answer]:
    """What an engine in this process gives."""

    async def main() -> list[Answer]:
        engine = await LocalEngine.start(config_of())
        try:
            return await answers_of(engine, requests_of(MAX_TOKENS))
        finally:
            await engine.close()

    return asyncio.run(main())


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The plugin FAULTS, installed for this process and the engine's."""
    (tmp_path / "supfaults.py").write_text(textwrap.dedent(FAULTS))
    info = tmp_path / "quire_supfaults-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: quire-supfaults\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[quire]\nsupfaults = supfaults\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def faulty(name: str, **arguments: object) -> EngineRequest:
    params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True, extra_args={"fault": arguments})
    return EngineRequest(name, [5, 6, 7], params)


def test_gives_what_an_engine_in_this_process_gives(expected: list[Answer]) -> None:
    async def main() -> None:
        num_fds = psutil.Process().num_fds()
        async with supervised(config_of()) as client:
            assert client.status().is_ready and client.description.config == config_of()
            got = await answers_of(client, requests_of(MAX_TOKENS))
            # the fifth one's seed is drawn by whoever takes it
            for answer, other in zip(got[:4], expected[:4], strict=True):
                assert answer.tokens_and_texts == other.tokens_and_texts
                check_logprobs(answer, other)
            assert {-1, 0, 1} == {choice for choice, _, _ in values_of(got[2])}
            await check_refusals(client)
            await check_leaving(client)
            await check_plugins(client)
        with pytest.raises(EngineClosedError):
            await answer_of(client, requests_of(3)[0])
        await client.close()
        assert psutil.Process().num_fds() <= num_fds + 2  # the event loop's own watcher of processes

    asyncio.run(main())


def check_logprobs(answer: Answer, other: Answer) -> None:
    """Equal up to rounding: who shares a step, and so the order of sums, is a matter of time."""
    assert values_of(answer).keys() == values_of(other).keys()
    assert values_of(answer) == pytest.approx(values_of(other), abs=1e-9)


def values_of(answer: Answer) -> dict[tuple[int, int, int], float]:
    """Logprobs by choice (-1: the prompt), position and token."""
    positions: list[list[Any]] = [answer.deltas[0].prompt_logprobs or [], *answer.logprobs]
    return {
        (choice - 1, place, token_id): entry.logprob
        for choice, entries in enumerate(positions)
        for place, position in enumerate(entries)
        for token_id, entry in (position or {}).items()
    }


async def check_refusals(client: SupervisedEngine) -> None:
    params = SamplingParams(max_tokens=4)
    with pytest.raises(PromptError, match="outside the model's logits"):
        await answer_of(client, EngineRequest("bad", [10**9], params))
    with pytest.raises(PromptError, match="cannot be"):
        await answer_of(client, EngineRequest("huge", [10**30], params))
    with pytest.raises(PromptError):
        await answer_of(client, EngineRequest("float", [1.5], params))  # type: ignore[list-item] # on purpose
    with pytest.raises(SamplingParamsError):
        await answer_of(client, EngineRequest("p", [5], SamplingParams(extra_args={"nobody": 1})))
    assert len(client._roster) == 0 and client.status().num_waiting_tokens == 0


async def check_leaving(client: SupervisedEngine) -> None:
    """Leaving a stream, and aborting one, frees its blocks."""
    endless = SamplingParams(temperature=0.0, max_tokens=1900, ignore_eos=True)
    async with aclosing(client.stream(EngineRequest("left", [5, 6, 7], endless))) as deltas:
        await anext(deltas)
        with pytest.raises(PromptError, match="in use"):
            await anext(client.stream(EngineRequest("left", [5], endless)))
        assert client.status().num_requests == 1
    task = asyncio.create_task(answer_of(client, EngineRequest("ended", [5, 6, 7], endless)))
    while client.status().num_requests == 0 or client.status().num_waiting_tokens:
        await asyncio.sleep(0.01)
    await client.abort("ended")
    assert (await task).reasons == ["abort"]
    figures = {metric.name: metric.value for metric in await client.get_metrics()}
    assert figures["quire:num_requests_running"] == figures["quire:kv_cache_usage_perc"] == 0
    await client.reset_prefix_cache()


async def check_plugins(client: SupervisedEngine) -> None:
    with pytest.raises(PluginError, match="nobody"):
        await client.set_plugin("nobody", is_enabled=False)


def test_starts_without_torch_and_ends_with_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent("""
        import asyncio, os, sys
        from quire.api.commands import EngineProcessOptions
        from quire.api.config import EngineConfig
        from quire.engine.supervisor import SupervisedEngine

        async def main():
            config = EngineConfig.from_keywords({"model": "tiny"})
            client = await SupervisedEngine.start(config, EngineProcessOptions())
            print(client.pid, "torch" in sys.modules, flush=True)
            os.kill(os.getpid(), 9)

        asyncio.run(main())
        """)
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    pid, has_torch = done.stdout.split()
    assert has_torch == "False"
    psutil.wait_procs([psutil.Process(int(pid))] if psutil.pid_exists(int(pid)) else [], timeout=3)
    assert not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE


def test_what_cannot_start() -> None:
    async def main() -> None:
        with pytest.raises(ModelNotFoundError):
            await SupervisedEngine.start(config_of(model="/no/such/folder"), EngineProcessOptions())
        with pytest.raises(ConfigError):
            await SupervisedEngine.start(config_of(scheduling_policy="nobody"), EngineProcessOptions())
        assert not psutil.Process().children(recursive=True)

    asyncio.run(main())


def test_killed_and_stopped_in_mid_stream(expected: list[Answer]) -> None:
    async def main() -> None:
        async with supervised(config_of(), watchdog_s=WATCHDOG_S) as client:
            await client.set_plugin("ngram", is_enabled=False)
            for number, at in ((signal.SIGKILL, 3), (signal.SIGSTOP, 20), (signal.SIGKILL, 45)):
                before = {m.name: m.value for m in await client.get_metrics()}
                tasks = asyncio.create_task(answers_of(client, requests_of(MAX_TOKENS)))
                while (live := client._roster.get("r0")) is None or len(live._tokens[0] or ()) < at:
                    await asyncio.sleep(0.001)
                os.kill(client.pid or 0, number)
                got = await tasks
                pairs = list(zip(got, expected, strict=True))[:4]
                assert all(one.tokens_and_texts == other.tokens_and_texts for one, other in pairs)
                assert sum(delta.prompt_logprobs is not None for delta in got[2].deltas) == 1
                after = {m.name: m.value for m in await client.get_metrics()}
                assert after["quire:engine_restarts"] == before["quire:engine_restarts"] + 1
                assert after["quire:num_requests"] == before["quire:num_requests"] + len(got)
                assert after["quire:prompt_tokens"] == before["quire:prompt_tokens"] + 4 * len(got)
            assert client.status().is_ready and client.status().num_restarts == 3

    asyncio.run(main())


def test_a_request_that_kills_fails_alone(faults: Path, expected: list[Answer]) -> None:
    async def main() -> None:
        async with supervised(config_of()) as client:
            others = asyncio.create_task(answers_of(client, requests_of(MAX_TOKENS)))
            answer = await answer_of(client, faulty("poison", kind="exit", at=2))
            assert answer.reasons == ["error"] and len(answer.token_ids[0]) == 2
            assert isinstance(answer.deltas[-1].error, StepError)
            assert "died" in str(answer.deltas[-1].error)
            pairs = list(zip(await others, expected, strict=True))[:4]
            assert all(one.tokens_and_texts == other.tokens_and_texts for one, other in pairs)

    asyncio.run(main())


def test_suspects_are_tried_one_at_a_time(faults: Path) -> None:
    async def main() -> None:
        async with supervised(config_of(max_num_seqs=2, max_num_batched_tokens=16)) as client:
            params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
            alone = await answer_of(client, EngineRequest("alone", [5, 6, 7], params))
            poison = asyncio.create_task(answer_of(client, faulty("poison", kind="exit")))
            names = [f"good{index}" for index in range(3)]
            good = await answers_of(client, [EngineRequest(name, [5, 6, 7], params) for name in names])
            assert [answer.content for answer in good] == [alone.content] * 3
            assert (await poison).reasons == ["error"]

    asyncio.run(main())


def test_a_request_keeps_the_plugins_that_it_began_with(faults: Path) -> None:
    async def main() -> None:
        async with supervised(config_of()) as client:
            task = asyncio.create_task(answer_of(client, faulty("forced", kind="force")))
            while (live := client._roster.get("forced")) is None or len(live._tokens[0] or ()) < 5:
                await asyncio.sleep(0.001)
            await client.set_plugin("supfaults", is_enabled=False)
            os.kill(client.pid or 0, signal.SIGKILL)
            assert (await task).token_ids == [list(range(10, 50))]
            assert client.status().num_restarts == 1
            with pytest.raises(SamplingParamsError, match="disabled"):
                await answer_of(client, faulty("late", kind="force"))
            await client.set_plugin("supfaults", is_enabled=True)
            assert (await answer_of(client, faulty("later", kind="force"))).token_ids == [list(range(10, 50))]

    asyncio.run(main())


def test_what_a_dead_engine_started_is_ended(faults: Path) -> None:
    async def main() -> None:
        async with supervised(config_of()) as client:
            marker = faults / "child"
            answer = await answer_of(client, faulty("leaves", kind="leave", at=2, marker=str(marker)))
            assert answer.reasons == ["length"] and client.status().num_restarts == 1
            child = int(marker.read_text())
            assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE

    asyncio.run(main())


def test_a_hang_is_ended_by_the_watchdog(faults: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        async with supervised(config_of(), watchdog_s=WATCHDOG_S) as client:
            request = faulty("hangs", kind="hang", at=3, marker=str(faults / "hung"))
            answer = await answer_of(client, request)
            plain = EngineRequest(
                "plain", request.token_ids, SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
            )
            assert answer.content == (await answer_of(client, plain)).content
            assert client.status().num_restarts == 1

    asyncio.run(main())
    assert "supfaults.py" in capfd.readouterr().err, "no stack was dumped"


def test_a_build_that_hangs_is_ended(faults: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (faults / "supfaults.py").write_text(
        textwrap.dedent("""
        import sys, time
        from quire.api.hookspecs import hookimpl
        from quire.api.specs import PluginInfo

        @hookimpl
        def quire_plugin_info():
            if "quire.engine.process" in sys.orig_argv:
                time.sleep(600)  # the heart beats
            return PluginInfo(api=">=1,<2", description="never comes up")
        """)
    )

    async def main() -> None:
        options = EngineProcessOptions(watchdog_s=LONG_S, max_build_s=20.0)
        with pytest.raises(EngineClosedError, match="it was not built within 20 s"):
            await SupervisedEngine.start(config_of(), options)
        assert not psutil.Process().children(recursive=True)

    asyncio.run(main())
    assert "supfaults.py" in capfd.readouterr().err, "no stack was dumped"


def test_a_cancelled_start_or_close_leaves_no_process() -> None:
    async def main() -> None:
        for after_s in (0.05, 1.0):
            starting = asyncio.create_task(SupervisedEngine.start(config_of(), EngineProcessOptions()))
            await asyncio.sleep(after_s)
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
            assert not psutil.Process().children(recursive=True)
        client = await SupervisedEngine.start(config_of(), EngineProcessOptions())
        os.kill(client.pid or 0, signal.SIGSTOP)  # so that it does not end by itself
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.close(), 0.2)
        assert not psutil.Process().children(recursive=True)
        assert not [task for task in asyncio.all_tasks() if "quire" in repr(task)]

    asyncio.run(main())


def test_an_id_is_free_as_soon_as_its_stream_is_left() -> None:
    async def main() -> None:
        async with supervised(config_of()) as client:
            params = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)
            alone = await answer_of(client, EngineRequest("alone", [50, 60, 70], params))
            for _ in range(5):
                async with aclosing(client.stream(EngineRequest("x", [5, 6, 7], params))) as deltas:
                    await anext(deltas)
                assert (
                    await answer_of(client, EngineRequest("x", [50, 60, 70], params))
                ).content == alone.content

    asyncio.run(main())


def test_gives_up(tmp_path: Path) -> None:
    """An engine that cannot be built again ends the streams, with what is known."""

    async def main() -> None:
        folder = tmp_path / "model"
        shutil.copytree(find_model("tiny"), folder)
        async with supervised(config_of(model=str(folder)), max_restarts=1) as client:
            shutil.move(folder, tmp_path / "gone")
            endless = SamplingParams(temperature=0.0, max_tokens=1900, ignore_eos=True)
            task = asyncio.create_task(answer_of(client, EngineRequest("r", [5, 6, 7], endless)))
            await asyncio.sleep(0.1)
            os.kill(client.pid or 0, signal.SIGKILL)
            answer = await task
            assert answer.reasons == ["error"] and isinstance(answer.deltas[-1].error, EngineClosedError)
            assert not client.status().is_ready and "given up" in client.status().reason
            with pytest.raises(EngineClosedError, match="given up"):
                await answer_of(client, EngineRequest("r", [5], endless))

    asyncio.run(main())
