"""`quire quantize`: int8 and int4 end to end, resuming, samples, refusals, and GPTQModel's process over a fake."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quire.api.errors import CapacityError, ConfigError, PromptError, QuantizationError
from quire.api.quantization import StoredTensor
from quire.cli.main import main
from quire.testing.tiny_models import write_tiny_gpt2, write_tiny_llama
from quire_quantization.quantize import compressed, gptqmodel_run, job, run, source
from quire_quantization.quantize.rounding import pack_words, round_to_nearest, symmetric_scales
from quire_quantization.quantize.samples import SampleReader, TokenizedSample, read_samples
from quire_quantization.quantize.shard_file import ShardFile, full_disk_explained
from quire_quantization.quantize.source import open_source

VOCAB = 97
Quantize = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantize") / "model"
    write_tiny_llama(path, hidden_size=64, intermediate_size=128)
    (path / "chat_template.jinja").write_text("{{ messages }}")
    return path


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("samples") / "samples.jsonl"
    generator = torch.Generator().manual_seed(3)
    rows = torch.randint(3, VOCAB, (40, 24), generator=generator).tolist()
    path.write_text("".join(json.dumps({"token_ids": row}) + "\n" for row in rows))
    return path


@pytest.fixture
def quantize(model: Path, samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Quantize:
    """Run the command on the model into tmp_path/out; `None` leaves an argument out."""

    def call(*extra: str, **flags: object) -> tuple[int, str, str]:
        values = {
            "method": "int4",
            "group_size": 32,
            "calibration": samples,
            "out": tmp_path / "out",
            **flags,
        }
        if values["method"] == "int8":
            values.pop("group_size")
        arguments = [str(values.pop("model", model)), *extra]
        for name, value in values.items():
            if value is not None:
                arguments += [f"--{name.replace('_', '-')}", str(value)]
        capsys.readouterr()
        try:
            status = main(["quantize", *arguments])
        except SystemExit as error:
            status = int(error.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def unpacked(words: Tensor) -> Tensor:
    """4-bit integers of 32-bit words, one at a time: the first in the lowest bits, raised by 8."""
    rows = [
        [((word & 0xFFFFFFFF) >> (4 * place) & 15) - 8 for word in row for place in range(8)]
        for row in words.tolist()
    ]
    return torch.tensor(rows, dtype=torch.float64)


def dequantized(stored: dict[str, Tensor], module: str) -> Tensor:
    scale = stored[f"{module}.weight_scale"].double()
    if f"{module}.weight_packed" in stored:
        integers = unpacked(stored[f"{module}.weight_packed"])
    else:
        integers = stored[f"{module}.weight"].double()
    return integers * scale.repeat_interleave(integers.shape[1] // scale.shape[1], dim=1)


def hf_loss(folder: Path, weights: dict[str, Tensor], batch: list[list[int]]) -> float:
    """The mean loss by transformers, with some modules' weights replaced."""
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        for module, weight in weights.items():
            network.get_submodule(module).weight.copy_(weight)
        logits = network(torch.tensor(batch)).logits[:, :-1]
    targets = torch.tensor(batch)[:, 1:]
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rounding_is_off_by_half_a_step_at_most(bits: int, dtype: torch.dtype) -> None:
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[0, :32] = 0
    scales = symmetric_scales(weight, bits, 32)
    levels = round_to_nearest(weight, scales, bits)
    assert levels.min() == -(2 ** (bits - 1)) or levels.max() == 2 ** (bits - 1) - 1
    steps = scales.double().repeat_interleave(32, dim=1)
    error = (levels.double() * steps - weight.double()).abs()
    rounded_scale = 2 ** (bits - 1) * torch.finfo(dtype).eps / 2  # reaches the ends of the range only
    assert bool((error <= (0.5001 + rounded_scale) * steps).all())
    inner = levels.abs() < 2 ** (bits - 1) - 1
    assert bool((error <= 0.5001 * steps)[inner].all())
    assert bool((levels[0, :32] == 0).all())


