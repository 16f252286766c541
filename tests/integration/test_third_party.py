"""A distribution of somebody else: built, installed into an environment of its own, used, switched off, removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "quire-stablelm"
PLUGINS = {"stablelm", "step-log", "forbid"}

pytest.importorskip("transformers")


@dataclass
class Environment:
    """A virtual environment that sees this one's packages, and has its own for what is installed into it."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def run(self, *arguments: object, status: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **variables}
        environment.pop("PYTHONPATH", None)
        command = [str(self.python), *(str(argument) for argument in arguments)]
        result = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300
        )
        assert result.returncode == status, f"{result.stdout}\n{result.stderr}"
        return result

    def quire(self, *arguments: object, status: int = 0, **variables: str) -> str:
        result = self.run("-m", "quire.cli", *arguments, status=status, **variables)
        return result.stdout + result.stderr

    def plugins(self, *flags: object) -> Mapping[str, Mapping[str, Any]]:
        entries = json.loads(self.quire("plugins", "list", "--json", *flags))["plugins"]
        return {entry["name"]: entry for entry in entries}

    def pip(self, *arguments: object) -> None:
        command = [sys.executable, "-m", "pip", "--python", str(self.python), *map(str, arguments)]
        subprocess.run([*command, "-q", "--disable-pip-version-check"], check=True, timeout=300)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-index"]
    command += ["--no-build-isolation", "--no-deps", "-w", str(folder), str(EXAMPLE)]
    subprocess.run(command, check=True, timeout=300)
    [file] = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=300)
    # addsitedir also reads the .pth files of the environment that runs the tests: its editable installs.
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "outer.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    made = Environment(folder)
    assert not PLUGINS & made.plugins().keys(), "the example must not be installed where the tests run"
    made.pip("install", "--no-deps", "--no-index", wheel)
    return made


SERVE = """
import json, sys, torch
from pathlib import Path
from transformers import StableLmConfig, StableLmForCausalLM
from quire import LLM, SamplingParams
from quire.api.errors import QuireError

CONFIGS = {
    "plain": {},
    "bias, norms per head": {"use_qkv_bias": True, "qk_layernorm": True},
    "parallel, half of each head turns": {"use_parallel_residual": True, "partial_rotary_factor": 0.5},
}
PROMPTS = [[5, 6, 7], list(range(3, 40)), list(range(3, 30))]
OPTIONS = {"options": {"step-log": {"path": "logs/steps.jsonl", "every": 2}}}


def write(name, fields):
    torch.manual_seed(0)
    base = dict(vocab_size=97, hidden_size=64, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.2, tie_word_embeddings=False)
    model = StableLmForCausalLM(StableLmConfig(**{**base, **fields})).double().eval()
    model.generation_config.eos_token_id = None
    model.save_pretrained(name)
    return model


def expected(model, prompt):
    tokens = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0)
    return tokens[0, len(prompt):].tolist()


def run(llm, **params):
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, **params)
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    return [(list(output.outputs[0].token_ids), output.outputs[0].finish_reason) for output in outputs]


def open_llm(name, plugins=OPTIONS):
    return LLM(model=name, dtype="float64", skip_tokenizer_init=True, block_size=4, max_num_batched_tokens=7,
               max_model_len=64, num_kv_blocks=64, plugins=plugins)


found = {"tokens": {}}
for name, fields in CONFIGS.items():
    model = write(name, fields)
    with open_llm(name) as llm:
        tokens = [ids for ids, _ in run(llm)]
        found["tokens"][name] = [tokens, [expected(model, prompt) for prompt in PROMPTS]]
        if name != "plain":
            continue
        banned = tokens[0][:2]
        found["banned"] = banned
        found["forbidden"] = run(llm, extra_args={"forbid": {"token_ids": banned}})
        found["forbidden first"] = run(llm, extra_args={"forbid": {"token_ids": banned, "first": 3}})
        try:
            run(llm, extra_args={"forbid": {"token_ids": [97]}})
        except QuireError as error:
            found["refusal"] = str(error)
        found["calls"] = [[m.labels["plugin"], m.value] for m in llm.get_metrics() if m.name == "quire:plugin_calls"]
everyone = {"options": {"forbid": {"token_ids": found["banned"]}}, "deny": ["step-log"]}
with open_llm("plain", everyone) as llm:
    found["for everyone"] = run(llm)
try:
    open_llm("plain", {"options": {"step-log": {"evry": 2}}})
except QuireError as error:
    found["misspelt"] = str(error)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def served(environment: Environment) -> dict[str, Any]:
    """What a program saw that used all three plugins; the models stay in the environment's folder."""
    result: dict[str, Any] = json.loads(environment.run("-c", SERVE).stdout.splitlines()[-1])
    return result


def test_the_wheel_holds_only_its_package(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"quire_stablelm", "quire_stablelm-0.1.0.dist-info"}


