from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cost_curves import Jump, Point, decode_cost, jumps, make_point, parts_s, slow_points, verdict
from plots import plot_record
from roofline import MachineLimits
from shapes import SHAPES

SHAPE = SHAPES["S"]
WEIGHTS = 2 * (SHAPE.linear_params + SHAPE.head_params)
POINT = Point(1, 1, 128.0, 1.0, 0.9, 1.2, 1.0, 1.0, 1e9, 0.01, 0.0)


def curve(*pairs: tuple[float, float]) -> list[Point]:
    """Points of these steps and rooflines, at 1, 2, 4, ..."""
    return [
        replace(POINT, at=2**index, step_s=step_s, roofline_s=roofline_s)
        for index, (step_s, roofline_s) in enumerate(pairs)
    ]


def test_a_decode_step_reads_the_weights_once_and_every_context() -> None:
    cost = decode_cost(SHAPE, [100, 300])
    assert cost.num_bytes == WEIGHTS + 400 * SHAPE.kv_bytes_per_token
    assert (cost.num_tokens, cost.num_sampled) == (2, 2)


def test_the_parts_are_bound_each_by_itself() -> None:
    cost = decode_cost(SHAPE, [1000] * 256)
    limits = MachineLimits(30e9, 30e9, 1e12)  # linears bound by operations, attention by bytes
    operations = 2.0 * 256 * (SHAPE.linear_params + SHAPE.head_params)
    attention_s = 256_000 * SHAPE.kv_bytes_per_token / 30e9
    assert parts_s(cost, limits) == pytest.approx(operations / 1e12 + attention_s)
    assert parts_s(cost, limits) > limits.least_time_s(cost.num_bytes, cost.num_flops)


def test_a_point_is_the_median_beside_the_roofline_of_its_true_contexts() -> None:
    limits = MachineLimits(10e9, 5e9, 1e15)
    cost = decode_cost(SHAPE, [128, 130])
    point = make_point(2, cost, limits, [0.3, 0.1, 0.2], host_share=0.02, others_cpu=0.5)
    assert (point.step_s, point.least_s, point.most_s) == (0.2, 0.1, 0.3)
    assert (point.num_requests, point.mean_context, point.bytes_per_s) == (2, 129.0, 10e9)
    assert point.roofline_s == pytest.approx((WEIGHTS + 258 * SHAPE.kv_bytes_per_token) / 10e9)
    assert point.over_roofline == pytest.approx(0.2 / point.roofline_s)


def test_points_over_the_limit_are_found_and_those_at_it_pass() -> None:
    points = curve((1.5, 1.0), (1.6, 1.0), (3.0, 2.1))
    assert [point.at for point in slow_points(points)] == [2]


def test_a_jump_is_a_rise_that_the_roofline_does_not_have() -> None:
    assert jumps(curve((1.0, 1.0), (1.15, 1.0))) == []
    assert jumps(curve((1.0, 1.0), (2.0, 2.0), (4.0, 3.6))) == []
    [jump] = jumps(curve((1.0, 1.0), (2.0, 2.0), (2.6, 2.0), (2.0, 2.0)))
    assert jump == Jump(2, 4, pytest.approx(1.3))
    assert jumps(curve((1.0, 1.0))) == []


def test_a_curve_in_the_record_says_what_is_wrong_with_it() -> None:
    found = verdict("requests, context 128", curve((1.0, 1.0), (1.6, 1.0)))
    assert found["over_limit"] == [2]
    assert found["jumps"] == [{"from": 1, "to": 2, "factor": 1.6}]
    points = found["points"]
    assert isinstance(points, list)
    assert points[1]["at"] == 2
    assert points[1]["over_roofline"] == 1.6
    assert set(points[0]) == {*POINT.__slots__, "over_roofline", "over_parts"}


def test_curves_are_drawn_beside_their_record(tmp_path: Path) -> None:
    curves = [
        verdict("requests, context 128", curve((1.0, 1.0), (1.6, 1.0))),
        verdict("context, 1 requests", curve((1, 1))),
    ]
    record = {
        "benchmark": "curves",
        "shape": "S",
        "date": "2026-01-01T00:00:00",
        "commit": "0" * 40,
        "results": {"curves": curves},
    }
    file = tmp_path / "curves-S.json"
    file.write_text(json.dumps(record))
    assert plot_record(file).read_bytes().startswith(b"\x89PNG")


def test_peers_are_drawn_beside_their_record(tmp_path: Path) -> None:
    spread = {"median": 2.0, "min": 1.0, "max": 4.0}
    record = {
        "benchmark": "peers",
        "shape": "S",
        "date": "2026-01-01T00:00:00",
        "commit": "0" * 40,
        "workloads": {"w3": {"what": "a prefix", "compared_by": "wall_s"}},
        "results": {"w3": {"quire": {"wall_s": spread}, "vllm": {"wall_s": spread}}},
    }
    file = tmp_path / "peers-S.json"
    file.write_text(json.dumps(record))
    assert plot_record(file).read_bytes().startswith(b"\x89PNG")
