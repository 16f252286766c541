"""What loading takes of memory: no 16-bit copies of quantized weights, not of a layer at a time either."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")

SLACK_BYTES = 10_000_000
"""What is not the checkpoint's: 2 MB of KV cache, Python objects, pages used in part, what threads keep."""
VOCAB_SIZE = 2048
GROUP_SIZE = 128
HIDDEN_SIZE, INTERMEDIATE_SIZE = 1024, 2816

Pack = Callable[[int, int], dict[str, Tensor]]
"""The tensors of a module of so many outputs and inputs, by suffix."""


def random_words(*shape: int) -> Tensor:
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int32)


def random_scales(*shape: int) -> Tensor:
    return (torch.rand(shape) * 0.003 + 0.001).half()


def bfloat16(outputs: int, inputs: int) -> dict[str, Tensor]:
    return {"weight": torch.empty(outputs, inputs, dtype=torch.bfloat16).normal_(0, 0.02)}


def gptq(outputs: int, inputs: int) -> dict[str, Tensor]:
    groups = inputs // GROUP_SIZE
    return {
        "qweight": random_words(inputs // 8, outputs),
        "qzeros": torch.full((groups, outputs // 8), 0x77777777, dtype=torch.int32),
        "scales": random_scales(groups, outputs),
        "g_idx": torch.arange(inputs, dtype=torch.int32) // GROUP_SIZE,
    }


def gptq_act_order(outputs: int, inputs: int) -> dict[str, Tensor]:
    tensors = gptq(outputs, inputs)
    return {**tensors, "g_idx": tensors["g_idx"][torch.randperm(inputs)]}


def gptq_8_bits(outputs: int, inputs: int) -> dict[str, Tensor]:
    groups = inputs // GROUP_SIZE
    return {
        **gptq(outputs, inputs),
        "qweight": random_words(inputs // 4, outputs),
        "qzeros": torch.full((groups, outputs // 4), 0x7F7F7F7F, dtype=torch.int32),
    }


def awq(outputs: int, inputs: int) -> dict[str, Tensor]:
    groups = inputs // GROUP_SIZE
    return {
        "qweight": random_words(inputs, outputs // 8),
        "qzeros": random_words(groups, outputs // 8),
        "scales": random_scales(groups, outputs),
    }


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP_SIZE, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP_SIZE, "zero_point": True, "version": "gemm"}


@dataclass(frozen=True)
class Method:
    """A checkpoint's format, and the settings that it is loaded with.

    Attributes:
        num_layers: 1024 wide, 11 million weights each.
        max_ratio: of the linears' bytes to those in bfloat16.
    """

    pack: Pack
    max_ratio: float
    config: Mapping[str, object] | None = None
    setting: str | None = None
    plugins: Mapping[str, object] = field(default_factory=dict)
    num_layers: int = 20


def options(plugin: str, **values: object) -> dict[str, object]:
    return {"options": {plugin: values}}


METHODS = {
    "int4": Method(bfloat16, 0.32, None, "int4", num_layers=10),
    "int4 in groups of 128": Method(bfloat16, 0.28, None, "int4", options("int4", group_size=128), 10),
    "int4 with zeros": Method(bfloat16, 0.32, None, "int4", options("int4", symmetric=False), 10),
    "int8": Method(bfloat16, 0.51, None, "int8", num_layers=10),
    "gptq-marlin": Method(gptq, 0.28, GPTQ, "gptq-marlin"),
    "gptq-marlin, act-order": Method(
        gptq_act_order, 0.28, {**GPTQ, "desc_act": True}, "gptq-marlin", num_layers=20
    ),
    "gptq-marlin, 8 bits": Method(gptq_8_bits, 0.52, {**GPTQ, "bits": 8}, "gptq-marlin", num_layers=10),
    "gptq": Method(gptq, 0.28, GPTQ, plugins={"deny": ["gptq-marlin"]}),
    "awq-marlin": Method(awq, 0.28, AWQ, "awq-marlin"),
    "awq": Method(awq, 0.28, AWQ, plugins={"deny": ["awq-marlin"]}),
}
QUICK = ("int4 in groups of 128", "int8", "gptq-marlin, act-order", "awq-marlin")


@dataclass(frozen=True)
class Checkpoint:
    """A written checkpoint. Bytes: of its file, of its tensors outside quantized linears, of its largest tensor."""

    folder: Path
    disk_bytes: int
    plain_bytes: int
    largest_bytes: int


def modules(hidden: int, intermediate: int) -> Iterator[tuple[str, int, int]]:
    """Names, outputs and inputs of a layer's linears."""
    for name, rows in (("q", hidden), ("k", hidden // 4), ("v", hidden // 4), ("o", hidden)):
        yield f"self_attn.{name}_proj", rows, hidden
    yield "mlp.gate_proj", intermediate, hidden
    yield "mlp.up_proj", intermediate, hidden
    yield "mlp.down_proj", hidden, intermediate


def write(folder: Path, method: Method, num_layers: int) -> Checkpoint:
    hidden, intermediate = HIDDEN_SIZE, INTERMEDIATE_SIZE
    torch.manual_seed(0)
    plain = {"model.embed_tokens": bfloat16(VOCAB_SIZE, hidden), "model.norm": {"weight": torch.ones(hidden)}}
    linears: dict[str, dict[str, Tensor]] = {}
    for index in range(num_layers):
        prefix = f"model.layers.{index}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            plain[prefix + norm] = {"weight": torch.ones(hidden)}
        linears |= {
            prefix + name: method.pack(rows, inputs) for name, rows, inputs in modules(hidden, intermediate)
        }
    (linears if method.config is None else plain)["lm_head"] = bfloat16(VOCAB_SIZE, hidden)
    tensors = {
        f"{module}.{suffix}": tensor
        for module, held in (plain | linears).items()
        for suffix, tensor in held.items()
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": num_layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 256,
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if method.config is not None:
        config["quantization_config"] = dict(method.config)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return Checkpoint(
        folder,
        disk_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        plain_bytes=sum(tensor.nbytes for held in plain.values() for tensor in held.values()),
        largest_bytes=max(tensor.nbytes for tensor in tensors.values()),
    )


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
)
def test_memory_of_a_load(name: str, tmp_path: Path) -> None:
    method = METHODS[name]
    small = write(tmp_path / "small", method, num_layers=1)
    large = write(tmp_path / "large", method, method.num_layers)
    arguments = json.dumps([str(small.folder), str(large.folder), method.setting, dict(method.plugins)])
    script = Path(__file__).with_name("load_memory.py")
    process = subprocess.run(
        [sys.executable, script, arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1" if method.config else "2"},
    )
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    print(name, found, large)
    served = re.match(r"quantization: (\S+) of plugin", found["summary"][0])
    assert served is not None and served[1] == re.split(r"[ ,]", name)[0]
    held, ratio, in_16_bits = linear_megabytes(found["summary"])
    assert found["samples"] > 20, "too few samples to speak of a peak"
    rows = method.num_layers * (5 * 512 + 3 * INTERMEDIATE_SIZE) + VOCAB_SIZE * (method.config is None)
    assert in_16_bits == pytest.approx(2 * HIDDEN_SIZE * rows, abs=1e5)
    assert ratio == pytest.approx(held / in_16_bits, abs=2e-3) and ratio <= method.max_ratio
    held += large.plain_bytes
    resident = max(found["loaded"], found["used"])
    assert held <= found["loaded"] + SLACK_BYTES, (
        "less is resident than the model holds: the measure is wrong"
    )
    assert resident <= method.max_ratio * in_16_bits + large.plain_bytes + SLACK_BYTES
    assert found["peak"] <= found["loaded"] + 2 * large.largest_bytes + SLACK_BYTES / 2
    if method.config is not None:
        assert resident <= 1.1 * large.disk_bytes


def linear_megabytes(summary: list[str]) -> tuple[float, float, float]:
    """Bytes that the quantized linears take, their ratio, and bytes in 16 bits, as the start-up summary says."""
    pattern = r"linears take ([\d.]+) MB, ([\d.]+) of their ([\d.]+) MB in 16 bits"
    (match,) = [match for line in summary if (match := re.search(pattern, line))]
    held, ratio, plain = map(float, match.groups())
    return held * 1e6, ratio, plain * 1e6
