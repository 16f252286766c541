"""SqueezeLLM linears against tables looked up with numpy: whole, fused, sliced; and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from awq_layers import pack_columns
from gptq_layers import Layer, Slice, host_of, load_linear, method_of
from quire.api.batch import DTypeName
from quire.api.errors import QuantizationError
from quire.api.quantization import QuantizationContext, QuantizationRequest
from quire.execution.device import detect_device
from quire.ops.table import OpTable
from quire.plugins import resolve_factory
from quire.testing.forward import full_logits
from quire_quantization.squeezellm.linear_ops import squeezellm_linear, squeezellm_linear_by_pairs
from quire_quantization.squeezellm.method import SqueezeLLMMethod, make_squeezellm

PLUGINS = ("squeezellm",)
CONFIG: dict[str, object] = {"quant_method": "squeezellm", "wbits": 4}
DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def make_layer(
    inputs: int = 128, outputs: int = 40, seed: int = 0, dtype: torch.dtype = torch.float16
) -> Layer:
    """Random indices, packed along the inputs, and a random table for each output."""
    rng = np.random.default_rng(seed)
    indices = rng.integers(0, 16, (outputs, inputs))
    table = torch.from_numpy(np.sort(rng.normal(0, 0.1, (outputs, 16)), axis=1)).to(dtype)
    weight = np.take_along_axis(table.double().numpy(), indices, axis=1)
    tensors = {"qweight": pack_columns(indices).t().contiguous(), "lookup_table": table}
    return Layer(tensors, indices, torch.from_numpy(weight))


def make_method(dtype: DTypeName = "float64") -> SqueezeLLMMethod:
    """The method, with the ops that serve a dtype."""
    host, device = host_of(PLUGINS), detect_device("cpu")
    registrations = [*host.ops.registrations(), *host.op_impls.registrations()]
    ops = OpTable(registrations, device, dtype, resolve_factory)
    return make_squeezellm(QuantizationContext(QuantizationRequest(CONFIG, device, dtype), ops))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("table_dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_layer(tmp_path: Path, dtype: torch.dtype, table_dtype: torch.dtype) -> None:
    layer = make_layer(dtype=table_dtype)
    method = make_method(str(dtype)[6:])  # type: ignore[arg-type]  # a name of a dtype
    loaded = load_linear(tmp_path, method, {"a": layer}, dtype=dtype)
    x = torch.randn(5, 128, dtype=dtype)
    expected = x.double() @ layer.weight.t()
    result = loaded.linear(x)
    assert result.dtype == dtype
    assert (result.double() - expected).norm() <= DTYPES[dtype] * expected.norm()
    assert (loaded.modules[0].method, loaded.modules[0].op) == ("squeezellm", "squeezellm_linear")
    assert loaded.resident_bytes == sum(tensor.nbytes for tensor in layer.tensors.values())


@pytest.mark.parametrize("multiply", [squeezellm_linear, squeezellm_linear_by_pairs])
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_op_in_chunks(multiply: Callable[..., Tensor], rows: int) -> None:
    """More weights than are looked up at a time, with a chunk that is cut short."""
    layer = make_layer(2048, 150)
    bias = torch.randn(150)
    x = torch.randn(rows, 2048)
    words = layer.tensors["qweight"].t().contiguous()
    result = multiply(x, words, layer.tensors["lookup_table"], bias)
    expected = x.double() @ layer.weight.t() + bias.double()
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dtype", "name"), [("bfloat16", "torch-pairs"), ("float64", "reference")])
def test_which_implementation_serves(dtype: DTypeName, name: str) -> None:
    ops = make_method(dtype).ops
    assert isinstance(ops, OpTable)
    (entry,) = (entry for entry in ops.describe() if entry.op == "squeezellm_linear")
    assert entry.bound.name == name


def test_fused_parts_with_biases(tmp_path: Path) -> None:
    layers = {name: make_layer(outputs=n, seed=n) for name, n in (("q", 48), ("k", 17), ("v", 5))}
    for layer in layers.values():
        layer.tensors["bias"] = torch.randn(layer.weight.shape[0]).half()
    loaded = load_linear(tmp_path, make_method(), layers, has_bias=True)
    assert len(loaded.linear.weights) == 1
    x = torch.randn(3, 128, dtype=torch.float64)
    bias = torch.cat([layer.tensors["bias"] for layer in layers.values()])
    expected = x @ torch.cat([layer.weight for layer in layers.values()]).t() + bias.double()
    torch.testing.assert_close(loaded.linear(x), expected, rtol=1e-10, atol=1e-10)


def test_slices(tmp_path: Path) -> None:
    layer, method = make_layer(), make_method()
    x = torch.randn(3, 128, dtype=torch.float64)
    total = torch.zeros(3, 40, dtype=torch.float64)
    for rows in (slice(0, 13), slice(13, 40)):
        for columns in (slice(0, 40), slice(40, 128)):
            loaded = load_linear(tmp_path, method, {"a": layer}, part_of=Slice(rows, columns))
            total[:, rows] += loaded.linear(x[:, columns])
    torch.testing.assert_close(total, x @ layer.weight.t(), rtol=1e-10, atol=1e-10)
    with pytest.raises(QuantizationError, match="20 inputs from 0 on, and words hold 8: use fewer ranks"):
        load_linear(tmp_path, method, {"a": layer}, part_of=Slice(slice(0, 40), slice(0, 20)))


def test_a_plain_module_stays_in_16_bits(tmp_path: Path) -> None:
    weight = torch.randn(8, 128).half()
    parts = {"a": make_layer(), "b": Layer({"weight": weight}, np.empty(0), weight.double())}
    loaded = load_linear(tmp_path, method_of(CONFIG, plugins=PLUGINS), parts)
    assert [(module.method, module.reason) for module in loaded.modules] == [
        ("squeezellm", ""),
        ("unquantized", "not quantized in the checkpoint"),
    ]


def test_a_model(quantized_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """A whole model of indices, against the weights that they stand for."""
    source = quantized_checkpoint("awq-gemm-w4g128-autoawq")
    config = json.loads((source / "config.json").read_text())
    stored = load_file(source / "own.safetensors") | load_file(source / "vocabulary.safetensors")
    indexed = {key: value for key, value in stored.items() if value.dim() == 1 or "layers" not in key}
    plain = dict(indexed)
    for seed, name in enumerate(sorted(key[:-8] for key in stored if key.endswith(".qweight"))):
        inputs, outputs = stored[f"{name}.qweight"].shape[0], stored[f"{name}.qweight"].shape[1] * 8
        layer = make_layer(inputs, outputs, seed)
        indexed |= {f"{name}.{suffix}": tensor for suffix, tensor in layer.tensors.items()}
        plain[f"{name}.weight"] = layer.weight.half()
    logits = []
    for folder, tensors, label in (("indexed", indexed, CONFIG), ("plain", plain, None)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps(config | {"quantization_config": label}))
        save_file(tensors, tmp_path / folder / "model.safetensors")
        host = host_of(("llama", *PLUGINS))
        logits.append(full_logits(tmp_path / folder, [3, 1, 4, 1, 5, 9, 2, 6], host=host))
    assert (logits[0] - logits[1]).norm() <= 1e-4 * logits[1].norm()


def test_a_table_that_is_not_finite(tmp_path: Path) -> None:
    layer = make_layer()
    layer.tensors["lookup_table"][2, 3] = float("inf")
    with pytest.raises(
        QuantizationError, match=r"^model\.a\.lookup_table: 1 of 640 lookup_table values are NaN or"
    ):
        load_linear(tmp_path, make_method(), {"a": layer})


@pytest.mark.parametrize("key", ["wbits", "bits", "w_bit"])
def test_other_bits(key: str) -> None:
    with pytest.raises(QuantizationError, match=f"{key}=3; SqueezeLLM is served with 4 bits only"):
        method_of({"quant_method": "squeezellm", key: 3}, plugins=PLUGINS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"qweight": None},
            "lacks the module's tensor 'qweight', expected int32 .*; found lookup_table: check",
        ),
        (
            {"lookup_table": None},
            "lacks the module's tensor 'lookup_table', expected float16 .*; found qweight: check",
        ),
        ({"rows": torch.zeros(4)}, r"model\.a: it keeps outliers apart \(rows\), which is not served"),
        ({"weight": torch.zeros(4, 4)}, "both weight and qweight, lookup_table are stored"),
        (
            {"qweight": torch.zeros(15, 40, dtype=torch.int32)},
            r"model\.a: tensor 'qweight' is int32 \[15, 40\], expected int32 \[16, 40\]",
        ),
        (
            {"qweight": torch.zeros(16, 40)},
            r"model\.a: tensor 'qweight' is float32 \[16, 40\], expected int32",
        ),
        (
            {"lookup_table": torch.zeros(40, 8)},
            r"model\.a: tensor 'lookup_table' is float32 \[40, 8\], expected float16 or bfloat16 or float32 \[40, 16\]",
        ),
    ],
)
def test_bad_tensors(tmp_path: Path, changes: dict[str, Tensor | None], message: str) -> None:
    tensors = {key: value for key, value in {**make_layer().tensors, **changes}.items() if value is not None}
    with pytest.raises(QuantizationError, match=message):
        load_linear(tmp_path, method_of(CONFIG, plugins=PLUGINS), {"a": tensors}, size=(128, 40))
