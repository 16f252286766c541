"""Hugging Face as the oracle: logits of a prompt in one pass, then of one token after the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from quire.plugins import PluginHost
from quire.testing.forward import SequenceForward

Compare = Callable[..., float]


@pytest.fixture(scope="session")
def host() -> PluginHost:
    return PluginHost.discover()


def oracle_logits(folder: Path, token_ids: list[int], prompt_len: int, dtype: str) -> Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    with torch.inference_mode():
        output = model(torch.tensor([token_ids[:prompt_len]]), use_cache=True)
        rows = [output.logits[0]]
        for token_id in token_ids[prompt_len:]:
            output = model(torch.tensor([[token_id]]), past_key_values=output.past_key_values, use_cache=True)
            rows.append(output.logits[0])
    return torch.cat(rows)


@pytest.fixture
def compare(host: PluginHost) -> Compare:
    """Largest difference between our logits and the oracle's, over a prompt and the steps after it."""

    def difference(
        folder: Path,
        *,
        prompt_len: int = 12,
        num_steps: int = 4,
        dtype: str = "float64",
        chunk: int | None = None,
    ) -> float:
        ids = torch.randint(
            0, 97, (prompt_len + num_steps,), generator=torch.Generator().manual_seed(1)
        ).tolist()
        expected = oracle_logits(folder, ids, prompt_len, dtype)
        sequence = SequenceForward(folder, dtype, host=host)  # type: ignore[arg-type]  # a name of a dtype
        size = chunk or prompt_len
        rows = [
            sequence.logits(ids[start : min(start + size, prompt_len)], prompt_len)
            for start in range(0, prompt_len, size)
        ]
        rows += [sequence.logits([token_id], prompt_len) for token_id in ids[prompt_len:]]
        found = torch.cat(rows)
        assert found.shape == expected.shape
        assert expected.std() > 0.1
        return float((found - expected).abs().max())

    return difference
