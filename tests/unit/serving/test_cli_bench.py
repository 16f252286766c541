"""The load generator: statistics on known numbers, its HTTP, and a run against a small server."""

from __future__ import annotations

import json
import random
import statistics
from pathlib import Path

import numpy as np
import pytest
from fake_openai import fake_openai
from hypothesis import given
from hypothesis import strategies as st

from quire.api.errors import ConfigError
from quire.cli.main import main
from quire_serving.cli.bench.http_client import BodyDecoder, Endpoint
from quire_serving.cli.bench.statistics import (
    RequestRecord,
    is_good,
    max_concurrency,
    parse_goodput,
    percentile,
    summarize,
)
from quire_serving.cli.bench.workloads import Ask, Lengths, random_workload, send_times, trace_workload


def test_percentiles_lie_between_the_nearest_ranks() -> None:
    values = [40.0, 10.0, 30.0, 20.0]
    assert [percentile(values, percent) for percent in (0, 50, 90, 100)] == [10, 25, pytest.approx(37), 40]
    assert percentile([], 50) == 0


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40), st.floats(0, 100))
def test_percentiles_are_numpys(values: list[float], percent: float) -> None:
    expected = float(np.percentile(values, percent))
    assert percentile(values, percent) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_latencies_of_a_request() -> None:
    record = RequestRecord(0.0, 5, 4, [0.1, 0.2, 0.4], 0.5)
    latencies = record.latencies_ms()
    assert latencies["ttft"] == [pytest.approx(100)]
    assert latencies["tpot"] == [pytest.approx(100)]  # 300 ms over three further tokens
    assert latencies["itl"] == [pytest.approx(100), pytest.approx(200)]
    assert latencies["e2el"] == [500]
    assert RequestRecord(0.0, 5, 1, [0.1], 0.2).latencies_ms()["tpot"] == []


def test_goodput_counts_what_keeps_every_limit() -> None:
    limits = parse_goodput(["ttft:150", "e2el:450"])
    good = RequestRecord(0.0, 5, 2, [0.1, 0.2], 0.4)
    late = RequestRecord(0.0, 5, 2, [0.1, 0.2], 0.5)
    failed = RequestRecord(0.0, error="no")
    assert [is_good(record, limits) for record in (good, late, failed)] == [True, False, False]
    result = summarize([good, late, failed], 2.0, [50], limits)
    assert (result["completed"], result["failed"], result["request_goodput"]) == (2, 1, 0.5)
    assert (result["output_throughput"], result["p50_e2el_ms"]) == (2.0, pytest.approx(450))
    for text in ("itl:5", "ttft:x", "ttft:-1", "ttft:nan", "ttft"):
        with pytest.raises(ConfigError, match="--goodput"):
            parse_goodput([text])


def test_concurrency_counts_overlaps_alone() -> None:
    assert max_concurrency([RequestRecord(start, end_s=1.0) for start in (0.0, 0.5, 1.0, 5.0)]) == 2


@pytest.mark.parametrize(("burstiness", "spread"), [(1.0, 1.0), (0.25, 2.0), (100.0, 0.1)])
def test_gaps_have_the_mean_of_the_rate_and_the_spread_of_the_shape(burstiness: float, spread: float) -> None:
    times = send_times(random.Random(0), [Ask("x", 1)] * 20_000, 4.0, burstiness)
    gaps = [after - before for before, after in zip(times, times[1:], strict=False)]
    mean = statistics.fmean(gaps)
    assert times[0] == 0 and mean == pytest.approx(0.25, rel=0.05)
    assert statistics.stdev(gaps) / mean == pytest.approx(spread, rel=0.1)
    assert send_times(random.Random(0), [Ask("x", 1)] * 3, float("inf"), 1.0) == [0, 0, 0]


def test_workloads_are_of_the_seed_the_lengths_and_the_trace(tmp_path: Path) -> None:
    lengths = Lengths(8, 4, 0.5, prefix=2)
    asks = random_workload(random.Random(1), 50, lengths, 30)
    assert asks == random_workload(random.Random(1), 50, lengths, 30)
    assert {tuple(ask.prompt[:2]) for ask in asks} == {tuple(asks[0].prompt[:2])}
    assert {len(ask.prompt) - 2 for ask in asks} <= set(range(4, 13)) and len(
        {len(a.prompt) for a in asks}
    ) > 3
    assert all(10 <= token < 30 for ask in asks for token in ask.prompt if isinstance(token, int))
    trace = tmp_path / "trace.jsonl"
    rows = [(7.5, 3, 4), (7.0, 2, 1)]
    keys = ("timestamp", "input_length", "output_length")
    trace.write_text("\n".join(json.dumps(dict(zip(keys, row, strict=True))) for row in rows))
    asks = trace_workload(random.Random(0), None, trace, 100)
    assert [(len(ask.prompt), ask.num_output_tokens) for ask in asks] == [(2, 1), (3, 4)]
    assert send_times(random.Random(0), asks, 1.0, 1.0) == [0.0, 0.5]
    trace.write_text('{"timestamp": 1}')
    with pytest.raises(ConfigError, match="trace.jsonl:1"):
        trace_workload(random.Random(0), None, trace, 100)


