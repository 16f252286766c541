"""Which requests the engine of now has, and which of them to suspect when it dies."""

from __future__ import annotations

import logging

from quire.api.errors import PromptError, StepError
from quire.api.request import FinishReason
from quire.engine.child import EngineProcess
from quire.engine.live_request import LiveRequest

SUSPICIOUS_DEATHS = 2

logger = logging.getLogger("quire")


class Roster:
    """The requests that have not ended, in the order in which they came.

    A request with which two engines in a row died, without a token for it in between, is a suspect. A single
    one is ended; several are tried one at a time, while all others wait, and the one that kills is ended.
    """

    def __init__(self) -> None:
        self._live: dict[str, LiveRequest] = {}
        self._suspects: list[LiveRequest] = []
        self._engine: EngineProcess | None = None
        self._num_waiting_tokens = 0

    def __len__(self) -> int:
        return len(self._live)

    @property
    def num_waiting_tokens(self) -> int:
        """Prompt tokens of requests that have got nothing."""
        return self._num_waiting_tokens

    @property
    def num_held(self) -> int:
        """Requests that no engine has."""
        return sum(not live.is_sent for live in self._live.values()) if self._is_holding else 0

    def get(self, request_id: str) -> LiveRequest | None:
        """A request by its id."""
        return self._live.get(request_id)

    def add(self, live: LiveRequest) -> None:
        """Take a request, and give it to the engine as soon as may be."""
        name = live.request.request_id
        if name in self._live:
            raise PromptError(f"request id {name!r} is in use: give each request its own")
        frame = live.frame()
        self._live[name] = live
        self._num_waiting_tokens += live.num_prompt_tokens
        if self._engine is not None and not self._suspects:
            self._send(live, frame)

    def note_output(self, live: LiveRequest, *, is_first: bool) -> None:
        """It got something: that clears it."""
        if is_first:
            self._num_waiting_tokens -= live.num_prompt_tokens
        self._clear(live)

    def remove(self, live: LiveRequest) -> None:
        """It has ended, or nobody waits for it."""
        if self._live.get(live.request.request_id) is not live:
            return
        del self._live[live.request.request_id]
        if not live.has_output:
            self._num_waiting_tokens -= live.num_prompt_tokens
        self._clear(live)

    def engine_ready(self, engine: EngineProcess) -> None:
        """Give an engine what there is."""
        self._engine = engine
        self._send_what_may_run()

    def engine_died(self) -> bool:
        """Note a death and end its culprit, if it is known; whether anything was found out."""
        on_trial = self._suspects[0] if self._suspects and self._suspects[0].is_sent else None
        self._engine = None
        for live in list(self._live.values()):
            if live.is_sent:
                live.is_sent = False
                live.num_fruitless_deaths += 1
            if live.is_over or live.is_aborted:
                self.end(live, FinishReason.ABORT)
        if on_trial is None:
            self._suspects = [
                live for live in self._live.values() if live.num_fruitless_deaths >= SUSPICIOUS_DEATHS
            ]
            on_trial = self._suspects[0] if len(self._suspects) == 1 else None
        if on_trial is None or on_trial.request.request_id not in self._live:
            return False
        name = on_trial.request.request_id
        logger.error("request %s is ended: engines die of it", name)
        text = f"the engine died {on_trial.num_fruitless_deaths} times while it ran request {name!r}"
        self.end(on_trial, FinishReason.ERROR, StepError(text))
        return True

    def end(self, live: LiveRequest, reason: FinishReason, error: Exception | None = None) -> None:
        """End a request here."""
        self.remove(live)
        live.end(reason, error)

    def end_all(self, error: Exception, *, is_closing: bool) -> None:
        """No engine will follow: readers get the error, raised or in a last delta."""
        self._engine = None
        self._suspects.clear()
        for live in list(self._live.values()):
            self.remove(live)
            if is_closing:
                live.fail(error)
            else:
                live.end(FinishReason.ERROR, error)

    @property
    def _is_holding(self) -> bool:
        return self._engine is None or bool(self._suspects)

    def _clear(self, live: LiveRequest) -> None:
        if live in self._suspects:
            self._suspects.remove(live)
            self._send_what_may_run()

    def _send_what_may_run(self) -> None:
        for live in self._suspects[:1] or list(self._live.values()):
            if not live.is_sent:
                self._send(live, live.frame())

    def _send(self, live: LiveRequest, frame: bytes) -> None:
        if self._engine is not None:
            live.is_sent = True
            live.num_engines += 1
            self._engine.send_frame(frame)
