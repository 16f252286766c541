"""Every fenced Python example runs, and the tutorial's plugin is a real one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TUTORIAL = ROOT / "docs" / "tutorial" / "your-own-model.md"


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """Title (or "") and code of each block of the language."""
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [(title, code) for kind, title, code in found if kind == language]


def examples() -> list[object]:
    return [
        pytest.param(code, id=f"{page.relative_to(ROOT)}-{index}")
        for page in PAGES
        for index, (title, code) in enumerate(blocks(page, "python"))
        if not title and not page.match("reference/*")
    ]


def run(code: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("code", examples())
def test_example_runs(code: str) -> None:
    run(code)


def test_the_readme_example_answers() -> None:
    code = next(code for _, code in blocks(ROOT / "README.md", "python") if "LLM(" in code)
    output = run(code)
    assert len(code.strip().splitlines()) <= 15
    assert "Hello! ->" in output
    assert re.search(r"\d+ steps", output)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tutorial's package as its blocks write it, with the metadata that pip would leave."""
    root = tmp_path_factory.mktemp("quire-mistral")
    for title, code in [*blocks(TUTORIAL, "python"), *blocks(TUTORIAL, "toml")]:
        file = root / title
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code)
    source = root / "src"
    (source / "quire_mistral" / "__init__.py").touch()
    metadata = source / "quire_mistral-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: quire-mistral\nVersion: 0.1.0\n")
    (metadata / "entry_points.txt").write_text("[quire]\nmistral = quire_mistral.plugin\n")
    return source


def test_the_tutorials_plugin_is_listed(package: Path) -> None:
    code = "from quire.cli.main import main; raise SystemExit(main(['plugins', 'list', '--json']))"
    plugins = json.loads(run(code, PYTHONPATH=str(package)))["plugins"]
    [mine] = [entry for entry in plugins if entry["name"] == "mistral"]
    assert mine["distribution"] == "quire-mistral"
    assert mine["registers"] == {"architecture": ["MistralForCausalLM"]}


MISTRAL = """
import sys, torch
from transformers import MistralConfig, MistralForCausalLM
torch.manual_seed(0)
config = MistralConfig(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                       num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
                       sliding_window=None, tie_word_embeddings=False, initializer_range=0.2)
model = MistralForCausalLM(config).double().eval()
model.generation_config.eos_token_id = None
model.save_pretrained(sys.argv[1])
from quire import LLM, SamplingParams
prompts = [[5, 6, 7], list(range(3, 40))]
expected = [model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False,
                           pad_token_id=0)[0, len(prompt):].tolist() for prompt in prompts]
params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
with LLM(model=sys.argv[1], dtype="float64", skip_tokenizer_init=True, block_size=4,
         max_num_batched_tokens=7) as llm:
    outputs = llm.generate(prompts, params, use_tqdm=False)
actual = [list(output.outputs[0].token_ids) for output in outputs]
assert actual == expected, (actual, expected)
"""


def test_the_tutorials_model_is_right(package: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    code = MISTRAL.replace("sys.argv[1]", repr(str(tmp_path / "model")))
    run(code, PYTHONPATH=str(package))
