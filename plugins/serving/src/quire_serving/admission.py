"""Which requests are let in: those that can run, while the queue has room."""

from __future__ import annotations

from quire.api.client import EngineClient
from quire_serving.errors import ApiError
from quire_serving.settings import ServeSettings

MAX_CHARS_PER_TOKEN = 256
"""No vocabulary's average token is longer, so a text of more characters cannot fit its context."""

CONTEXTS_PER_SEQUENCE = 4
RETRY_AFTER_S = 2


class Admission:
    """Bounds what waits, by requests and by prompt tokens.

    Attributes:
        max_queued_requests: those over what one step can hold.
        max_queued_tokens: of prompts of which nothing was computed yet.
    """

    def __init__(self, client: EngineClient, settings: ServeSettings) -> None:
        self._client = client
        what = client.description
        self.max_queued_requests = settings.max_queued_requests
        self.max_queued_tokens = (
            settings.max_queued_tokens or CONTEXTS_PER_SEQUENCE * what.max_model_len * what.max_num_seqs
        )

    def check_size(self, num_chars: int) -> None:
        """Refuse a text that no tokenizer could make short enough, before one tries.

        Raises:
            ApiError: 400.
        """
        limit = self._client.description.max_model_len
        if num_chars > limit * MAX_CHARS_PER_TOKEN:
            raise ApiError(
                400,
                "context_length_exceeded",
                f"a prompt of {num_chars} characters cannot fit the context of {limit} tokens: send a shorter one",
            )

    def admit(self, num_tokens: int, num_requests: int) -> None:
        """Refuse requests for which the queue has no room. Prompts that find nothing waiting always have.

        Raises:
            ApiError: 429, to be tried again later.
        """
        status = self._client.status()
        num_waiting = status.num_requests + num_requests - self._client.description.max_num_seqs
        if num_waiting > self.max_queued_requests:
            raise _full(f"{num_waiting} requests would wait", self.max_queued_requests)
        num_waiting_tokens = status.num_waiting_tokens + num_tokens
        if status.num_waiting_tokens and num_waiting_tokens > self.max_queued_tokens:
            raise _full(f"{num_waiting_tokens} prompt tokens would wait", self.max_queued_tokens)


def _full(what: str, limit: int) -> ApiError:
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    return ApiError(429, "queue_full", f"{what}, over the limit of {limit}: try again later", headers=headers)
