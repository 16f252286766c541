"""The engine of a server is killed or stopped while clients stream: no stream is lost, no token wrong."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator

import httpx
import pytest
from server_process import Answer, ServerProcess, stream_completion

NUM_CLIENTS = 16
MAX_TOKENS = 160
RECOVERY_LIMIT_S = 15.0
WATCHDOG_S = 2.0


def bodies() -> list[dict[str, object]]:
    """What the clients ask: half greedy, half seeded, one with two choices."""
    asked: list[dict[str, object]] = []
    for index in range(NUM_CLIENTS):
        body: dict[str, object] = {
            "prompt": [10 + index, 40, 41 + index, 7],
            "max_tokens": MAX_TOKENS,
            "ignore_eos": True,
            "temperature": 0.0 if index % 2 else 0.9,
            "seed": index,
        }
        asked.append(body)
    return asked


async def all_answers(url: str) -> list[Answer]:
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        return await asyncio.gather(*(stream_completion(client, body) for body in bodies()))


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess("--dtype", "float64", "--watchdog-s", str(WATCHDOG_S)) as process:
        process.wait_ready()
        yield process


@pytest.fixture(scope="module")
def undisturbed(server: ServerProcess) -> list[Answer]:
    answers = asyncio.run(all_answers(server.url))
    assert all(len(answer.token_ids) == MAX_TOKENS for answer in answers)
    return answers


def disturb(server: ServerProcess, number: signal.Signals, after_s: float) -> tuple[list[Answer], float]:
    """The answers of all clients whose engine got a signal, and the seconds until the next engine was ready."""

    async def main() -> tuple[list[Answer], float]:
        task = asyncio.create_task(all_answers(server.url))
        await asyncio.sleep(after_s)
        pid = server.engine_pid()
        os.kill(pid, number)
        begin = time.monotonic()
        while server_pid_or_none(server) in (pid, None):
            await asyncio.sleep(0.02)
            assert time.monotonic() - begin < RECOVERY_LIMIT_S
        await asyncio.to_thread(server.wait_ready)
        seconds = time.monotonic() - begin
        return await task, seconds

    return asyncio.run(main())


def server_pid_or_none(server: ServerProcess) -> int | None:
    children = server.children()
    return children[0].pid if len(children) == 1 else None


def check_faults(
    server: ServerProcess, undisturbed: list[Answer], number: signal.Signals, moments: list[float]
) -> None:
    for moment in moments:
        answers, seconds = disturb(server, number, moment)
        for asked, answer, expected in zip(bodies(), answers, undisturbed, strict=True):
            assert answer.token_ids == expected.token_ids, (moment, asked)
            assert answer.text == expected.text and answer.ends == ["length"] and answer.is_done
        assert seconds < RECOVERY_LIMIT_S


def moments(number: int, seed: int) -> list[float]:
    """Moments within the time that the undisturbed answers take, about."""
    rng = random.Random(seed)
    return [rng.uniform(0.0, 0.9) for _ in range(number)]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_some_faults(server: ServerProcess, undisturbed: list[Answer], number: signal.Signals) -> None:
    check_faults(server, undisturbed, number, moments(2, number))


@pytest.mark.nightly
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_many_faults(server: ServerProcess, undisturbed: list[Answer], number: signal.Signals) -> None:
    check_faults(server, undisturbed, number, moments(20, number + 100))


def check_terminations(after: list[float]) -> None:
    for moment in after:
        with ServerProcess("--drain-s", "20") as process:
            process.wait_ready()

            async def main(url: str, process: ServerProcess, moment: float) -> list[Answer]:
                task = asyncio.create_task(all_answers(url))
                await asyncio.sleep(moment)
                process.signal(signal.SIGTERM)
                return await task

            children = process.children()
            answers = asyncio.run(main(process.url, process, moment))
            assert process.wait(30) == 0
            for answer in answers:
                assert answer.status in (200, 503)
                assert answer.status == 503 or (len(answer.ends) == 1 and answer.is_done)
            assert any(answer.status == 200 for answer in answers)
            assert not [child for child in children if child.is_running()]


def test_a_termination_lets_streams_end() -> None:
    check_terminations([0.4])


@pytest.mark.nightly
def test_many_terminations() -> None:
    rng = random.Random(5)
    check_terminations([rng.uniform(0.2, 1.0) for _ in range(20)])


def test_the_engine_dies_with_its_server() -> None:
    with ServerProcess() as process:
        process.wait_ready()
        children = process.children()
        assert len(children) == 1
        process.signal(signal.SIGKILL)
        process.wait(5)
        deadline = time.monotonic() + 5
        while any(child.is_running() and child.status() != "zombie" for child in children):
            assert time.monotonic() < deadline
            time.sleep(0.05)
