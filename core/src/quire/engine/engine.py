"""The engine: requests in, one step after another, outputs out."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from quire.api.client import EngineDescription
from quire.api.errors import EngineClosedError, PromptError, QuireError, StepError, TokenizerError
from quire.api.extensions import StepReport
from quire.api.outputs import Metric, OutputDelta, RequestOutput
from quire.api.request import FinishReason, Request, SamplingParams
from quire.api.step import StepPlan
from quire.engine.describe import describe
from quire.engine.extensions import LoadedPolicy
from quire.engine.inputs import Prompt
from quire.engine.observers import view_of_choices
from quire.engine.outputs import RequestTracker
from quire.engine.parts import EngineParts
from quire.engine.plugin_switch import PluginSwitch, SwitchedParts
from quire.engine.request_maker import NewRequest, Outputs, RequestMaker
from quire.engine.statistics import EngineStatistics
from quire.loading.tokenizer import Tokenizer
from quire.scheduling.plan import RequestUpdate

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
        self._trackers: dict[str, RequestTracker] = {}
        self._owner: dict[str, RequestTracker] = {}  # by the scheduler's request id
        self._finished: set[str] = set()
        self._untold: list[RequestTracker] = []  # ended, and observers do not know yet
        self._num_requests = 0
        self._scheduler.set_drafting(parts.drafter_plugin is not None)
        self._statistics = EngineStatistics()
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
        name = request_id or self._free_id()
        metadata = self.plugins.snapshot.metadata
        made = self._maker.make(NewRequest(name, prompt, params, priority, salt, resumed, metadata))
        tracker = made.tracker
        for child_id in (name, *(child.request_id for child in tracker.requests)):
            if child_id in self._trackers or child_id in self._owner:  # another's, or a choice's of another
                raise PromptError(f"request id {child_id!r} is in use: give each request its own")
        self._add(tracker)
        self._num_requests += 1
        self._statistics.add_prompt(made.num_prompt_tokens)
        if made.error is not None:
            self._failures.update((child.request_id, made.error) for child in tracker.requests)
        if self._observers.sees_requests:
            self._tell_added(tracker)
        return name

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
            changed = self._step()
        finally:
            self.plugins.release()
        self._check_when_idle()
        return changed

    def output(self, request_id: str) -> RequestOutput:
        """The request's cumulative output of now."""
        return self._tracker(request_id).output()

    def pop_output(self, request_id: str) -> RequestOutput:
        """The request's output, after which the engine forgets the request (ending it if it runs)."""
        output = self._tracker(request_id).output()
        self.discard(request_id)
        return output

    def take_delta(self, request_id: str) -> OutputDelta:
        """What the request has got since the last call; costs what is new, however long the output is.

        Where its tokenizer fails, the request ends with the error.
        """
        tracker = self._tracker(request_id)
        try:
            return tracker.take()
        except Exception as error:
            logger.exception("request %s has no output", request_id)
            return self._end_broken(tracker, error)

    def ended_requests(self) -> list[str]:
        """Ids of the requests that have ended, and that nobody has popped or discarded."""
        return list(self._finished)

    def is_finished(self, request_id: str) -> bool:
        """Whether all choices have ended."""
        return request_id in self._finished

    def abort(self, request_id: str) -> None:
        """End a request now; it stays readable. Unknown or finished ids are ignored."""
        tracker = self._trackers.get(request_id)
        if tracker is None or request_id in self._finished:
            return
        with self._resetting():
            for child in tracker.requests:
                self._failures.pop(child.request_id, None)
                self._scheduler.finish(child.request_id, FinishReason.ABORT)
                tracker.end(child)
            self._note_if_finished(tracker, FinishReason.ABORT.value)
        self._tell_finished()

    def discard(self, request_id: str) -> None:
        """Abort a request if it runs, and forget it. Unknown ids are ignored."""
        self.abort(request_id)
        tracker = self._trackers.pop(request_id, None)
        self._finished.discard(request_id)
        for child in tracker.requests if tracker else ():
            self._owner.pop(child.request_id, None)

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
        with self._resetting():
            self._scheduler.block_manager.reset_prefix_cache()

    def close(self, error: BaseException | None = None) -> None:
        """End all requests, tell plugins (with what ended the engine), free the model; idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            for request_id in list(self._trackers):
                self.discard(request_id)
            if self._parts.info is not None:
                self._parts.host.engine_stopping(self._parts.info, error)
        finally:
            self._executor.close()

    def _free_id(self) -> str:
        """An id that no request has; callers may have taken some of the obvious ones."""
        numbers = itertools.count(self._num_requests)
        return next(
            name for name in (f"request-{number}" for number in numbers) if name not in self._trackers
        )

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
            self._trackers[tracker.request_id] = tracker
            self._owner.update((child.request_id, tracker) for child in added)
        except QuireError:  # refused
            for child in added:
                self._scheduler.finish(child.request_id, FinishReason.ABORT)
            raise
        except BaseException as error:
            self._reset(error)
            raise

    def _step(self) -> list[str]:
        plan = None
        begin = time.perf_counter()
        num_generated = self._statistics.num_generated_tokens
        changed: list[str] = []
        try:
            if self._failures:
                changed += self._end_failed()
            plan = self._scheduler.schedule()
            if self._failures:
                changed += self._end_failed()
            if plan.rows:
                changed += self._run(plan, time.perf_counter() - begin)
        except BaseException as error:
            changed += self._recover(plan, error)
            if not isinstance(error, Exception):
                raise
        if self._untold:
            self._tell_finished()
        if self._observers.sees_steps and plan is not None and plan.rows:
            self._tell_step(plan, self._statistics.num_generated_tokens - num_generated, begin)
        return list(dict.fromkeys(changed))

    def _run(self, plan: StepPlan, schedule_s: float) -> list[str]:
        """Execute a plan, take its result in and hand it out; the ids of changed requests."""
        result = self._executor.submit(plan).result()
        executed_at = time.perf_counter()
        updates = self._scheduler.update(plan, result)
        updated_at = time.perf_counter()
        changed = self._emit(updates)
        manager = self._scheduler.block_manager
        self._statistics.add_step(plan, manager.usage(), manager.block_size)
        self._statistics.add_times(schedule_s, updated_at - executed_at, time.perf_counter() - updated_at)
        return changed

    def _recover(self, plan: StepPlan | None, error: BaseException) -> list[str]:
        """After an exception in a step: end its requests, or all where more than the step is lost."""
        if plan is None or not self._scheduler.is_in_flight(plan):
            return self._reset(error)
        failure = StepError(f"step {plan.step_id} failed: {type(error).__name__}: {error}")
        failure.__cause__ = error
        with self._resetting():
            return self._emit(self._scheduler.fail(plan, failure))

    @contextmanager
    def _resetting(self) -> Iterator[None]:
        """What interrupts a change of the books in here ends all requests, and is raised on."""
        try:
            yield
        except BaseException as error:
            self._reset(error)
            raise

    def _reset(self, error: BaseException) -> list[str]:
        """End all requests and free all blocks, since the books may be half changed; the requests' ids."""
        failure = StepError(f"the engine had to end all requests: {type(error).__name__}: {error}")
        failure.__cause__ = error
        is_failure = isinstance(error, Exception)
        reason = FinishReason.ERROR if is_failure else FinishReason.ABORT
        logger.log(
            logging.ERROR if is_failure else logging.WARNING,
            "%s; the prefix cache is dropped",
            failure,
            exc_info=error if is_failure else None,
        )
        self._scheduler.reset(reason, failure)
        self._failures.clear()
        for request_id, tracker in self._trackers.items():
            if request_id not in self._finished:
                tracker.cut(reason, failure)
                self._note_if_finished(tracker)
        return list(self._trackers)

    def _emit(self, updates: list[RequestUpdate]) -> list[str]:
        changed: dict[str, None] = {}
        for update in updates:
            tracker = self._owner.get(update.request.request_id)
            if tracker is None:
                continue
            stop = tracker.apply(update)
            if stop is not None:
                self._scheduler.finish(update.request.request_id, FinishReason.STOP, stop)
                tracker.end(update.request)
            self._statistics.add_generated(len(update.new_token_ids))
            if len(update.new_token_ids) > 1:
                self._scheduler.note_steps_saved(update.request, len(update.new_token_ids) - 1)
            changed[tracker.request_id] = None
            self._note_if_finished(tracker)
        return list(changed)

    def _end_failed(self) -> list[str]:
        """End the requests for which a plugin's code has failed; the ids of changed requests."""
        changed = []
        for request_id, error in list(self._failures.items()):
            tracker = self._owner.get(request_id)
            if tracker is not None and self._scheduler.finish(request_id, FinishReason.ERROR, None, error):
                tracker.end(tracker.request(request_id))
                changed.append(tracker.request_id)
                self._note_if_finished(tracker)
            self._failures.pop(request_id, None)
        return changed

    def _end_broken(self, tracker: RequestTracker, error: Exception) -> OutputDelta:
        """End a request of which no output can be made; its last delta."""
        with self._resetting():
            for child in tracker.requests:
                self._scheduler.finish(child.request_id, FinishReason.ERROR, None, error)
            tracker.cut(FinishReason.ERROR, error)
            self._note_if_finished(tracker)
        self._tell_finished()
        return tracker.end_without_output(error)

    def _note_if_finished(self, tracker: RequestTracker, reason: str | None = None) -> None:
        """Once all choices have ended: the request is finished, by default for the first one's reason."""
        if not tracker.is_finished or tracker.request_id in self._finished:
            return
        self._finished.add(tracker.request_id)
        self._statistics.add_finished(reason or tracker.finish_reason)
        if self._observers.sees_requests:
            self._untold.append(tracker)

    def _tell_added(self, tracker: RequestTracker) -> None:
        """Tell observers of a new request; an interrupt in there takes the request back."""
        try:
            self._observers.request_added(view_of_choices(tracker.requests))
        except BaseException:
            self.discard(tracker.request_id)
            raise

    def _tell_finished(self) -> None:
        while self._untold:
            tracker = self._untold.pop(0)
            view = replace(view_of_choices(tracker.requests), metrics=tracker.metrics_of_now())
            self._observers.request_finished(view, tracker.finish_reason)

    def _tell_step(self, plan: StepPlan, num_generated: int, begin: float) -> None:
        self._observers.step_finished(
            StepReport(
                step_id=plan.step_id,
                num_rows=len(plan.rows),
                num_tokens=plan.num_tokens,
                num_generated=num_generated,
                seconds=time.perf_counter() - begin,
                num_running=self._scheduler.num_running,
                num_waiting=self._scheduler.num_waiting,
            )
        )

    def _set_policy(self, policy: LoadedPolicy) -> None:
        with self._resetting():
            self._scheduler.set_policy(policy.policy)

    def _set_fingerprint(self, fingerprint: str) -> None:
        self._scheduler.block_manager.set_fingerprint(fingerprint.encode())

    def _tracker(self, request_id: str) -> RequestTracker:
        tracker = self._trackers.get(request_id)
        if tracker is None:
            raise PromptError(f"request id {request_id!r} is not known")
        return tracker

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineClosedError("the engine is closed: build a new LLM")