def test_words_hold_the_first_integer_in_the_lowest_bits() -> None:
    levels = torch.randint(-8, 8, (5, 64), dtype=torch.int8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(unpacked(pack_words(levels, 4)), levels.double())


@pytest.mark.parametrize("method", ["int4", "int8"])
def test_end_to_end(quantize: Quantize, model: Path, tmp_path: Path, samples: Path, method: str) -> None:
    status, out, err = quantize(method=method, evaluation=samples)
    assert status == 0, err
    report = json.loads((tmp_path / "out" / "quantize_report.json").read_text())
    stored = load_file(tmp_path / "out" / "model.safetensors")
    plain = load_file(model / "model.safetensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    modules = [name.removesuffix(".weight_scale") for name in stored if name.endswith("weight_scale")]
    assert len(modules) == 2 * 7
    assert config["ignore"] == ["lm_head"]
    for name in ("lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"):
        assert torch.equal(stored[name], plain[name])
    weights = {module: dequantized(stored, module) for module in modules}
    for module, weight in weights.items():
        original = plain[f"{module}.weight"].double()
        assert (weight - original).norm() / original.norm() < (0.15 if method == "int4" else 0.01)
    batch = [json.loads(line)["token_ids"] for line in samples.read_text().splitlines()]
    assert report["loss_before"]["num_tokens"] == 40 * 23
    assert report["loss_before"]["mean_nats"] == pytest.approx(hf_loss(model, {}, batch), abs=1e-4)
    tolerance = 1e-4 if method == "int4" else 0.02  # int8 rounds activations too
    assert report["loss_after"]["mean_nats"] == pytest.approx(hf_loss(model, weights, batch), abs=tolerance)
    change = report["loss_after"]["mean_nats"] - report["loss_before"]["mean_nats"]
    assert report["loss_delta"] == pytest.approx(change)
    assert report["bytes_after"] < report["bytes_before"]
    assert f"{change:+.4f}" in out and "perplexity" in out
    assert (tmp_path / "out" / "chat_template.jinja").is_file()
    assert not (tmp_path / "out.partial").exists()
    assert not (tmp_path / "out" / job.JOB_NAME).exists()


def test_the_config_is_what_compressed_tensors_writes(quantize: Quantize, tmp_path: Path) -> None:
    assert quantize("--no-evaluate", method="int8")[0] == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    assert config["format"] == "int-quantized"
    [group] = config["config_groups"].values()
    assert group["targets"] == ["Linear"]
    assert {"num_bits": 8, "type": "int", "strategy": "channel", "dynamic": False}.items() <= group[
        "weights"
    ].items()
    assert {"num_bits": 8, "strategy": "token", "dynamic": True}.items() <= group["input_activations"].items()


def test_the_head_and_ignored_modules(quantize: Quantize, tmp_path: Path) -> None:
    status, _, err = quantize("--no-evaluate", "--quantize-head", ignore="down_proj|layers.1.mlp")
    assert status == 0, err
    stored = load_file(tmp_path / "out" / "model.safetensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert "lm_head.weight_packed" in stored and "lm_head.weight" not in stored
    ignored = ["layers.0.mlp.down_proj", *(f"layers.1.mlp.{name}_proj" for name in ("down", "gate", "up"))]
    assert sorted(config["ignore"]) == [f"model.{name}" for name in ignored]
    assert all(f"{name}.weight" in stored for name in config["ignore"])


def test_reading_in_pieces_changes_nothing(
    quantize: Quantize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert quantize("--no-evaluate", out=tmp_path / "whole")[0] == 0
    monkeypatch.setattr(source, "_CHUNK_ELEMENTS", 64 * 3)
    assert quantize("--no-evaluate", out=tmp_path / "pieces")[0] == 0
    names = [tmp_path / name / "model.safetensors" for name in ("whole", "pieces")]
    assert names[0].read_bytes() == names[1].read_bytes()


def interrupt_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    write, calls = compressed._write, iter(range(1000))

    def interrupted(*arguments: object) -> None:
        if next(calls) == number:
            raise KeyboardInterrupt
        write(*arguments)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(compressed, "_write", interrupted)


def test_an_interrupted_run_goes_on(
    quantize: Quantize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"max_shard_size": 20000}
    assert quantize(out=tmp_path / "reference", **sizes)[0] == 0
    titles: list[str] = []
    measure = run.measure_loss

    def counted(*arguments: object) -> object:
        titles.append(str(arguments[-1]))
        return measure(*arguments)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(run, "measure_loss", counted)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 12)
        status, out, err = quantize(**sizes)
    partial = tmp_path / "out.partial"
    finished = {path.name: path.stat().st_ino for path in partial.glob("*.safetensors")}
    assert status == 130 and out == ""
    assert "run the same command again" in err
    assert finished and not list(partial.glob("*.tmp")) and not (tmp_path / "out").exists()

    status, _, err = quantize(method="int8", **sizes)
    assert status == 2 and "method: 'int4' there, 'int8' here" in err

    status, _, err = quantize(**sizes)
    assert status == 0, err
    assert titles == ["Loss before", "Loss after"]
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "reference").iterdir())
    assert len(finished) < sum(name.endswith(".safetensors") for name in files)
    for name in files:
        path = tmp_path / "out" / name
        if name != job.REPORT_NAME:
            assert path.read_bytes() == (tmp_path / "reference" / name).read_bytes()
        assert name not in finished or path.stat().st_ino == finished[name]


def test_a_finished_run_is_not_repeated(
    quantize: Quantize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert quantize("--no-evaluate")[0] == 0
    inode = (tmp_path / "out" / "model.safetensors").stat().st_ino
    status, out, err = quantize()  # the evaluation that was left out is made up for
    assert status == 0 and "perplexity" in out, err
    with monkeypatch.context() as patch:
        patch.setattr(run, "open_job", None)
        assert quantize()[1] == out
    assert (tmp_path / "out" / "model.safetensors").stat().st_ino == inode
    status, _, err = quantize(group_size=64)
    assert status == 2 and "group_size: 32 there, 64 here" in err
    assert quantize("--overwrite", "--no-evaluate", group_size=64)[0] == 0
    assert (tmp_path / "out" / "model.safetensors").stat().st_size < 200_000


def test_foreign_folders_are_left_alone(quantize: Quantize, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert quantize("--no-evaluate")[0] == 0, "an empty folder is taken"
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    for flags in ((), ("--overwrite",)):
        status, _, err = quantize("--no-evaluate", *flags, out=other)
        assert status == 2 and "not written by `quire quantize`" in err
    assert (other / "thesis.txt").read_text() == "mine"


def test_two_runs_do_not_share_a_folder(quantize: Quantize, tmp_path: Path) -> None:
    partial = tmp_path / "out.partial"
    partial.mkdir()
    handle = os.open(partial, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        status, _, err = quantize("--no-evaluate")
    finally:
        os.close(handle)
    assert status == 2 and "another process is writing" in err


def test_a_full_disk(
    quantize: Quantize, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
        status, _, err = quantize()
        assert status == 2 and "0.00 GB are free" in err
        with pytest.raises(CapacityError, match="GB are free"):
            gptqmodel_run.check_space(open_source(model), tmp_path)
    with pytest.raises(CapacityError, match="run the same command again"), full_disk_explained(tmp_path):
        Path("/dev/full").write_bytes(b"x")
    with pytest.raises(ValueError, match="stop"), ShardFile(tmp_path / "f", {"a": StoredTensor((2,), "I8")}):
        raise ValueError("stop")
    assert not list(tmp_path.glob("f*"))


def write_model(folder: Path, tensors: dict[str, Tensor], **config: object) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    save_file(tensors, folder / "model.safetensors")
    return folder


LINEAR = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        ({LINEAR: torch.zeros(8, 40)}, {}, "up_proj.weight has 40 inputs.*no multiple of the group size 32"),
        ({LINEAR: torch.zeros(8, 32, dtype=torch.int8)}, {}, "stored as I8, expected one of F16"),
        ({"model.norm.weight": torch.zeros(8)}, {}, "no linears in numbered layers"),
        ({LINEAR: torch.full((8, 32), torch.nan)}, {}, "up_proj.weight holds values that are not finite"),
        ({LINEAR: torch.zeros(8, 32)}, {"num_local_experts": 8}, "mixture of experts"),
        ({LINEAR: torch.zeros(8, 32)}, {"model_type": "gpt2"}, "linears transposed.*use --method gptq"),
        (
            {LINEAR: torch.zeros(8, 32)},
            {"quantization_config": {"quant_method": "awq"}},
            r"quantized already \(awq\)",
        ),
    ],
)
def test_models_that_cannot_be_quantized(
    quantize: Quantize, tmp_path: Path, tensors: dict[str, Tensor], config: dict[str, object], message: str
) -> None:
    folder = write_model(tmp_path / "bad", tensors, **config)
    status, _, err = quantize("--no-evaluate", model=folder)
    assert status == 2
    assert re.search(message, err), err
    assert not (tmp_path / "out").exists()


def test_broken_checkpoints(quantize: Quantize, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "bad", {LINEAR: torch.zeros(8, 32)})
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    assert "not a valid safetensors file" in quantize("--no-evaluate", model=folder)[2]
    (folder / source.INDEX_NAME).write_text(json.dumps({"weight_map": {LINEAR: "gone.safetensors"}}))
    assert "gone.safetensors" in quantize("--no-evaluate", model=folder)[2]


def test_gptq_divides_the_inputs_of_transposed_linears(tmp_path: Path) -> None:
    opened = open_source(write_tiny_gpt2(tmp_path / "gpt2", n_embd=64))
    modules = opened.linears()
    assert "transformer.h.0.attn.c_attn" in modules and "transformer.wte" not in modules
    source.check_linears(opened, modules, 64, 1)
    with pytest.raises(QuantizationError, match="has 64 inputs"):
        source.check_linears(opened, modules, 128, 1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"method": "int8", "bits": 4}, "--bits: int8 takes 8, not 4"),
        ({"method": "awq", "bits": 3}, "--bits: awq takes 4, not 3"),
        ({"method": "gptq", "calibration": None}, "give --calibration FILE"),
        ({"calibration": None}, "or --no-evaluate"),
        ({"group_size": 12}, "--group-size 12: give a multiple of 8"),
        ({"method": "awq", "group_size": -1}, "--group-size -1"),
        ({"max_shard_size": "many"}, "--max-shard-size many: give a size"),
        ({"max_samples": 1}, "--max-samples 1: give at least 2"),
        ({"max_seq_len": 0}, "--max-seq-len 0: give at least 2"),
        ({"ignore": "nothing"}, "--ignore 'nothing' matches none"),
        ({"ignore": "("}, "--ignore '(' is no regular expression"),
        ({"model": "no/such/model/here"}, "no folder, and no plugin resolves it"),
        ({"method": "nf4"}, "invalid choice: 'nf4'"),
    ],
)
def test_settings_that_are_refused(quantize: Quantize, flags: dict[str, object], message: str) -> None:
    status, _, err = quantize(**flags)
    assert status == 2 and message in err


