"""From a checked prompt to the scheduler's requests, one per choice."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from quire.api.request import Request, SamplingParams
from quire.engine.inputs import InputProcessor
from quire.execution.philox import derive_seed


@dataclass(slots=True, frozen=True)
class NewRequest:
    """What a caller asked for, checked.

    Attributes:
        salt: isolates the prefix cache.
        logits_processors: names of those that change its logits.
        resumed: for each choice the output that an engine before this one gave, None where it had ended.
    """

    name: str
    token_ids: list[int]
    params: SamplingParams
    priority: int = 0
    salt: str = ""
    logits_processors: tuple[str, ...] = ()
    resumed: Sequence[Sequence[int] | None] | None = None


class RequestMaker:
    """Makes requests; draws a seed where the caller gave none.

    Args:
        seed: of the drawn seeds.
        inputs: knows the context's length.
        eos_token_ids: end any output unless `ignore_eos`.
        rope_switch_len: requests that may grow past it share no prefix blocks.
    """

    def __init__(
        self, seed: int, inputs: InputProcessor, eos_token_ids: frozenset[int], rope_switch_len: int | None
    ) -> None:
        self._seeds = random.Random(seed)
        self._inputs = inputs
        self._eos_token_ids = eos_token_ids
        self._rope_switch_len = rope_switch_len

    def make(self, new: NewRequest) -> list[Request]:
        """The requests of all choices that have not ended; those after the first are forks of it.

        A request that is resumed goes on as after a preemption: its output so far is computed again.
        """
        params, salt = new.params, new.salt
        seed = params.seed if params.seed is not None else self._seeds.getrandbits(63)
        total = len(new.token_ids) + self._inputs.output_limit(len(new.token_ids), params)
        if self._rope_switch_len is not None and total > self._rope_switch_len:
            salt = f"{salt}/{new.name}"  # its rotary angles depend on its own length
        eos = frozenset() if params.ignore_eos else self._eos_token_ids
        later_params = replace(params, prompt_logprobs=None)
        outputs = [[]] * params.n if new.resumed is None else new.resumed
        children: list[Request] = []
        for index, output in enumerate(outputs):
            if output is None:
                continue
            children.append(
                Request(
                    request_id=new.name if index == 0 else f"{new.name}/{index}",
                    prompt_token_ids=new.token_ids,
                    params=params if index == 0 and not output else later_params,
                    seed=derive_seed(seed, index),
                    max_total_tokens=total,
                    stop_token_ids=eos | frozenset(params.stop_token_ids or ()),
                    priority=new.priority,
                    arrival_s=time.monotonic(),
                    salt=salt,
                    choice_index=index,
                    fork_of=children[0] if children and new.resumed is None else None,
                    logits_processors=new.logits_processors,
                    output_token_ids=list(output),
                )
            )
        return children