def test_the_model_part_is_short() -> None:
    text = (EXAMPLE / "src" / "quire_stablelm" / "model.py").read_text(encoding="utf-8")
    assert sum(bool(line.strip()) for line in text.splitlines()) <= 150


def test_it_imports_nothing_of_quire_but_api_and_nn() -> None:
    for file in (EXAMPLE / "src").rglob("*.py"):
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith(("from quire.", "import quire")):
                assert line.startswith(("from quire.api", "from quire.nn")), f"{file.name}: {line}"


def test_it_is_listed(environment: Environment) -> None:
    plugins = environment.plugins()
    assert plugins.keys() >= PLUGINS
    assert {plugins[name]["distribution"] for name in PLUGINS} == {"quire-stablelm"}
    assert {plugins[name]["status"] for name in PLUGINS} == {"enabled"}
    assert plugins["stablelm"]["registers"] == {"architecture": ["StableLmForCausalLM"]}
    assert plugins["forbid"]["registers"] == {"logits processor": ["forbid"]}


def test_info_shows_options_with_defaults(environment: Environment) -> None:
    text = environment.quire("plugins", "info", "step-log")
    assert "every" in text and "quire-steps.jsonl" in text and "write every n-th step" in text


@pytest.mark.parametrize("name", ["plain", "bias, norms per head", "parallel, half of each head turns"])
def test_the_model_equals_transformers(served: dict[str, Any], name: str) -> None:
    tokens, expected = served["tokens"][name]
    assert tokens == expected
    assert len({token for row in tokens for token in row}) > 5


def test_the_processor_forbids(served: dict[str, Any]) -> None:
    banned = set(served["banned"])
    plain = served["tokens"]["plain"][0]
    assert banned & set(plain[0]), "nothing would be forbidden"
    for tokens, reason in served["forbidden"] + served["for everyone"]:
        assert not banned & set(tokens) and reason == "length"
    for tokens, _ in served["forbidden first"]:
        assert not banned & set(tokens[:3])
    assert served["for everyone"] == served["forbidden"]


def test_wrong_arguments_refuse_the_request_and_wrong_options_the_start(served: dict[str, Any]) -> None:
    assert "97" in served["refusal"] and "96" in served["refusal"]
    assert "evry" in served["misspelt"] and "every" in served["misspelt"]


def test_the_observer_writes_lines(environment: Environment, served: dict[str, Any]) -> None:
    lines = (environment.folder / "logs" / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    steps = [event for event in events if event["event"] == "step"]
    ends = [event for event in events if event["event"] == "request"]
    assert len(ends) == 5 * 3, "three engines, of which the first ran the prompts three times"
    assert {event["finish_reason"] for event in ends} == {"length"}
    assert {event["num_output_tokens"] for event in ends} == {12}
    assert steps and all(1 <= step["num_tokens"] <= 7 for step in steps)
    assert steps[1]["step_id"] - steps[0]["step_id"] == 2
    assert {"step-log", "forbid"} <= {plugin for plugin, _ in served["calls"]}


def test_denied_in_a_file_it_is_off_and_says_why(environment: Environment, served: dict[str, Any]) -> None:
    file = environment.folder / "quire.toml"
    file.write_text('[plugins]\ndeny = ["stablelm"]\n')
    entry = environment.plugins("--config", file)["stablelm"]
    assert entry["status"] == "disabled" and "denied" in entry["reason"]
    doctor = environment.quire("plugins", "doctor", "--config", file)
    assert "stablelm" in doctor and "denied" in doctor
    arguments = ("--config", file, "--model", "plain", "--skip-tokenizer-init", "--prompt", "x")
    refusal = environment.quire("generate", *arguments, status=2)
    assert "StableLmForCausalLM" in refusal and "LlamaForCausalLM" in refusal


@pytest.mark.parametrize("name", ["stablelm", "forbid"])
def test_the_shipped_suites_pass(environment: Environment, name: str) -> None:
    table = environment.quire("plugins", "check", name)
    assert ", 0 failed, 0 skipped" in table and "Conformance" in table


def test_its_own_tests_pass(environment: Environment) -> None:
    arguments = ("-q", "-p", "no:cacheprovider", "--rootdir", EXAMPLE, EXAMPLE / "tests")
    text = environment.run("-B", "-m", "pytest", *arguments).stdout
    assert "passed" in text and "skipped" not in text


def test_uninstalled_it_is_gone_without_traces(environment: Environment, served: dict[str, Any]) -> None:
    environment.pip("uninstall", "-y", "quire-stablelm")
    assert not PLUGINS & environment.plugins().keys()
    assert not [path for path in environment.folder.glob("lib/**/*stablelm*")]
    assert "stablelm" not in environment.quire("plugins", "doctor").lower()
    arguments = ("--model", "plain", "--skip-tokenizer-init", "--prompt", "x")
    assert "StableLmForCausalLM is served by no plugin" in environment.quire("generate", *arguments, status=2)
