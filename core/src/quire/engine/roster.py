"""Which requests the engine of now has, and which of them to suspect when it dies."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from quire.api.errors import PromptError, StepError
from quire.api.request import FinishReason
from quire.engine.child import EngineProcess
from quire.engine.live_request import LiveRequest
from quire.engine.messages import Abort, Forget
from quire.engine.switches import Switches

SUSPICIOUS_DEATHS = 2
FATAL_DEATHS = 2

logger = logging.getLogger("quire")


class Roster:
    """The requests that have not ended, in the order in which they came.

    Of a death those are suspected that the engine had begun: the one that it was taking in, or else all that
    it ran. If that is one alone, it is its own death; of two of its own, without a token in between, a
    request is ended. A request with two deaths of whatever kind since its last token is tried: while there
    are such, all others wait, and they are given to the engine one after the other, each when the one before
    has got a token.

    Requests that only waited are never suspected. What cannot be known is who ended the engine: two kills
    from outside that both come while the same request runs alone, without a token in between, look like its
    doing; and a request that kills but gets a token each time is not found.

    Attributes:
        num_ended: requests that were ended here, not by an engine, by reason.
        uncounted: prompt lengths of requests that the engine took in and ended, or died with, and had not told
            in its counters.
    """

    def __init__(self, switches: Switches) -> None:
        self.num_ended: Counter[str] = Counter()
        self.uncounted: list[int] = []
        self._switches = switches
        self._live: dict[str, LiveRequest] = {}
        self._left: dict[str, list[LiveRequest]] = {}  # until the engine has forgotten them
        self._suspects: list[LiveRequest] = []
        self._taking_in: LiveRequest | None = None
        self._engine: EngineProcess | None = None
        self._num_waiting_tokens = 0
        self._has_lost_suspect = False  # one that an engine had died of alone was left

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

    def answered(self, request_id: str) -> LiveRequest | None:
        """The request that a message of the engine is about; None where it was left."""
        return None if request_id in self._left else self._live.get(request_id)

    def add(self, live: LiveRequest) -> None:
        """Take a request, and give it to the engine as soon as may be."""
        name = live.request.request_id
        if name in self._live:
            raise PromptError(f"request id {name!r} is in use: give each request its own")
        frame = live.frame()
        live.disabled_plugins = self._switches.disabled
        self._live[name] = live
        self._num_waiting_tokens += live.num_prompt_tokens
        if self._engine is not None and not self._suspects:
            self._send(live, frame)

    def leave(self, live: LiveRequest) -> None:
        """Nobody waits for it any more; its id is free at once, though the engine may still speak of it."""
        name = live.request.request_id
        if self._live.get(name) is not live:
            return
        if live.is_sent and self._engine is not None:
            self._left.setdefault(name, []).append(live)
            self._engine.send(Forget(name))
        self.remove(live)

    def abort(self, live: LiveRequest) -> None:
        """End it, in whatever state it is."""
        live.is_aborted = True
        if live.is_sent and self._engine is not None:
            self._engine.send(Abort(live.request.request_id))
        else:
            self.end(live, FinishReason.ABORT)

    def note_forgotten(self, request_id: str) -> None:
        """The engine says nothing more of a request that was left."""
        left = self._left.get(request_id, [])
        if len(left) > 1:
            left.pop(0)
        else:
            self._left.pop(request_id, None)

    def note_taking_in(self, request_id: str) -> None:
        """The engine takes a request in; that ends with the next step."""
        self._taking_in = self._meant(request_id)
        if self._taking_in is not None:
            self._taking_in.is_taken_in = True

    def note_begun(self, request_ids: Sequence[str]) -> None:
        """The engine is about to run a step, for these for the first time."""
        self._taking_in = None
        for live in map(self._meant, request_ids):
            if live is not None:
                live.has_begun = True

    def note_counted(self) -> None:
        """The metrics that outlive the engine count what it has taken in."""
        for live in self._live.values():
            live.is_counted = live.is_counted or live.is_taken_in
        self.uncounted.clear()

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
        if live.is_taken_in and not live.is_counted:
            self.uncounted.append(live.num_prompt_tokens)
        if not live.has_output:
            self._num_waiting_tokens -= live.num_prompt_tokens
        self._has_lost_suspect = self._has_lost_suspect or live.num_own_deaths > 0
        self._clear(live)

    def engine_ready(self, engine: EngineProcess) -> None:
        """Give an engine what there is."""
        self._engine = engine
        self._send_what_may_run()

    def engine_died(self) -> bool:
        """Note a death, and end the request of which it was one too many.

        Returns:
            Whether it may be over: there was such a request, or all that are suspected were left.
        """
        begun = self._begun()
        for live in self._live.values():  # what the engine counted and did not tell is counted here
            if live.is_taken_in and not live.is_counted:
                live.is_counted = True
                self.uncounted.append(live.num_prompt_tokens)
        self._engine = self._taking_in = None
        self._left.clear()
        for live in begun:
            live.num_fruitless_deaths += 1
            live.num_own_deaths += len(begun) == 1
        self._suspects = []
        is_found = self._has_lost_suspect or bool(begun and not any(map(self._is_live, begun)))
        for live in list(self._live.values()):
            live.note_lost()
            if live.is_over or live.is_aborted:
                self.end(live, FinishReason.ABORT)
            elif live.num_own_deaths >= FATAL_DEATHS:
                self._end_culprit(live)
                is_found = True
        self._has_lost_suspect = False
        suspects = [live for live in self._live.values() if live.num_fruitless_deaths >= SUSPICIOUS_DEATHS]
        # The one that was tried last goes first, so that it is alone with the engine.
        self._suspects = sorted(suspects, key=lambda live: -live.num_fruitless_deaths)
        return is_found

    def end(self, live: LiveRequest, reason: FinishReason, error: Exception | None = None) -> None:
        """End a request here."""
        self.remove(live)
        self.num_ended[reason.value] += live.end(reason, error)

    def end_all(self, error: Exception, *, is_closing: bool) -> None:
        """No engine will follow: readers get the error, raised or in a last delta."""
        self._engine = None
        self._suspects.clear()
        for live in list(self._live.values()):
            if is_closing:
                self.remove(live)
                live.fail(error)
            else:
                self.end(live, FinishReason.ERROR, error)

    @property
    def _is_holding(self) -> bool:
        return self._engine is None or bool(self._suspects)

    def _is_live(self, live: LiveRequest) -> bool:
        return self._live.get(live.request.request_id) is live

    def _meant(self, request_id: str) -> LiveRequest | None:
        """The request that the engine speaks of: first come those that were left."""
        left = self._left.get(request_id)
        return left[0] if left else self._live.get(request_id)

    def _begun(self) -> list[LiveRequest]:
        """What the engine may die of now."""
        if self._taking_in is not None:
            return [self._taking_in]
        left = (live for lives in self._left.values() for live in lives)
        return [live for live in (*self._live.values(), *left) if live.has_begun]

    def _end_culprit(self, live: LiveRequest) -> None:
        name = live.request.request_id
        logger.error("request %s is ended: engines die of it", name)
        text = f"the engine died {live.num_fruitless_deaths} times while it ran request {name!r}"
        self.end(live, FinishReason.ERROR, StepError(text))

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
            live.note_sent()
            self._switches.send(self._engine, frame, live.disabled_plugins)