@pytest.mark.parametrize(
    ("extra", "flags", "message"),
    [
        (("--asym",), {}, "int4 takes --sym, not --asym"),
        (("--sym",), {"method": "awq"}, "awq takes --asym, not --sym"),
        (("--desc-act",), {}, "--desc-act is an option of gptq"),
        (("--quantize-head",), {"method": "gptq"}, "--quantize-head is an option of int8 and int4"),
    ],
)
def test_switches_that_are_refused(
    quantize: Quantize, extra: tuple[str, ...], flags: dict[str, object], message: str
) -> None:
    status, _, err = quantize(*extra, **flags)
    assert status == 2 and message in err


def test_samples_of_each_kind(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("one\n\n two \none\n")
    assert [(entry.line, entry.value) for entry in read_samples(text)] == [(1, "one"), (3, " two ")]
    lines = tmp_path / "a.jsonl"
    lines.write_text(
        '{"text": "x"}\n{"token_ids": [1, 2]}\n{"messages": [{"role": "user", "content": "y"}]}\n'
    )
    assert [entry.kind for entry in read_samples(lines)] == ["text", "token_ids", "messages"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "one of text, messages, token_ids, found none"),
        ('{"text": "a", "token_ids": [1]}', "found ['text', 'token_ids']"),
        ('{"text": 3}', "text must be a text that is not empty, got 3"),
        ('{"token_ids": []}', "token_ids must be a list that is not empty"),
        ('{"messages": "hello"}', "messages must be a list"),
    ],
)
def test_malformed_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(ConfigError) as caught:
        read_samples(path)
    assert message in str(caught.value) and "line 2" in str(caught.value)


