"""Random Hugging Face checkpoints, and Hugging Face's logits of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def write_hf_checkpoint(hf_class: Any, fields: Mapping[str, object], folder: Path, seed: int = 0) -> None:
    """Save a random model of a config's keywords; biases and norm weights are random too."""
    model = hf_class(hf_class.config_class(**fields))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            is_norm_weight = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.3 * noise if is_norm_weight else 0.25 * noise)
    with _quiet():
        model.save_pretrained(folder)


class HFReference:
    """A Hugging Face model of a folder, in one dtype."""

    def __init__(self, hf_class: Any, folder: Path, dtype: str) -> None:
        with _quiet():
            self._model = hf_class.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
            if hasattr(self._model, "set_experts_implementation"):
                self._model.set_experts_implementation("eager")  # the fast one knows no float64

    def logits(self, token_ids: Sequence[int], prompt_len: int | None = None) -> Tensor:
        """Logits [T, V]: of the prompt in one pass, then token by token where `prompt_len` is given.

        In one pass rotary scalings that depend on the length see the whole of it; a request's tokens
        were computed one after another.
        """
        split = len(token_ids) if prompt_len is None else prompt_len
        with torch.inference_mode(), _wide_floats():
            if prompt_len is not None:
                self._model(torch.tensor([[0]]))  # forgets the longest length that dynamic scalings have seen
            output = self._model(torch.tensor([list(token_ids[:split])]), use_cache=split < len(token_ids))
            rows = [output.logits[0]]
            for token_id in token_ids[split:]:
                cache = output.past_key_values
                output = self._model(torch.tensor([[token_id]]), past_key_values=cache, use_cache=True)
                rows.append(output.logits[0])
        return torch.cat(rows)


@contextmanager
def _wide_floats() -> Iterator[None]:
    """`Tensor.float` leaves float64 alone: some models compute a softmax in float32 whatever their dtype."""
    narrow = torch.Tensor.float

    def widest(self: Tensor, *args: Any, **keywords: Any) -> Tensor:
        return self if self.dtype == torch.float64 else narrow(self, *args, **keywords)

    torch.Tensor.float = widest  # type: ignore[method-assign,assignment]  # patched on purpose
    try:
        yield
    finally:
        torch.Tensor.float = narrow  # type: ignore[method-assign]  # as it was


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no warnings of transformers."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no types there
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no types there