def test_chunks_may_be_cut_anywhere() -> None:
    wire = b"5\r\nhello\r\n1a;x=y\r\n" + b"z" * 26 + b"\r\n0\r\n\r\n"
    for size in range(1, len(wire) + 1):
        decoder = BodyDecoder(is_chunked=True)
        pieces = [decoder.feed(wire[start : start + size]) for start in range(0, len(wire), size)]
        assert b"".join(pieces) == b"hello" + b"z" * 26
        assert decoder.is_complete


def test_urls_are_taken_apart() -> None:
    endpoint = Endpoint.of("http://[::1]:81/v1/x", {"A": "b"})
    assert (endpoint.host, endpoint.port, endpoint.path) == ("::1", 81, "/v1/x")
    assert endpoint.request("POST", b"{}").startswith(b"POST /v1/x HTTP/1.1\r\nHost: [::1]:81\r\n")


def test_a_run_against_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fake_openai() as (url, requests):
        flags = [
            "--base-url",
            url,
            "--num-prompts",
            "6",
            "--input-len",
            "4",
            "--output-len",
            "3",
            "--ignore-eos",
        ]
        flags += ["--result-dir", str(tmp_path), "--result-filename", "r.json", "--goodput", "e2el:60000"]
        assert main(["bench", "serve", *flags, "--num-warmups", "0", "--max-concurrency", "2"]) == 0
    assert len(requests) == 6
    sent = requests[0]
    assert sent["path"] == "/v1/completions" and sent["ignore_eos"] and sent["max_tokens"] == 3
    assert len(sent["prompt"]) == 4 and all(10 <= token < 100 for token in sent["prompt"])
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["completed"], result["failed"]) == (6, 0)
    assert (result["total_input_tokens"], result["total_output_tokens"]) == (30, 18)
    assert (
        result["max_concurrent_requests"] <= 2 and result["request_goodput"] == result["request_throughput"]
    )
    assert all(len(entry["itl"]) == 2 for entry in result["details"])
    assert "time to first token" in capsys.readouterr().out


def test_a_stream_that_breaks_off_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    with fake_openai(breaks_off=True) as (url, _):
        flags = ["--base-url", url, "--num-prompts", "2", "--backend", "openai-chat"]
        assert main(["bench", "serve", *flags, "--num-warmups", "0"]) == 1
        shown = capsys.readouterr()
        assert "broke off" in shown.err and "failed                                   2" in shown.out
        assert main(["bench", "serve", *flags]) == 2
    shown = capsys.readouterr()
    assert "to warm up failed: the server broke off" in shown.err and not shown.out


def test_a_trace_runs_whole_and_at_its_own_times(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    row = {"timestamp": 3, "input_length": 2, "output_length": 1}
    trace.write_text("\n".join(json.dumps(row) for _ in range(120)))
    flags = ["--dataset-name", "trace", "--dataset-path", str(trace), "--num-warmups", "0"]
    for most, expected in (([], 120), (["--num-prompts", "3"], 3)):
        with fake_openai() as (url, requests):
            assert main(["bench", "serve", "--base-url", f"{url}/v1", *flags, *most]) == 0
        assert len(requests) == expected


def test_vllms_command_line_runs(tmp_path: Path) -> None:
    with fake_openai() as (url, requests):
        host, port = url.removeprefix("http://").split(":")
        flags = (
            f"--backend openai-chat --endpoint /v1/chat/completions --host {host} --port {port} --model fake"
        )
        flags += " --dataset-name random --random-input-len 4 --random-output-len 3 --random-range-ratio 0.5"
        flags += " --random-prefix-len 2 --num-prompts 2 --request-rate inf --burstiness 1 --ignore-eos"
        flags += " --max-concurrency 2 --percentile-metrics ttft,itl --metric-percentiles 50,99.9 --seed 1"
        flags += " --goodput ttft:500 e2el:9000 --save-result --disable-tqdm --num-warmups 0"
        assert main(["bench", "serve", *flags.split(), "--result-dir", str(tmp_path)]) == 0
    assert [request["path"] for request in requests] == ["/v1/chat/completions"] * 2
    [result] = tmp_path.iterdir()
    assert "p99.9_ttft_ms" in json.loads(result.read_text())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset-name", "trace"], "--dataset-path"),
        (["--request-rate", "0"], "--request-rate 0.0"),
        (["--metric-percentiles", "101"], "0 to 100"),
        (["--percentile-metrics", "xyz"], "'xyz'"),
        (["--base-url", "http://127.0.0.1:1"], "is the server up"),
        (["--base-url", "nowhere"], "is no URL"),
        (["--endpoint", "chat"], "give a path"),
    ],
)
def test_mistakes_are_one_line(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1


def test_a_plot_without_matplotlib_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("quire_serving.cli.bench.plot.importlib.util.find_spec", lambda name: None)
    assert main(["bench", "serve", "--plot", "x.png"]) == 2
    assert "pip install 'quire-serving[plot]'" in capsys.readouterr().err


def test_a_plot_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "new" / "p.png"
    with fake_openai() as (url, _):
        assert main(["bench", "serve", "--base-url", url, "--num-prompts", "2", "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
