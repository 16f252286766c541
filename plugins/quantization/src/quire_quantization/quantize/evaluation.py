"""Measures a model's loss on token ids, with Quire's own engine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tqdm import tqdm

from quire.api.errors import NumericalError
from quire.api.request import SamplingParams

if TYPE_CHECKING:
    from quire.api.outputs import PositionLogprobs, RequestOutput
    from quire_quantization.quantize.samples import TokenizedSample

_BATCH = 16
_BLOCK_SIZE = 16
_STEP_TOKENS = 512
"""Tokens of a step: their logits over the whole vocabulary are in memory at once."""


@dataclass(slots=True, frozen=True)
class Loss:
    """How well a model predicts some text.

    Attributes:
        mean_nats: -ln p of a token, averaged over all that are scored.
    """

    mean_nats: float
    num_tokens: int
    num_samples: int

    @property
    def perplexity(self) -> float:
        """Its exponential; infinite where that overflows."""
        return math.exp(self.mean_nats) if self.mean_nats < 700 else math.inf


def measure_loss(model: Path, samples: Sequence[TokenizedSample], device: str, title: str) -> Loss:
    """The mean loss of a model over samples.

    Args:
        model: its folder.
        samples: with scored tokens.
        device: as in the engine's settings.
        title: of the progress bar.

    Raises:
        QuireError: the engine does not serve the model, or a request failed.
    """
    from quire import LLM

    longest = max(len(sample.token_ids) for sample in samples) + 1
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    total, count = 0.0, 0
    with (
        LLM(
            model,
            device=device,
            skip_tokenizer_init=True,
            max_model_len=longest,
            max_num_seqs=_BATCH,
            max_num_batched_tokens=_STEP_TOKENS,
            block_size=_BLOCK_SIZE,
            num_kv_blocks=_BATCH * (-(-longest // _BLOCK_SIZE) + 1),
            enable_prefix_caching=False,
        ) as llm,
        tqdm(total=len(samples), desc=title, unit="sample", dynamic_ncols=True) as bar,
    ):
        for start in range(0, len(samples), _BATCH):
            batch = samples[start : start + _BATCH]
            outputs = llm.generate([sample.token_ids for sample in batch], params, use_tqdm=False)
            for sample, output in zip(batch, outputs, strict=True):
                losses = token_losses(output, sample.scored)
                total, count = total + math.fsum(losses), count + len(losses)
            bar.update(len(batch))
    return Loss(total / count, count, len(samples))


def token_losses(output: RequestOutput, scored: Sequence[range]) -> list[float]:
    """-ln p of the prompt tokens in some spans, of which the first token of all is no part.

    Raises:
        QuireError: the request failed; NumericalError: a loss is not finite.
    """
    if output.error is not None:
        raise output.error
    entries = cast("Sequence[PositionLogprobs]", output.prompt_logprobs)
    ids = output.prompt_token_ids
    losses = [-entries[position][ids[position]].logprob for span in scored for position in span]
    if not all(math.isfinite(loss) for loss in losses):
        raise NumericalError("a token of the evaluation has probability zero: the model's weights are broken")
    return losses
