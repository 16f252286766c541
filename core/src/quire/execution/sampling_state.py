"""What sampling must know of each slot's request: parameters, seeds, token counts. Host memory, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from quire.api.request import SamplingParams
from quire.api.step import SlotAssignment

if TYPE_CHECKING:
    from quire.execution.processors import RowProcessors

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

_INITIAL_CAPACITY = 64


class TokenCounts:
    """The distinct tokens of one request and how often each was generated; appending is O(1)."""

    def __init__(self, prompt_ids: Iterable[int], output_ids: Sequence[int]) -> None:
        self._index: dict[int, int] = {}
        self._ids: IntArray = np.empty(_INITIAL_CAPACITY, dtype=np.int64)
        self._output_counts: IntArray = np.zeros(_INITIAL_CAPACITY, dtype=np.int64)
        for token_id in prompt_ids:
            self._find(token_id)
        for token_id in output_ids:
            self.append(token_id)

    @property
    def token_ids(self) -> IntArray:
        """Distinct tokens of prompt and output; a view, valid until the next `append`."""
        return self._ids[: len(self._index)]

    @property
    def output_counts(self) -> IntArray:
        """How often each of `token_ids` was generated; 0 for tokens of the prompt alone."""
        return self._output_counts[: len(self._index)]

    def append(self, token_id: int) -> None:
        """Count one generated token."""
        position = self._find(token_id)  # may replace the array
        self._output_counts[position] += 1

    def _find(self, token_id: int) -> int:
        position = self._index.get(token_id)
        if position is None:
            position = len(self._index)
            if position == len(self._ids):
                self._ids = np.concatenate((self._ids, np.empty_like(self._ids)))
                self._output_counts = np.concatenate(
                    (self._output_counts, np.zeros_like(self._output_counts))
                )
            self._index[token_id] = position
            self._ids[position] = token_id
        return position


@dataclass(slots=True, frozen=True)
class LogitEdits:
    """What changes a row's logits before the temperature; all that is None or 1 or 0 does nothing.

    Attributes:
        bias_ids, bias_values: tokens and what is added to their logits.
        stop_ids: EOS and stop tokens, masked before `min_tokens` outputs.
        counts: None where no penalty is set.
        processors: of plugins; None where the request uses none.
    """

    bias_ids: IntArray
    bias_values: FloatArray
    stop_ids: IntArray
    counts: TokenCounts | None
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    processors: RowProcessors | None = None


class SamplingState:
    """Per-slot sampling state: arrays over slots for what is vectorised, objects for what is rare.

    Args:
        max_num_seqs: number of slots. vocab_size: V, the logits' width.
    """

    def __init__(self, max_num_seqs: int, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.temperature: FloatArray = np.zeros(max_num_seqs)
        self.top_p: FloatArray = np.ones(max_num_seqs)
        self.min_p: FloatArray = np.zeros(max_num_seqs)
        self.top_k: IntArray = np.zeros(max_num_seqs, dtype=np.int64)
        self.seeds: IntArray = np.zeros(max_num_seqs, dtype=np.int64)
        self.min_tokens: IntArray = np.zeros(max_num_seqs, dtype=np.int64)
        self.num_output_tokens: IntArray = np.zeros(max_num_seqs, dtype=np.int64)
        self.has_edits: npt.NDArray[np.bool_] = np.zeros(max_num_seqs, dtype=np.bool_)
        self.num_logprobs: list[int | None] = [None] * max_num_seqs
        self.edits: list[LogitEdits | None] = [None] * max_num_seqs

    def assign(self, slot: int, assignment: SlotAssignment, processors: RowProcessors | None = None) -> None:
        """Replace everything that the slot held; output tokens in the assignment count as output."""
        params = assignment.params
        num_prompt = assignment.num_prompt_tokens
        self.temperature[slot] = params.temperature
        self.top_p[slot] = params.top_p
        self.min_p[slot] = params.min_p
        keeps_all = params.top_k <= 0 or params.top_k >= self.vocab_size
        self.top_k[slot] = 0 if keeps_all else params.top_k
        self.seeds[slot] = assignment.seed
        self.min_tokens[slot] = params.min_tokens
        self.num_output_tokens[slot] = len(assignment.token_ids) - num_prompt
        self.num_logprobs[slot] = params.logprobs
        has_penalties = _has_penalties(params)
        self.has_edits[slot] = has_penalties or bool(params.logit_bias) or processors is not None
        if not self.has_edits[slot] and params.min_tokens == 0:
            self.edits[slot] = None
            return
        bias = {k: v for k, v in (params.logit_bias or {}).items() if k < self.vocab_size}
        ids = assignment.token_ids
        self.edits[slot] = LogitEdits(
            bias_ids=np.array(list(bias), dtype=np.int64),
            bias_values=np.array(list(bias.values()), dtype=np.float64),
            stop_ids=np.array(
                sorted(i for i in assignment.stop_token_ids if i < self.vocab_size), dtype=np.int64
            ),
            counts=TokenCounts(ids[:num_prompt], ids[num_prompt:]) if has_penalties else None,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            repetition_penalty=params.repetition_penalty,
            processors=processors,
        )

    def append(self, slot: int, token_id: int) -> None:
        """Note a token that the slot's request generated."""
        self.num_output_tokens[slot] += 1
        edits = self.edits[slot]
        if edits is None:
            return
        if edits.counts is not None:
            edits.counts.append(token_id)
        if edits.processors is not None:
            edits.processors.output_token_ids.append(token_id)

    def without_edits(self) -> SamplingState:
        """A view for reading: the same slots as they are at any time, of which nothing needs edits."""
        view = copy(self)
        view.has_edits = np.zeros_like(self.has_edits)
        view.min_tokens = np.zeros_like(self.min_tokens)
        return view

    def needs_edits(self, slots: IntArray) -> npt.NDArray[np.bool_]:
        """Which of the slots' logits are changed before the temperature at the coming token."""
        mask: npt.NDArray[np.bool_] = self.has_edits[slots] | self.is_below_min_tokens(slots)
        return mask

    def is_below_min_tokens(self, slots: IntArray) -> npt.NDArray[np.bool_]:
        """Which of the slots may not stop at the coming token."""
        mask: npt.NDArray[np.bool_] = self.num_output_tokens[slots] < self.min_tokens[slots]
        return mask


def _has_penalties(params: SamplingParams) -> bool:
    return (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) != (0.0, 0.0, 1.0)
