"""A submission as server-sent events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from quire_serving.errors import ApiError, from_quire
from quire_serving.submission import ClientGoneError, Submission, event

SEND_S = 60.0
"""Seconds in which a client must make room for what is sent: one that stops reading gives its place up."""
_logger = logging.getLogger(__name__)


class EventStream(StreamingResponse):
    """A response of server-sent events; closes the submission that they are made from.

    An error after the first event becomes an event `{"error": ...}`, and the response ends there: events
    that generators yield at their end, such as `DONE`, do not follow.
    """

    def __init__(
        self,
        submission: Submission,
        events: AsyncGenerator[bytes, None],
        media_type: str = "text/event-stream",
    ) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(_with_errors(events), media_type=media_type, headers=headers)
        self._submission = submission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream; the submission watches `receive`."""

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(SEND_S):
                await send(message)

        try:
            await self.stream_response(send_in_time)
        except OSError:  # TimeoutError is one
            return  # the server says so where the client has gone
        finally:
            await self._submission.close()


async def _with_errors(events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    try:
        async with aclosing(events):
            async for each in events:
                yield each
    except ClientGoneError:
        return
    except ApiError as error:
        yield event(error.body())
    except Exception as error:  # the status line is out: this is the one way left to tell
        _logger.exception("a stream failed")
        yield event(from_quire(error).body())
