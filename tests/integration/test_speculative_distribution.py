"""Sampled tokens that were drafted are distributed as transformers' logits say, through the whole engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from extension_plugins import make_plugin, open_llm
from speculation_drafters import mix

from quire import SamplingParams
from quire.api.specs import DrafterSpec
from quire.api.speculation import Drafter, DraftRequest
from quire.testing.tiny_models import write_tiny_llama

NUM_DRAWS = 2000
NUM_TOKENS = 4
TOP_K = 4
PROMPT = [5, 17, 40, 8]
Floats = npt.NDArray[np.float64]


class Likely(Drafter):
    """Proposes tokens of a set, whatever the request's draws are."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        self.token_ids = token_ids

    def propose(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        return [self._draft(request) for request in requests]

    def _draft(self, request: DraftRequest) -> list[int]:
        name = request.request_id.encode()
        picks = [mix(len(request.token_ids) + i, *name) for i in range(request.max_drafts)]
        return [self.token_ids[pick % len(self.token_ids)] for pick in picks]


def joint_distribution(folder: Path, vocab_size: int) -> dict[tuple[int, ...], float]:
    """Probabilities of all continuations of NUM_TOKENS tokens with top_k."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(NUM_TOKENS):
        texts = list(found)
        with torch.inference_mode():
            logits = model(torch.tensor([[*PROMPT, *text] for text in texts])).logits[:, -1]
        best, ids = logits.topk(TOP_K)
        chances = best.softmax(-1)
        found = {
            (*text, int(ids[row, place])): found[text] * float(chances[row, place])
            for row, text in enumerate(texts)
            for place in range(TOP_K)
        }
    return found


def test_two_thousand_draws(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path)
    wanted = joint_distribution(folder, 97)
    likely = [token for token, _ in Counter(token for text in wanted for token in text[1:]).most_common(4)]
    plugin = make_plugin(
        "likely", register_drafters=lambda: [DrafterSpec("likely", lambda context: Likely(likely))]
    )
    params = SamplingParams(
        n=NUM_DRAWS, temperature=1.0, top_k=TOP_K, max_tokens=NUM_TOKENS, seed=11, ignore_eos=True
    )
    config = {"method": "likely", "num_speculative_tokens": 2, "adaptive": False}
    with open_llm(folder, plugin, speculative_config=config, max_num_seqs=128) as llm:
        [output] = llm.generate([PROMPT], params, use_tqdm=False)
        counters = {metric.name: metric.value for metric in llm.get_metrics() if not metric.labels}
    counts = Counter(tuple(choice.token_ids) for choice in output.outputs)
    assert sum(counts.values()) == NUM_DRAWS and set(counts) <= set(wanted)
    num_drafts = counters["quire:spec_decode_num_draft_tokens"]
    assert num_drafts > NUM_DRAWS / 2
    assert 0.02 * num_drafts < counters["quire:spec_decode_num_accepted_tokens"] < 0.9 * num_drafts
    texts = sorted(wanted, key=lambda text: -wanted[text])
    common = [text for text in texts if wanted[text] * NUM_DRAWS >= 5.0]
    rest = 1.0 - sum(wanted[text] for text in common)
    expected = np.array([*(wanted[text] for text in common), rest]) * NUM_DRAWS
    seen = np.array([*(counts[text] for text in common), NUM_DRAWS - sum(counts[text] for text in common)])
    statistic = float(((seen - expected) ** 2 / expected).sum())
    halves = torch.tensor([(len(seen) - 1) / 2, statistic / 2], dtype=torch.float64)
    assert float(torch.special.gammaincc(*halves)) > 0.001, (statistic, len(seen))
