"""The shipped suite: pure functions of their own row, alone and in an engine. And what this one is for."""

from __future__ import annotations

import torch
from quire_my_logits_processor.processor import MyLogitsProcessor

from quire.testing import LogitsProcessorConformance


class TestMyLogitsProcessor(LogitsProcessorConformance):
    name = "my-logits-processor"
    arguments = {"strength": 0.5}
    more_arguments = ({"strength": 2}, {"strength": 0})
    wrong_arguments = ({"strength": -1}, {"strengh": 1.0}, 17)


def test_repeated_tokens_become_less_likely() -> None:
    logits = MyLogitsProcessor(0.5)([1, 1], [2, 3, 2], torch.zeros(5))
    assert logits.tolist() == [0.0, 0.0, -1.0, -0.5, 0.0]
