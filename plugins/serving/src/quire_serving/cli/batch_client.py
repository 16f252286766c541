"""Sends the requests of a batch to a server: that of --url, or one that exists in this process only."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from quire.api.commands import CommandTools
from quire_serving.cli.batch_file import BatchRequest, answer_line, error_line
from quire_serving.cli.remote import CONNECT_TIMEOUT_S, ServerError, address_of, refusal
from quire_serving.settings import ServeSettings

RETRY_STATUSES = (429, 503)
MAX_TRIES = 6
FIRST_WAIT_S = 0.5
MAX_WAIT_S = 30.0
TIMEOUT = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)


@asynccontextmanager
async def batch_client(args: argparse.Namespace, tools: CommandTools) -> AsyncIterator[httpx.AsyncClient]:
    """A client whose URLs begin at the server's root.

    Raises:
        QuireError: no server answers, it does not let one in, or no engine can be started.
    """
    if args.url is not None:
        address = address_of(args)
        async with httpx.AsyncClient(
            base_url=address.url.removesuffix("/v1"),
            headers=address.headers,
            timeout=TIMEOUT,
            limits=httpx.Limits(max_connections=None),
        ) as client:
            await _check(client)
            yield client
        return
    config = tools.engine_config(args)
    engine = await tools.start_engine(config)
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
            extensions=tools.server_extensions(config),
            model_names=(name,),
            created=int(time.time()),
            admission=Admission(engine, settings),
            metrics=ServerMetrics(engine, name),
        )
        transport = httpx.ASGITransport(create_app(state), raise_app_exceptions=False)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://localhost", timeout=TIMEOUT
        ) as client:
            yield client
    finally:
        await engine.close()


async def answer(client: httpx.AsyncClient, request: BatchRequest, model: str | None) -> dict[str, object]:
    """Ask for one line, again where the server is full or breaks off; a line of the output.

    Raises:
        ServerError: no server has answered for a while.
    """
    body = {**(request.body or {}), **({"model": model} if model is not None else {})}
    attempt = 0
    while True:
        is_last = attempt == MAX_TRIES - 1
        wait_s = FIRST_WAIT_S * 2**attempt
        try:
            response = await client.post(request.url, json=body)
        except httpx.ConnectError as error:
            if is_last:
                raise _no_server(client, error) from None
        except httpx.HTTPError as error:
            if is_last:
                return error_line(request.custom_id, "connection_error", str(error) or type(error).__name__)
        else:
            if response.status_code not in RETRY_STATUSES or is_last:
                return _line(request, response)
            asked = response.headers.get("retry-after", "")
            wait_s = float(asked) if asked.isdecimal() else wait_s
        await asyncio.sleep(min(wait_s, MAX_WAIT_S))
        attempt += 1


def _line(request: BatchRequest, response: httpx.Response) -> dict[str, object]:
    request_id = response.headers.get("x-request-id", "")
    try:
        return answer_line(request.custom_id, response.status_code, request_id, response.json())
    except ValueError:
        return error_line(request.custom_id, "invalid_answer", f"status {response.status_code}, not JSON")


async def _check(client: httpx.AsyncClient) -> None:
    """What every line would fail by is told once, before a line is asked."""
    try:
        response = await client.get("/v1/models")
    except httpx.HTTPError as error:
        raise _no_server(client, error) from None
    if response.status_code in (401, 403):
        raise ServerError(refusal(response.status_code, response.content))


def _no_server(client: httpx.AsyncClient, error: Exception) -> ServerError:
    return ServerError(f"no answer from {client.base_url} ({error}): is the server up?")
