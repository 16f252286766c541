"""The packages of the how-to pages and of the tutorial do what the pages say."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT, titled_blocks, write_files, write_metadata

from quire.cli.main import main

HOW_TO = sorted(page for page in (ROOT / "docs" / "how-to").glob("*.md") if titled_blocks(page))
TUTORIAL = ROOT / "docs" / "tutorial" / "a-new-architecture.md"
KINDS = (
    "model",
    "op",
    "attention-backend",
    "step-capture",
    "policy",
    "quantization",
    "logits-processor",
    "drafter",
    "observer",
    "command",
    "tool-parser",
    "route",
)


def run(folder: Path, source: Path, *arguments: str, status: int = 0) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == status, f"{result.stdout}\n{result.stderr}"
    return result.stdout + result.stderr


def test_every_kind_has_a_page() -> None:
    names = " ".join(page.stem for page in (ROOT / "docs" / "how-to").glob("add-*.md"))
    assert all(kind in names for kind in KINDS)
    assert len(HOW_TO) >= 6


@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_a_how_to_page_works(page: Path, tmp_path: Path) -> None:
    files = titled_blocks(page)
    assert {"pyproject.toml", "use_it.py"} <= files.keys()
    write_files(files, tmp_path)
    write_metadata(tmp_path, tmp_path)
    run(tmp_path, tmp_path, "use_it.py")
    checked = re.search(r"^\$ quire plugins check (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    if checked:
        table = run(tmp_path, tmp_path, "-m", "quire.cli", "plugins", "check", checked[1])
        assert ", 0 failed" in table and "Conformance" in table


def commands() -> list[str]:
    """Every `quire ...` line of the pages' consoles, without variables and prompts of a shell."""
    pages = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*/README.md")]
    texts = [page.read_text(encoding="utf-8") for page in pages if page.parent.name != "reference"]
    found = [line for text in texts for line in re.findall(r"^\$ (.*\bquire [a-z].*)$", text, re.MULTILINE)]
    # for mypy: it is found: see the filter
    return sorted({line[re.search(r"\bquire [a-z]", line).start() :] for line in found})  # type: ignore[union-attr]


@pytest.mark.parametrize("line", commands())
def test_commands_and_flags_of_the_pages_exist(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(line.partition("|")[0])[1:]
    chosen = words[:2] if words[0] in ("plugins", "bench") else words[:1]
    with pytest.raises(SystemExit) as end:
        main([*chosen, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for flag in (word.partition("=")[0] for word in words if word.startswith("--")):
        assert re.search(rf"{flag}\b", text), f"quire {' '.join(chosen)} has no {flag}"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `quire plugins new` writes, with the tutorial's files over it."""
    root = tmp_path_factory.mktemp("tutorial")
    run(root, root, "-m", "quire.cli", "plugins", "new", "model", "quire-olmo2")
    made = root / "quire-olmo2"
    write_files(titled_blocks(TUTORIAL), made)
    write_metadata(made, made / "src")
    return made


def test_the_tutorial_replaces_files_of_the_scaffold(package: Path) -> None:
    for name in ("src/quire_olmo2/__init__.py", "pyproject.toml", "README.md"):
        assert (package / name).exists(), name
    assert [file.name for file in (package / "tests").glob("test_*.py")] == ["test_olmo2.py"]
    assert len((package / "src" / "quire_olmo2" / "model.py").read_text().splitlines()) <= 150


def test_the_tutorials_plugin_is_listed(package: Path) -> None:
    text = run(package, package / "src", "-m", "quire.cli", "plugins", "list", "--json")
    [mine] = [entry for entry in json.loads(text)["plugins"] if entry["name"] == "olmo2"]
    assert mine["distribution"] == "quire-olmo2"
    assert mine["registers"] == {"architecture": ["Olmo2ForCausalLM"]}


def test_the_tutorials_conformance_test_passes(package: Path) -> None:
    pytest.importorskip("transformers")
    text = run(package, package / "src", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".")
    assert "passed" in text and "failed" not in text


SERVE = """
import torch
from transformers import Olmo2Config, Olmo2ForCausalLM
torch.manual_seed(0)
config = Olmo2Config(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                     num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
                     pad_token_id=None, initializer_range=0.2)
model = Olmo2ForCausalLM(config).double().eval()
model.generation_config.eos_token_id = None
model.save_pretrained("checkpoint")
from quire import LLM, SamplingParams
prompts = [[5, 6, 7], list(range(3, 40))]
expected = [model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False,
                           pad_token_id=0)[0, len(prompt):].tolist() for prompt in prompts]
params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
with LLM("checkpoint", dtype="float64", skip_tokenizer_init=True, block_size=4, max_num_batched_tokens=7) as llm:
    outputs = llm.generate(prompts, params, use_tqdm=False)
actual = [list(output.outputs[0].token_ids) for output in outputs]
assert actual == expected, (actual, expected)
"""


def test_the_tutorials_model_is_served_and_switched_off(package: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    run(tmp_path, package / "src", "-c", SERVE)
    (tmp_path / "quire.toml").write_text('[plugins]\ndeny = ["olmo2"]\n')
    doctor = run(tmp_path, package / "src", "-m", "quire.cli", "plugins", "doctor", "--config", "quire.toml")
    assert "olmo2" in doctor and "denied" in doctor
    arguments = ("--config", "quire.toml", "--model", "checkpoint", "--skip-tokenizer-init", "--prompt", "x")
    refusal = run(tmp_path, package / "src", "-m", "quire.cli", "generate", *arguments, status=2)
    assert "Olmo2ForCausalLM is served by no plugin" in refusal
