"""The engine: requests in, one step after another, outputs out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from quire.api.client import EngineDescription
from quire.api.errors import EngineClosedError, QuireError, TokenizerError
from quire.api.outputs import Metric, OutputDelta, RequestOutput
from quire.api.request import FinishReason, Request, SamplingParams
from quire.engine.describe import describe
from quire.engine.extensions import LoadedPolicy
from quire.engine.inputs import Prompt
from quire.engine.outputs import RequestTracker
from quire.engine.parts import EngineParts
from quire.engine.plugin_switch import PluginSwitch, SwitchedParts
from quire.engine.request_book import RequestBook
from quire.engine.request_maker import NewRequest, Outputs, RequestMaker
from quire.engine.statistics import EngineStatistics
from quire.engine.stepper import Stepper
from quire.loading.tokenizer import Tokenizer

_CHECK_PERIOD_S = 1.0

logger = logging.getLogger("quire")


class Engine:
    """Owns one model's requests. One caller at a time; `LLM` is its usual front.

    An exception, Ctrl-C included, leaves it usable: where the books may be half changed, all requests are
    ended and all blocks freed. (Not repaired: a second Ctrl-C within that repair.)

    Attributes:
        plugins: turns plugins off and on, between steps.
    """

    def __init__(self, parts: EngineParts) -> None:
        self._parts = parts
        self._scheduler = parts.scheduler
        self._executor = parts.executor
        self._observers = parts.observers
        self._failures = parts.failures
        self._maker = RequestMaker(parts)
        self._statistics = EngineStatistics()
        self._book = RequestBook(parts.observers, self._statistics)
        self._stepper = Stepper(parts, self._book, self._statistics)
        self._scheduler.set_drafting(parts.drafter_plugin is not None)
        self._checked_at_s = time.monotonic()
        self._is_closed = False
        self.plugins = PluginSwitch(
            SwitchedParts(
                host=parts.host,
                observers=parts.observers,
                processors=parts.processors,
                policy=parts.policy,
                fallback=parts.fallback_policy,
                set_policy=self._set_policy,
                set_fingerprint=self._set_fingerprint,
                set_drafting=self._scheduler.set_drafting,
                drafter_plugin=parts.drafter_plugin,
            )
        )

    @property
    def chat_template(self) -> str | None:
        """The template given in the configuration, else None."""
        return self._parts.chat_template

    @property
    def has_unfinished(self) -> bool:
        """Whether a step would do something."""
        return self._scheduler.has_unfinished

    @property
    def load(self) -> tuple[int, int]:
        """Requests that have a slot, and requests that wait for one."""
        return self._scheduler.num_running, self._scheduler.num_waiting

    def add_request(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        salt: str = "",
        resumed: Outputs | None = None,
    ) -> str:
        """Queue a prompt; its `n` choices become requests that share the prompt's blocks.

        Args:
            prompt: see Prompt.
            params: how to sample.
            request_id: drawn here unless given.
            priority: for the priority policy; lower runs first.
            salt: only requests of equal salt share cached prefixes.
            resumed: the output token ids that each choice has already got, elsewhere or before, None for one
                that had ended: what follows is what would have followed (`params.seed` must be given, unless
                greedy). Deltas begin after them; logprobs of theirs are not computed again. (The text that
                aborting a request has flushed from a stop string or character begun comes again.)

        Returns:
            The request's id, drawn here unless given.

        Raises:
            PromptError, SamplingParamsError, CapacityError, TokenizerError: the request is refused
                whole; nothing of it stays behind. (Where a plugin fails, the request ends with an error.)
        """
        self._check_open()
        name = request_id or self._book.free_id()
        metadata = self.plugins.snapshot.metadata
        made = self._maker.make(NewRequest(name, prompt, params, priority, salt, resumed, metadata))
        tracker = made.tracker
        self._book.check_ids_are_free(tracker)
        self._add(tracker)
        self._statistics.add_prompt(made.num_prompt_tokens)
        if made.error is not None:
            self._failures.update((child.request_id, made.error) for child in tracker.requests)
        self._tell_added(tracker)
        return name

    def uncount_prompt(self, num_tokens: int) -> None:
        """Take a request out of the counters again: an engine before this one has counted it."""
        self._statistics.remove_prompt(num_tokens)

    def prepare_prompt(self, prompt: Prompt) -> Prompt:
        """A prompt with its token ids, for `add_request`; may be called in any thread.

        Raises:
            PromptError, TokenizerError: as `add_request`.
        """
        processed = self._parts.inputs.process_prompt(prompt)
        if processed.text is None:
            return processed.token_ids
        return {"prompt": processed.text, "prompt_token_ids": processed.token_ids}

    def step(self) -> list[str]:
        """Plan, run and take in one step.

        Returns:
            Ids of the requests that got tokens or ended.
        """
        self._check_open()
        try:
            self.plugins.hold()
            changed = self._stepper.step()
        finally:
            self.plugins.release()
        self._check_when_idle()
        return changed

    def before_steps(self, told: Callable[[Sequence[str]], None]) -> None:
        """Have something told, before each step runs, which requests have got a slot in it."""
        self._stepper.before_steps = told

    def output(self, request_id: str) -> RequestOutput:
        """The request's cumulative output of now."""
        return self._book.require(request_id).output()

    def pop_output(self, request_id: str) -> RequestOutput:
        """The request's output, after which the engine forgets the request (ending it if it runs)."""
        output = self._book.require(request_id).output()
        self.discard(request_id)
        return output

    def take_delta(self, request_id: str) -> OutputDelta:
        """What the request has got since the last call; costs what is new, however long the output is.

        Where its tokenizer fails, the request ends with the error.
        """
        tracker = self._book.require(request_id)
        try:
            return tracker.take()
        except Exception as error:
            logger.exception("request %s has no output", request_id)
            return self._end_broken(tracker, error)

    def ended_requests(self) -> list[str]:
        """Ids of the requests that have ended, and that nobody has popped or discarded."""
        return self._book.finished_ids()

    def is_finished(self, request_id: str) -> bool:
        """Whether all choices have ended."""
        return self._book.is_finished(request_id)

    def abort(self, request_id: str) -> None:
        """End a request now; it stays readable. Unknown or finished ids are ignored."""
        tracker = self._book.get(request_id)
        if tracker is None or self._book.is_finished(request_id):
            return
        with self._stepper.resetting():
            for child in tracker.requests:
                self._failures.pop(child.request_id, None)
                self._scheduler.finish(child.request_id, FinishReason.ABORT)
                tracker.end(child)
            self._book.note_if_finished(tracker, FinishReason.ABORT.value)
        self._stepper.settle()
        self._book.tell_finished()

    def discard(self, request_id: str) -> None:
        """Abort a request if it runs, and forget it. Unknown ids are ignored."""
        self.abort(request_id)
        self._book.remove(request_id)

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer; raises TokenizerError with `skip_tokenizer_init`."""
        if self._parts.tokenizer is None:
            raise TokenizerError("there is no tokenizer: drop skip_tokenizer_init")
        return self._parts.tokenizer

    def default_sampling_params(self) -> SamplingParams:
        """What the model's generation_config.json recommends."""
        return self._parts.generation.default_sampling_params()

    def describe(self) -> EngineDescription:
        """What it is, for a server."""
        return describe(self._parts, self._scheduler.limits)

    def get_metrics(self) -> list[Metric]:
        """Counters and gauges."""
        own = self._statistics.metrics(
            self._scheduler.stats(), self._scheduler.block_manager.usage(), self._parts.runner_times
        )
        return [*own, *self._observers.metrics(), *self._parts.host.calls.metrics()]

    def reset_prefix_cache(self) -> None:
        """Forget cached prefixes that nothing uses."""
        with self._stepper.resetting():
            self._scheduler.block_manager.reset_prefix_cache()

    def close(self, error: BaseException | None = None) -> None:
        """End all requests, tell plugins (with what ended the engine), free the model; idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            for request_id in self._book.ids():
                self.discard(request_id)
            if self._parts.info is not None:
                self._parts.host.engine_stopping(self._parts.info, error)
        finally:
            self._executor.close()

    def _check_when_idle(self) -> None:
        """Check the block manager's books when nothing runs; the check takes milliseconds, so not at every end."""
        now = time.monotonic()
        if not self._scheduler.has_unfinished and now - self._checked_at_s >= _CHECK_PERIOD_S:
            self._scheduler.check_invariants()
            self._checked_at_s = now

    def _add(self, tracker: RequestTracker) -> None:
        """Queue all choices of a request, or none."""
        added: list[Request] = []
        try:
            for child in tracker.requests:
                self._scheduler.add(child)
                added.append(child)
            self._book.add(tracker)
        except QuireError:  # refused
            for child in added:
                self._scheduler.finish(child.request_id, FinishReason.ABORT)
            raise
        except BaseException as error:
            self._stepper.reset(error)
            raise

    def _end_broken(self, tracker: RequestTracker, error: Exception) -> OutputDelta:
        """End a request of which no output can be made; its last delta."""
        with self._stepper.resetting():
            for child in tracker.requests:
                self._scheduler.finish(child.request_id, FinishReason.ERROR, None, error)
            tracker.cut(FinishReason.ERROR, error)
            self._book.note_if_finished(tracker)
        self._stepper.settle()
        self._book.tell_finished()
        return tracker.end_without_output(error)

    def _tell_added(self, tracker: RequestTracker) -> None:
        """Tell observers of a new request; an interrupt in there takes the request back."""
        try:
            self._book.tell_added(tracker)
        except BaseException:
            self.discard(tracker.request_id)
            raise

    def _set_policy(self, policy: LoadedPolicy) -> None:
        with self._stepper.resetting():
            self._scheduler.set_policy(policy.policy)

    def _set_fingerprint(self, fingerprint: str) -> None:
        self._scheduler.block_manager.set_fingerprint(fingerprint.encode())

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineClosedError("the engine is closed: build a new LLM")
