"""Which requests are let in: those that can run, while the queue has room."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from quire.api.client import EngineClient, EngineRequest
from quire_serving.errors import ApiError, draining, engine_unavailable
from quire_serving.settings import ServeSettings

if TYPE_CHECKING:
    from quire_serving.state import ServerState

CONTEXTS_PER_SEQUENCE = 4
RETRY_AFTER_S = 2


class Admission:
    """Bounds what waits, by sequences (each choice of a request is one) and by prompt tokens.

    Attributes:
        max_queued_requests: sequences over what one step can hold.
        max_queued_tokens: of prompts that have got nothing yet.
    """

    def __init__(self, client: EngineClient, settings: ServeSettings) -> None:
        self._client = client
        what = client.description
        self.max_queued_requests = settings.max_queued_requests
        self.max_queued_tokens = (
            settings.max_queued_tokens or CONTEXTS_PER_SEQUENCE * what.max_model_len * what.max_num_seqs
        )
        tokenizer = client.tokenizer
        self._max_chars_per_token = None if tokenizer is None else tokenizer.max_chars_per_token
        self._num_sequences = 0
        self._num_waiting_tokens = 0
        self._num_arriving = 0

    @property
    def num_sequences(self) -> int:
        """Those let in that have not ended, whether the engine has them yet or not."""
        return self._num_sequences

    def check_size(self, num_chars: int) -> None:
        """Refuse a text that no tokenizer could make short enough, before one tries.

        Raises:
            ApiError: 400.
        """
        most = self._max_chars_per_token
        if most is not None and num_chars > self._client.description.max_model_len * most:
            raise self._too_long(f"{num_chars} characters, at least {-(-num_chars // most)} tokens")

    def check_length(self, num_tokens: int) -> None:
        """Refuse a prompt that leaves no room for an answer.

        Raises:
            ApiError: 400.
        """
        if num_tokens >= self._client.description.max_model_len:
            raise self._too_long(f"{num_tokens} tokens")

    def check_room(self) -> None:
        """Refuse what would be refused whatever it were.

        Raises:
            ApiError: 429, to be tried again later.
        """
        self._check_room(1, 1)

    @contextmanager
    def arriving(self) -> Iterator[None]:
        """Count a request as one sequence while it is tokenized, where there is room for it.

        Raises:
            ApiError: 429, to be tried again later.
        """
        self.check_room()
        self._num_arriving += 1
        try:
            yield
        finally:
            self._num_arriving -= 1

    def admit(self, requests: Sequence[EngineRequest]) -> Ticket:
        """Count requests in; their ticket counts them out.

        Prompts that find none waiting always have room for their tokens.

        Raises:
            ApiError: 429, to be tried again later; 400 where that would never help.
        """
        num_tokens = 0
        for request in requests:
            self.check_length(len(request.token_ids))
            num_tokens += len(request.token_ids)
        num_sequences = sum(request.params.n for request in requests)
        capacity = self._client.description.max_num_seqs + self.max_queued_requests
        if num_sequences > capacity:
            raise ApiError(
                400,
                "too_many_choices",
                f"{len(requests)} prompts have {num_sequences} choices together, over the {capacity} that this "
                "server holds at once: ask for fewer in a request, or raise --max-queued-requests",
                "n",
            )
        self._check_room(num_sequences, num_tokens)
        self._num_sequences += num_sequences
        self._num_waiting_tokens += num_tokens
        return Ticket(self, requests)

    def leave(self, num_sequences: int, num_waiting_tokens: int) -> None:
        """Count out what has ended, or waits no longer."""
        self._num_sequences -= num_sequences
        self._num_waiting_tokens -= num_waiting_tokens

    def _check_room(self, num_sequences: int, num_tokens: int) -> None:
        """Refuse so many more. Plugins' routes may have given the engine requests that are not counted here."""
        status = self._client.status()
        num_open = max(self._num_sequences, status.num_requests)
        num_waiting = num_open + self._num_arriving + num_sequences - self._client.description.max_num_seqs
        if num_waiting > self.max_queued_requests:
            raise _full(f"{num_waiting} requests would wait", self.max_queued_requests)
        num_before = max(self._num_waiting_tokens, status.num_waiting_tokens)
        if num_before and num_before + num_tokens > self.max_queued_tokens:
            raise _full(f"{num_before + num_tokens} prompt tokens would wait", self.max_queued_tokens)

    def _too_long(self, what: str) -> ApiError:
        limit = self._client.description.max_model_len
        return ApiError(
            400,
            "context_length_exceeded",
            f"the prompt has {what}; the context holds {limit}, at least one of them of output: send a shorter one",
        )


class Ticket:
    """What requests that were let in count for, until they have ended."""

    __slots__ = ("_admission", "_num_sequences", "_num_tokens")

    def __init__(self, admission: Admission, requests: Sequence[EngineRequest]) -> None:
        self._admission = admission
        self._num_sequences = [request.params.n for request in requests]
        self._num_tokens = [len(request.token_ids) for request in requests]

    def note_output(self, index: int) -> None:
        """The request at this place has got something: its prompt waits no longer."""
        self._admission.leave(0, self._num_tokens[index])
        self._num_tokens[index] = 0

    def note_end(self, index: int) -> None:
        """The request at this place has ended."""
        self._admission.leave(self._num_sequences[index], self._num_tokens[index])
        self._num_sequences[index] = self._num_tokens[index] = 0

    def close(self) -> None:
        """All have ended; idempotent."""
        for index in range(len(self._num_tokens)):
            self.note_end(index)


def check_open(state: ServerState) -> None:
    """Refuse where no request can be served now, whatever it asks for.

    Raises:
        ApiError: 503: the server drains, or its engine was given up; 429: the queue is full.
    """
    if state.is_draining:
        raise draining()
    if state.client.status().is_ended:
        raise engine_unavailable()
    state.admission.check_room()


def _full(what: str, limit: int) -> ApiError:
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    return ApiError(429, "queue_full", f"{what}, over the limit of {limit}: try again later", headers=headers)
