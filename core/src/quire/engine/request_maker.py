"""From what a caller asks for to the scheduler's requests, one per choice, and their tracker."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from quire.api.request import Request, SamplingParams
from quire.engine.inputs import Prompt, check_names
from quire.engine.outputs import RequestTracker
from quire.engine.parts import EngineParts
from quire.execution.philox import derive_seed

Outputs = Sequence[Sequence[int] | None]
"""For each choice the output that an engine before this one gave, None where it had ended."""


@dataclass(slots=True, frozen=True)
class NewRequest:
    """What a caller asks for.

    Attributes:
        salt: isolates the prefix cache.
        resumed: None for a request that begins here.
        metadata: goes into every output.
    """

    name: str
    prompt: Prompt
    params: SamplingParams
    priority: int = 0
    salt: str = ""
    resumed: Outputs | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True, frozen=True)
class MadeRequest:
    """Requests that can be queued, in their tracker.

    Attributes:
        error: what ends them as soon as they are queued: a plugin's code failed. None: nothing does.
    """

    tracker: RequestTracker
    num_prompt_tokens: int
    error: Exception | None


class RequestMaker:
    """Checks and makes requests; draws a seed where the caller gave none."""

    def __init__(self, parts: EngineParts) -> None:
        self._parts = parts
        self._seeds = random.Random(parts.config.model.seed)

    def make(self, new: NewRequest) -> MadeRequest:
        """The requests of all choices that have not ended.

        Raises:
            PromptError, SamplingParamsError, TokenizerError: see InputProcessor and ProcessorDesk.
        """
        check_names(new.name, new.priority, new.salt)
        parts, inputs = self._parts, self._parts.inputs
        inputs.process_params(new.params)
        prompt = inputs.process_prompt(new.prompt)
        if new.resumed is not None:
            resumed = inputs.process_resumed(len(prompt.token_ids), new.params, new.resumed)
            new = replace(new, resumed=resumed)
        choice = parts.processors.choose(new.params)
        requests = self._requests(replace(new, params=choice.params), prompt.token_ids, choice.names)
        tracker = RequestTracker(new.name, prompt.text, requests, parts.tokenizer, new.metadata)
        return MadeRequest(tracker, len(prompt.token_ids), choice.error)

    def _requests(
        self, new: NewRequest, token_ids: list[int], logits_processors: tuple[str, ...]
    ) -> list[Request]:
        """The requests of all choices that have not ended; those after the first are forks of it.

        A request that is resumed goes on as after a preemption: its output so far is computed again.
        """
        params, salt = new.params, new.salt
        seed = params.seed if params.seed is not None else self._seeds.getrandbits(63)
        parts = self._parts
        total = len(token_ids) + parts.inputs.output_limit(len(token_ids), params)
        if parts.rope_switch_len is not None and total > parts.rope_switch_len:
            salt = f"{salt}/{new.name}"  # its rotary angles depend on its own length
        eos = frozenset() if params.ignore_eos else parts.eos_token_ids
        later_params = replace(params, prompt_logprobs=None)
        outputs: Outputs = [[]] * params.n if new.resumed is None else new.resumed
        children: list[Request] = []
        for index, output in enumerate(outputs):
            if output is None:
                continue
            children.append(
                Request(
                    request_id=new.name if index == 0 else f"{new.name}/{index}",
                    prompt_token_ids=token_ids,
                    params=params if index == 0 and not output else later_params,
                    seed=derive_seed(seed, index),
                    max_total_tokens=total,
                    stop_token_ids=eos | frozenset(params.stop_token_ids or ()),
                    priority=new.priority,
                    arrival_s=time.monotonic(),
                    salt=salt,
                    choice_index=index,
                    fork_of=children[0] if children and new.resumed is None else None,
                    logits_processors=logits_processors,
                    output_token_ids=list(output),
                )
            )
        return children
