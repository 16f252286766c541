from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from machine_state import BandwidthProbe, CpuMeter
from peer_engines.gguf_file import gguf_name
from peer_engines.worker import answer
from peer_process import PeerError, PeerProcess
from peers import main
from workloads import Job


class Echo:
    """An engine whose jobs end at once."""

    def generate(self, jobs: Sequence[Job], shared_prefix: int) -> list[int]:
        return [job.num_outputs + shared_prefix for job in jobs]

    def stream(self, job: Job) -> list[float]:
        return [float(token) for token in job.prompt]

    def close(self) -> None:
        pass


def start(name: str, model: Path, **options: str) -> PeerProcess:
    return PeerProcess(name, Path(sys.executable), model, options=options, num_threads=1, timeout_s=60.0)


def test_a_worker_does_what_a_line_asks() -> None:
    found = answer(Echo(), {"generate": [[[5, 6], 3], [[7], 1]], "shared_prefix": 2})
    assert found["lengths"] == [5, 3]
    assert isinstance(found["wall_s"], float)
    assert answer(Echo(), {"stream": [[5, 6], 2]}) == {"times_s": [5.0, 6.0]}


def test_an_engine_that_does_not_load_says_why(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="openvino: ValueError: give the converted model"):
        start("openvino", tmp_path)


def test_a_worker_that_dies_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="unheard ended.*KeyError: 'unheard'|unheard: KeyError: 'unheard'"):
        start("unheard", tmp_path)


def test_quire_runs_jobs_and_streams_in_a_process_of_its_own() -> None:
    package = importlib.util.find_spec("quire_models.tiny")
    assert package is not None
    [folder] = package.submodule_search_locations or []
    engine = start("quire", Path(folder), max_model_len="128", num_kv_blocks="64")
    try:
        assert engine.versions["quire-core"]
        assert engine.generate([Job([5, 6, 7], 4), Job([8], 2)]) > 0
        times = engine.stream(Job([5, 6, 7], 5))
        assert len(times) == 5
        assert times == sorted(times)
        with pytest.raises(PeerError, match="quire: "):
            engine.generate([Job([], 1)])
        assert engine.generate([Job([9], 1)]) > 0  # it lives on
    finally:
        engine.close()


def test_without_peers_nothing_is_measured_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["peers.py"])
    assert main() == 0
    assert capsys.readouterr().out.startswith("peers: skipped, none is given")


@pytest.mark.parametrize("flags", [["--peer", "vllm"], ["--peer", "other=/x"], ["--option", "vllm.eager"]])
def test_malformed_flags_are_refused(monkeypatch: pytest.MonkeyPatch, flags: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["peers.py", *flags])
    with pytest.raises(SystemExit):
        main()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.layers.12.self_attn.q_proj.bias", "blk.12.attn_q.bias"),
        ("model.layers.0.post_attention_layernorm.weight", "blk.0.ffn_norm.weight"),
        ("model.layers.3.mlp.down_proj.weight", "blk.3.ffn_down.weight"),
    ],
)
def test_tensors_have_the_names_of_gguf(name: str, expected: str) -> None:
    assert gguf_name(name) == expected


def test_bandwidth_and_shares_are_measured() -> None:
    assert BandwidthProbe(num_bytes=12 * 4096).bytes_per_s(seconds=0) > 0
    meter = CpuMeter([])
    shares = meter.stop()
    assert shares.seconds > 0
    assert shares.others >= 0
    assert shares.idle_peers == 0
    assert set(shares.to_json()) == {"others_cpu", "stolen_cpu", "idle_peers_cpu"}
