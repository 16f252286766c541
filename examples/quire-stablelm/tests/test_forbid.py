from __future__ import annotations

import math

import pytest
import torch
from quire_stablelm.forbid import ForbidFactory
from quire_stablelm.forbid_plugin import ForbidOptions

from quire.api.batch import DeviceInfo
from quire.api.config import EngineConfig
from quire.api.extensions import ExtensionContext
from quire.api.request import SamplingParams

PARAMS = SamplingParams()


def factory(**options: object) -> ForbidFactory:
    device = DeviceInfo(type="cpu", name="test")
    return ForbidFactory(ExtensionContext(EngineConfig(), device, 10, ForbidOptions.model_validate(options)))


def forbidden(made: ForbidFactory, arguments: object, num_output: int = 0) -> list[int]:
    processor = made.for_request(arguments, PARAMS)
    if processor is None:
        return []
    logits = processor([1], [2] * num_output, torch.zeros(10))
    return [index for index, value in enumerate(logits.tolist()) if value == -math.inf]


def test_a_request_forbids_its_own_tokens() -> None:
    assert forbidden(factory(), {"token_ids": [3, 7]}) == [3, 7]
    assert forbidden(factory(), [3, 7]) == [3, 7]
    assert forbidden(factory(), None) == []


def test_the_operator_forbids_for_all() -> None:
    made = factory(token_ids=[1])
    assert forbidden(made, None) == [1]
    assert forbidden(made, {"token_ids": [3]}) == [1, 3]


def test_only_among_the_first() -> None:
    arguments = {"token_ids": [3], "first": 2}
    assert [forbidden(factory(), arguments, n) for n in range(4)] == [[3], [3], [], []]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"token_ids": [10]}, "not between 0 and 9"),
        ({"token_ids": [-1]}, "not between 0 and 9"),
        ({"token_ids": [1, 2, 3]}, "at most 2"),
        ({"token_ids": []}, "at least 1"),
        ({"tokens": [1]}, "tokens"),
        (1, "ForbidArguments"),
    ],
)
def test_wrong_arguments_are_refused(arguments: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        factory(max_ids=2).for_request(arguments, PARAMS)


def test_something_must_remain() -> None:
    with pytest.raises(ValueError, match="leave at least one"):
        factory().for_request({"token_ids": list(range(10))}, PARAMS)
