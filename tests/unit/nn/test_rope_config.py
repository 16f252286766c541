"""Parsing rotary parameters, in both spellings, and what is refused."""

from __future__ import annotations

import pytest

from quire.api.errors import CheckpointError, UnsupportedModelError
from quire.nn.rope_config import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ProportionalScaling,
    RopeConfig,
    YarnScaling,
    parse_rope_config,
)


def parse(config: dict[str, object], head_size: int = 8) -> RopeConfig:
    return parse_rope_config(config, head_size=head_size, max_position_embeddings=16)


def test_defaults() -> None:
    assert parse({}) == RopeConfig(8, 8, 10000.0, 16)
    assert parse({"rope_scaling": None, "rope_theta": 5e5}).theta == 5e5
    assert parse({"rope_parameters": {"rope_type": "default"}}).scaling is None


def test_theta_inside_the_parameters_wins() -> None:
    assert parse({"rope_theta": 2.0, "rope_parameters": {"rope_theta": 3}}).theta == 3.0
    assert parse({"rope_theta": 2.0, "rope_parameters": {"rope_type": "default"}}).theta == 2.0


def test_older_parameters_win_over_newer_ones() -> None:
    config = {"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_type": "default"}}
    assert parse(config).scaling == LinearScaling(2.0)


def test_partial_rotation() -> None:
    assert parse({"partial_rotary_factor": 0.5}).rotary_dim == 4
    assert parse({"rope_parameters": {"partial_rotary_factor": 0.25}}).rotary_dim == 2
    with pytest.raises(CheckpointError, match="at most 1"):
        parse({"partial_rotary_factor": 1.5})
    with pytest.raises(UnsupportedModelError, match="3 of a head's 6"):
        parse({"partial_rotary_factor": 0.5}, head_size=6)


@pytest.mark.parametrize(
    ("parameters", "scaling"),
    [
        ({"rope_type": "linear", "factor": 2}, LinearScaling(2.0)),
        ({"rope_type": "dynamic", "factor": 2}, DynamicScaling(2.0, 16)),
        (
            {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 4},
            YarnScaling(4.0, 4, 32.0, 1.0, True, None, None, None),
        ),
        (
            {"rope_type": "longrope", "short_factor": [1, 1], "long_factor": [2, 2]},
            LongRopeScaling(1.0, 16, (1.0, 1.0), (2.0, 2.0), None),
        ),
        (
            {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4},
            Llama3Scaling(8.0, 16, 1.0, 4.0),
        ),
        ({"rope_type": "proportional", "partial_rotary_factor": 0.5}, ProportionalScaling(1.0, 1)),
    ],
)
def test_types(parameters: dict[str, object], scaling: object) -> None:
    assert parse({"rope_parameters": parameters}, head_size=4).scaling == scaling


def test_original_length_beside_the_parameters_wins() -> None:
    parameters = {"rope_type": "yarn", "factor": 2, "original_max_position_embeddings": 4}
    config = parse({"rope_parameters": parameters, "original_max_position_embeddings": 8})
    assert isinstance(config.scaling, YarnScaling)
    assert config.scaling.original_len == 8


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rope_type": "linear"}, "factor is missing"),
        ({"rope_type": "linear", "factor": 0}, "factor is 0"),
        ({"rope_type": "linear", "factor": "2"}, "factor is '2'"),
        ({"rope_type": "dynamic", "factor": 0.5}, "at least 1"),
        ({"rope_type": "longrope", "short_factor": [1.0]}, "short_factor has 1 numbers; 4 are needed"),
        ({"rope_type": "longrope", "short_factor": [1.0] * 4}, "long_factor is missing"),
        ({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 1}, "not above"),
        ({"rope_type": 3}, "rope_type is 3"),
        ({"rope_theta": -1}, "rope_theta is -1"),
    ],
)
def test_refuses_malformed_parameters(parameters: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        parse({"rope_parameters": parameters})


def test_refuses_unknown_types_naming_the_known() -> None:
    known = "default, dynamic, linear, llama3, longrope, proportional, yarn"
    with pytest.raises(UnsupportedModelError, match=f"'mrope' is not served; served are {known}"):
        parse({"rope_scaling": {"type": "mrope"}})
    with pytest.raises(UnsupportedModelError, match="more than 2"):
        parse({"rope_parameters": {"rope_type": "dynamic", "factor": 2}}, head_size=2)
