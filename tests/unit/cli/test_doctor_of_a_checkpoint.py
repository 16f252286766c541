"""`quire plugins doctor --checkpoint`: who serves it, how many modules, and what would be refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from quire.cli.main import main


def test_it_counts_modules_and_says_why(
    quantized_checkpoint: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = quantized_checkpoint("gptq-w3g32-sym")
    assert main(["plugins", "doctor", "--checkpoint", str(folder), "--dtype", "float32"]) == 0
    text = capsys.readouterr().out
    assert "28 modules gptq (gptq_linear: reference), 1 modules unquantized" in text
    assert "gptq-marlin does not serve" in text and "lm_head by unquantized, since" in text


def test_what_the_loader_would_refuse_is_to_be_mended(
    quantized_checkpoint: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = quantized_checkpoint("gptq-w4g128-sym")
    for path in source.iterdir():
        (tmp_path / path.name).symlink_to(path.resolve())
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"]["bits"] = 5
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["plugins", "doctor", "--checkpoint", str(tmp_path)]) == 1
    assert "bits" in capsys.readouterr().out.splitlines()[-2]
