"""`quire run-batch`: answer the requests of an OpenAI batch file; a second run goes on where one ended."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quire.api.commands import CommandTools
from quire.api.errors import ConfigError
from quire_serving.cli.progress import progress
from quire_serving.cli.remote import add_server_flags, at_least

if TYPE_CHECKING:
    import httpx

    from quire_serving.cli.batch_file import BatchRequest

OnLine = Callable[[dict[str, object]], None]


class RunBatchCommand:
    """Runs a batch file, in this process or (with --url) against a server."""

    def __init__(self, tools: CommandTools) -> None:
        self._tools = tools

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The files, the server, and the engine's flags."""
        add = parser.add_argument
        add(
            "-i",
            "--input-file",
            type=Path,
            required=True,
            metavar="FILE",
            help="JSON lines of requests; - is standard input",
        )
        add(
            "-o",
            "--output-file",
            type=Path,
            required=True,
            metavar="FILE",
            help="JSON lines of answers; what succeeded in it already is not asked again; - is standard output",
        )
        add(
            "--max-concurrency",
            type=at_least(1),
            default=64,
            metavar="N",
            help="requests under way (default: 64)",
        )
        add_server_flags(parser, default_model="what each line says")
        self._tools.add_engine_flags(parser)

    def run(self, args: argparse.Namespace) -> int:
        """Answer all; the status is 1 when a line failed, malformed ones among them."""
        from quire_serving.cli.batch_file import BatchOutput, read_requests

        if args.output_file.resolve() == args.input_file.resolve() and args.input_file.exists():
            raise ConfigError(f"{args.output_file} is the input: give another --output-file")
        requests = read_requests(args.input_file)
        with BatchOutput(args.output_file) as output:
            todo = [request for request in requests if request.error or request.custom_id not in output.done]
            with progress(len(todo), "requests") as advance:

                def on_line(line: dict[str, object]) -> None:
                    output.append(line)
                    advance()

                try:
                    asyncio.run(self._run(args, todo, on_line))
                finally:
                    num_left = len(todo) - output.num_good - output.num_failed
                    print(
                        f"{output.num_good} answered, {output.num_failed} failed, "
                        f"{len(requests) - len(todo)} were there already"
                        + (f", {num_left} are left: run it again to go on" if num_left else ""),
                        file=sys.stderr,
                    )
        return 1 if output.num_failed else 0

    async def _run(self, args: argparse.Namespace, requests: Sequence[BatchRequest], on_line: OnLine) -> None:
        from quire_serving.cli.batch_client import answer, batch_client
        from quire_serving.cli.batch_file import error_line

        for request in requests:
            if request.error:
                on_line(error_line(request.custom_id, "invalid_request", request.error))
        sendable = [request for request in requests if not request.error]
        if not sendable:
            return
        waiting = iter(sendable)

        async def work(client: httpx.AsyncClient) -> None:
            for request in waiting:
                on_line(await answer(client, request, args.model_name))

        try:
            async with batch_client(args, self._tools) as client, asyncio.TaskGroup() as group:
                for _ in range(min(args.max_concurrency, len(sendable))):
                    group.create_task(work(client))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
