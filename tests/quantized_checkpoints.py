"""The tool-made checkpoints of tests/checkpoints, put together."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

DATA = Path(__file__).parent / "checkpoints"

TOLERANCES = {
    "gptq-w4g128-sym": 5e-3,
    "gptq-w3g32-sym": 5e-3,
    "gptq-w8g128-sym": 5e-3,
    "gptq-w4g128-sym-desc": 5e-3,
    "gptqv2-w4g32-asym": 5e-3,
    "awq-gemm-w4g128-autoawq": 2e-3,
    "ct-w4a16-g128-gptq": 1e-5,
}
"""By checkpoint: the relative L2 error of the logits that its tool's own arithmetic allows."""


def assemble(name: str, folder: Path) -> Path:
    """Make a model folder of a checkpoint: its own tensors beside the common embedding and head."""
    target = folder / name
    target.mkdir(parents=True)
    for path in (DATA / name).iterdir():
        if path.name not in ("model.safetensors", "expected_logits.safetensors"):
            (target / path.name).write_bytes(path.read_bytes())
    config = json.loads((target / "config.json").read_text())
    dtype = config.get("dtype") or config["torch_dtype"]
    shards = {"own.safetensors": DATA / name / "model.safetensors"}
    shards["vocabulary.safetensors"] = DATA / f"vocabulary-{dtype}.safetensors"
    weight_map = {}
    for shard, path in shards.items():
        (target / shard).symlink_to(path)
        with safe_open(path, "pt") as file:
            weight_map |= dict.fromkeys(file.keys(), shard)
    (target / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return target


def expected(name: str) -> tuple[list[int], Tensor]:
    """The input ids, and the logits [T, V] of the producing tool."""
    stored = load_file(DATA / name / "expected_logits.safetensors")
    return stored["input_ids"].flatten().tolist(), stored["logits"]
