"""`quire run-batch`: answer the requests of an OpenAI batch file; a second run goes on where one ended."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from quire.api.commands import CommandTools
from quire_serving.cli.progress import progress
from quire_serving.cli.remote import CONNECT_TIMEOUT_S, add_server_flags, address_of
from quire_serving.settings import ServeSettings

if TYPE_CHECKING:
    import httpx

    from quire_serving.cli.batch_file import BatchRequest

RETRY_STATUSES = (429, 503)
MAX_TRIES = 5


class RunBatchCommand:
    """Runs a batch file, in this process or (with --url) against a server."""

    def __init__(self, tools: CommandTools) -> None:
        self._tools = tools

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The files, the server, and the engine's flags."""
        add = parser.add_argument
        add("-i", "--input-file", type=Path, required=True, metavar="FILE", help="JSON lines of requests")
        add(
            "-o",
            "--output-file",
            type=Path,
            required=True,
            metavar="FILE",
            help="JSON lines of answers; what succeeded in it already is not asked again",
        )
        add("--max-concurrency", type=int, default=64, metavar="N", help="requests under way (default: 64)")
        add_server_flags(parser)
        self._tools.add_engine_flags(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Answer all; the status is 1 when a line failed, malformed ones among them."""
        from quire_serving.cli.batch_file import BatchOutput, is_success, read_requests

        requests = read_requests(args.input_file)
        num_failed = 0
        with BatchOutput(args.output_file) as output:
            todo = [request for request in requests if request.custom_id not in output.done]
            with progress(len(todo), "requests") as advance:

                def on_line(line: dict[str, object]) -> None:
                    nonlocal num_failed
                    output.append(line)
                    num_failed += not is_success(line)
                    advance()

                asyncio.run(self._run(args, todo, on_line))
        print(
            f"{len(todo) - num_failed} answered, {num_failed} failed, {len(requests) - len(todo)} were there already",
            file=sys.stderr,
        )
        return 1 if num_failed else 0

    async def _run(
        self,
        args: argparse.Namespace,
        requests: Sequence[BatchRequest],
        on_line: Callable[[dict[str, object]], None],
    ) -> None:
        from quire_serving.cli.batch_file import error_line

        for request in requests:
            if request.error:
                on_line(error_line(request.custom_id, "invalid_request", request.error))
        sendable = iter([request for request in requests if not request.error])
        num_workers = min(max(1, args.max_concurrency), sum(not request.error for request in requests))
        if not num_workers:
            return

        async def work(client: httpx.AsyncClient) -> None:
            for request in sendable:
                on_line(await answer(client, request, args.model_name))

        async with self._client(args) as client, asyncio.TaskGroup() as group:
            for _ in range(num_workers):
                group.create_task(work(client))

    @asynccontextmanager
    async def _client(self, args: argparse.Namespace) -> AsyncIterator[httpx.AsyncClient]:
        """Speaks to the server of --url, else to one that exists in this process only."""
        import httpx

        timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)
        if args.url is not None:
            address = address_of(args)
            base = address.url.removesuffix("/v1")
            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(
                base_url=base, headers=address.headers, timeout=timeout, limits=limits
            ) as client:
                yield client
            return
        config = self._tools.engine_config(args)
        engine = await self._tools.start_engine(config)
        try:
            from quire_serving.admission import Admission
            from quire_serving.app import create_app
            from quire_serving.metrics import ServerMetrics
            from quire_serving.state import ServerState

            settings = ServeSettings(access_log=False, max_queued_requests=max(256, args.max_concurrency))
            name = args.model_name or config.model.model
            state = ServerState(
                client=engine,
                settings=settings,
                extensions=self._tools.server_extensions(config),
                model_names=(name,),
                created=int(time.time()),
                admission=Admission(engine, settings),
                metrics=ServerMetrics(engine, name),
            )
            transport = httpx.ASGITransport(create_app(state), raise_app_exceptions=False)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://localhost", timeout=timeout
            ) as client:
                yield client
        finally:
            await engine.close()


async def answer(client: httpx.AsyncClient, request: BatchRequest, model: str | None) -> dict[str, object]:
    """Ask for one line, again where the server is full; a line of the output."""
    import httpx

    from quire_serving.cli.batch_file import answer_line, error_line

    body = {**(request.body or {}), **({"model": model} if model is not None else {})}
    for attempt in range(MAX_TRIES):
        try:
            response = await client.post(request.url, json=body)
        except httpx.HTTPError as error:
            return error_line(request.custom_id, "connection_error", str(error) or type(error).__name__)
        if response.status_code not in RETRY_STATUSES or attempt == MAX_TRIES - 1:
            break
        wait = response.headers.get("retry-after", "")
        await asyncio.sleep(min(30.0, float(wait)) if wait.isdecimal() else 0.5 * 2**attempt)
    request_id = response.headers.get("x-request-id", "")
    try:
        return answer_line(request.custom_id, response.status_code, request_id, response.json())
    except ValueError:
        return error_line(request.custom_id, "invalid_answer", f"status {response.status_code}, not JSON")