def test_sample_files_that_are_refused(quantize: Quantize, tmp_path: Path, samples: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert "files of kind .parquet are not read" in quantize(calibration=tmp_path / "a.parquet")[2]
    assert "cannot read the samples" in quantize(calibration=tmp_path / "missing.txt")[2]
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xff")
    assert "cannot read the samples" in quantize(calibration=tmp_path / "a.txt")[2]
    (tmp_path / "a.jsonl").write_text('{"token_ids": [5, 97]}\n')
    assert "97 is no token id: give integers from 0 to 96" in quantize(calibration=tmp_path / "a.jsonl")[2]
    (tmp_path / "b.jsonl").write_text('{"token_ids": [5]}\n{"token_ids": [6]}\n')
    status, _, err = quantize(calibration=tmp_path / "b.jsonl")
    assert status == 2 and "gives 0 samples of at least 2 tokens for the evaluation" in err


def test_a_conversation_is_scored_on_its_answers(tmp_path: Path) -> None:
    from quire import Tokenizer, find_model

    opened = open_source(find_model("tiny"))
    tokenizer = Tokenizer.from_folder(opened.folder)
    turns = [("user", "Hi"), ("assistant", "Hello!"), ("user", "Spell cat"), ("assistant", "c-a-t")]
    messages = [{"role": role, "content": content} for role, content in turns]
    path = tmp_path / "a.jsonl"
    path.write_text(
        f"{json.dumps({'messages': messages})}\n"
        '{"messages": [{"content": "x"}]}\n'
        '{"text": "Hello! Hello! Hello!"}\n'
    )
    chat, malformed, text = read_samples(path)
    read = SampleReader(opened, 512).read(chat, path)
    scored = [read.token_ids[span.start : span.stop] for span in read.scored]
    assert [tokenizer.decode(ids, skip_special_tokens=False) for ids in scored] == [
        "Hello!<|im_end|>",
        "c-a-t<|im_end|>",
    ]
    cut = read.cut(read.scored[0].stop)
    assert cut.scored == read.scored[:1] and len(cut.token_ids) == read.scored[0].stop
    with pytest.raises(PromptError, match=r"a\.jsonl, line 2: message 0"):
        SampleReader(opened, 512).read(malformed, path)
    short = SampleReader(opened, 3).read(text, path)
    assert len(short.token_ids) == 3 and short.scored == (range(1, 3),)
    assert TokenizedSample.whole([5]).cut(9).scored == ()


def test_without_gptqmodel(quantize: Quantize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for method in ("awq", "gptq"):
        status, _, err = quantize(method=method)
        assert status == 2 and 'pip install "quire-quantization[quantize]"' in err
    assert not (tmp_path / "out.partial").exists()


FAKE = """
import enum, json, os, pathlib, shutil, sys, types

class BACKEND(enum.Enum):
    AUTO = "auto"
    AWQ_TORCH = "awq_torch"

class QuantizeConfig:
    def __init__(self, **keywords):
        self.keywords = keywords

class Model:
    def __init__(self, folder, config, device):
        self.folder, self.config, self.device = folder, config, device
        self.model = types.SimpleNamespace(config=types.SimpleNamespace(num_hidden_layers=3))

    def quantize(self, samples, batch_size, backend, checkpoint):
        print("noise on standard output")
        for index in range(3):
            self.layer_callback.layer_complete(layer_idx=index, submodule_finalized=True)
            if os.environ.get("FAKE") == "fail" and index == 1:
                raise RuntimeError("layer 1 is\\nsingular")
            if os.environ.get("FAKE") == "die" and index == 1:
                os._exit(7)
        self.seen = {"samples": samples, "backend": backend.value, "config": self.config.keywords,
                     "device": self.device, "workers": os.environ.get("GPTQMODEL_CPU_WORKERS")}

    def save(self, out):
        shutil.copytree(self.folder, out)
        (pathlib.Path(out) / "tokenizer_config.json").write_text("rewritten")
        (pathlib.Path(out) / "seen.json").write_text(json.dumps(self.seen))

class GPTQModel:
    load = staticmethod(lambda folder, config, device: Model(folder, config, device))
"""


@pytest.fixture
def fake_gptqmodel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package `gptqmodel` for this process's look and the worker's import."""
    site = tmp_path / "site"
    (site / "gptqmodel" / "looper").mkdir(parents=True)
    (site / "gptqmodel" / "__init__.py").write_text(FAKE)
    (site / "gptqmodel" / "looper" / "__init__.py").write_text("")
    (site / "gptqmodel" / "looper" / "gptq_checkpoint.py").write_text(
        textwrap.dedent("""
        def validate_checkpoint_support(model):
            raise NotImplementedError("not for fakes")
        """)
    )
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


@pytest.mark.usefixtures("fake_gptqmodel")
def test_gptqmodel_runs_in_a_process_of_its_own(quantize: Quantize, model: Path, tmp_path: Path) -> None:
    status, out, err = quantize("--no-evaluate", method="awq", device="cpu")
    assert status == 0, err
    assert "3/3" in err and "noise" not in out + err
    seen = json.loads((tmp_path / "out" / "seen.json").read_text())
    assert seen["backend"] == "awq_torch" and seen["device"] == "cpu" and seen["workers"] == "2"
    assert len(seen["samples"]) == 32, "a fifth of the 40 is held out"
    assert seen["samples"][0]["attention_mask"] == [1] * 24
    config = seen["config"]
    assert (config["method"], config["format"], config["bits"], config["sym"]) == ("awq", "gemm", 4, False)
    assert not (tmp_path / "out" / job.WORK_NAME).exists()
    assert not (tmp_path / "out" / gptqmodel_run.LOG_NAME).exists()
    report = json.loads((tmp_path / "out" / job.REPORT_NAME).read_text())
    assert report["loss_before"] is None and report["arguments"]["method"] == "awq"


@pytest.mark.usefixtures("fake_gptqmodel")
@pytest.mark.parametrize(
    ("fault", "message"), [("fail", "RuntimeError: layer 1 is singular"), ("die", "exit status 7")]
)
def test_gptqmodel_failing(
    quantize: Quantize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, message: str
) -> None:
    monkeypatch.setenv("FAKE", fault)
    status, _, err = quantize("--no-evaluate", method="gptq")
    log = tmp_path / "out.partial" / gptqmodel_run.LOG_NAME
    assert status == 2 and message in err and str(log) in err
    assert "noise on standard output" in log.read_text()
    monkeypatch.delenv("FAKE")
    assert quantize("--no-evaluate", method="gptq")[0] == 0
    assert not log.exists()


@pytest.mark.usefixtures("fake_gptqmodel")
def test_too_few_samples_to_learn_from(quantize: Quantize, tmp_path: Path) -> None:
    status, _, err = quantize(method="gptq", max_samples=18)
    assert (
        status == 2 and "gives 15 samples of at least 11 tokens for the calibration, and 16 are needed" in err
    )


def test_the_worker_ends_with_its_parent(tmp_path: Path) -> None:
    site = tmp_path / "gptqmodel.py"
    site.write_text("import time\ntime.sleep(60)\n")
    (tmp_path / "task.json").write_text("{}")
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "quire_quantization.quantize.gptqmodel_worker",
            str(tmp_path / "task.json"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    try:
        process.communicate(timeout=30)
        assert process.returncode == 1
    finally:
        process.kill()


def test_workers_are_left_alone_where_there_are_enough() -> None:
    environment = gptqmodel_run.worker_environment
    assert environment({}, 2) == {"GPTQMODEL_CPU_WORKERS": "2"}
    assert environment({}, 16) == {}
    assert environment({"GPTQMODEL_CPU_WORKERS": "5"}, 2) == {"GPTQMODEL_CPU_WORKERS": "5"}


def test_help_imports_no_torch() -> None:
    code = (
        "import sys\nfrom quire.cli.main import main\n"
        "try:\n    main(['quantize', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    for group in ("weights:", "samples:", "run:", "AutoAWQ is"):
        assert group in result.stdout


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gptqmodel") is None, reason="GPTQModel is not installed")
@pytest.mark.parametrize("method", ["awq", "gptq"])
def test_with_gptqmodel(quantize: Quantize, tmp_path: Path, method: str) -> None:
    chats = tmp_path / "chats.jsonl"
    with chats.open("w") as file:
        for left in range(10, 60):
            turns = [("user", f"What is {left} + 25?"), ("assistant", f"{left} + 25 = {left + 25}")]
            messages = [{"role": role, "content": content} for role, content in turns]
            file.write(json.dumps({"messages": messages}) + "\n")
    status, _, err = quantize(method=method, model="tiny", group_size=64, calibration=chats)
    assert status == 0, err
    report = json.loads((tmp_path / "out" / job.REPORT_NAME).read_text())
    assert report["loss_before"]["mean_nats"] < 0.1, "tiny can add"
    assert abs(report["loss_delta"]) < 0.1
    assert report["bytes_after"] < 0.35 * report["bytes_before"]
