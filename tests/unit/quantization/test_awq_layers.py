"""AWQ linears of every layout against float64: whole, fused, and in slices of both dimensions."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from awq_layers import AwqLayout, make_awq_layer, pack_columns
from gptq_layers import Layer, Loaded, Slice, load_linear, method_of
from quire.nn.tiles import unpack_tiles, untile_columns

BOTH = ("awq", "awq-marlin")
METHODS = {"awq": ("awq",), "awq-marlin": BOTH}
VERSIONS = ("gemm", "gemv", "gemv_fast")
OPS = {"gemm": "awq_linear", "gemv": "awq_gemv_linear", "gemv_fast": "awq_gemv_fast_linear"}
ARRAY = [
    AwqLayout(version, group_size, zero_point)
    for version in VERSIONS
    for group_size in (32, 64, 128, -1)
    for zero_point in (True, False)
]


def name_of(layout: AwqLayout) -> str:
    return f"{layout.version}-g{layout.group_size}{'' if layout.zero_point else '-no-zeros'}"


def load(
    folder: Path, layout: AwqLayout, plugins: tuple[str, ...], **options: object
) -> tuple[Layer, Loaded]:
    layer = make_awq_layer(layout)
    method = method_of(layout.config(), plugins=plugins)
    return layer, load_linear(folder, method, {"out": layer}, **options)  # type: ignore[arg-type]  # options by name


def check(loaded: Loaded, weight: Tensor, rows: int = 5) -> None:
    dtype = loaded.linear.shape.dtype
    x = torch.randn(rows, weight.shape[1], dtype=dtype)
    expected = x.double() @ weight.t()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    result = loaded.linear(x)
    assert result.dtype == dtype
    assert (result.double() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("plugins", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("layout", ARRAY, ids=name_of)
def test_every_layout_is_exact(tmp_path: Path, layout: AwqLayout, plugins: tuple[str, ...]) -> None:
    layer, loaded = load(tmp_path, layout, plugins)
    check(loaded, layer.weight)
    in_tiles = plugins == BOTH and layout.version != "gemv_fast"
    module = loaded.modules[0]
    assert (module.method, module.op) == (
        ("awq-marlin", "w4a16_linear") if in_tiles else ("awq", OPS[layout.version])
    )
    assert ("gemv_fast stores zero points" in module.reason) == (plugins == BOTH and not in_tiles)
    on_disk = sum(tensor.nbytes for tensor in layer.tensors.values())
    assert 0 < loaded.resident_bytes <= 1.1 * on_disk


@pytest.mark.parametrize("plugins", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scales_dtype", [torch.float16, torch.bfloat16])
def test_every_dtype(
    tmp_path: Path, plugins: tuple[str, ...], version: str, dtype: torch.dtype, scales_dtype: torch.dtype
) -> None:
    layer, loaded = load(tmp_path, AwqLayout(version, scales_dtype=scales_dtype), plugins, dtype=dtype)
    check(loaded, layer.weight)
    scales = [buffer for name, buffer in loaded.linear.named_buffers() if name.endswith("scales")]
    assert [buffer.dtype for buffer in scales] == [scales_dtype]


@pytest.mark.parametrize("version", ["gemm", "gemv"])
@pytest.mark.parametrize("outputs", [8, 40, 96])
def test_tiles_hold_the_integers(tmp_path: Path, version: str, outputs: int) -> None:
    layout = AwqLayout(version, outputs=outputs)
    layer, loaded = load(tmp_path, layout, BOTH)
    tiles = loaded.linear.weights[0].tiles
    assert np.array_equal(unpack_tiles(tiles.weight, 4)[:outputs].numpy(), layer.integers)
    scales = layer.tensors["scales"].t() if version == "gemm" else layer.tensors["scales"]
    assert untile_columns(tiles.scales)[:outputs].equal(scales[:, : 256 // 32])
    assert {name for name, _ in loaded.linear.named_buffers()} == {
        f"weights.0.tiles.{name}" for name in ("weight", "scales", "zeros")
    }
    check(loaded, layer.weight)


def test_stored_zero_points_of_8_are_not_kept(tmp_path: Path) -> None:
    """GPTQModel stores them for symmetric weights, and says zero_point false."""
    layout = AwqLayout(zero_point=False)
    layer = make_awq_layer(layout)
    layer.tensors["qzeros"] = pack_columns(np.full((8, 96), 8))
    loaded = load_linear(tmp_path, method_of(layout.config(), plugins=BOTH), {"a": layer})
    assert loaded.linear.weights[0].tiles.zeros is None
    check(loaded, layer.weight)


def test_a_zero_point_that_differs_once_is_kept(tmp_path: Path) -> None:
    layer = make_awq_layer(AwqLayout(zero_point=False))
    zeros = np.full((8, 96), 8)
    zeros[7, 0] = 9
    layer.tensors["qzeros"] = pack_columns(zeros)
    weight = layer.weight.clone()
    weight[0, 224:] -= layer.tensors["scales"][7, 0].double()
    config = AwqLayout(zero_point=False).config()
    for plugins in METHODS.values():
        check(load_linear(tmp_path, method_of(config, plugins=plugins), {"a": layer}), weight)


def test_gemv_fast_under_the_name_of_llm_awq(tmp_path: Path) -> None:
    layout = AwqLayout("gemv_fast")
    layer = make_awq_layer(layout)
    layer.tensors["scaled_zeros"] = layer.tensors.pop("qzeros")
    check(load_linear(tmp_path, method_of(layout.config(), plugins=BOTH), {"a": layer}), layer.weight)


@pytest.mark.parametrize("plugins", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("version", VERSIONS)
def test_fused_parts(tmp_path: Path, version: str, plugins: tuple[str, ...]) -> None:
    layout = AwqLayout(version)
    layers = {
        name: make_awq_layer(replace(layout, outputs=n), n) for name, n in (("q", 96), ("k", 40), ("v", 64))
    }
    biases = {name: torch.randn(layer.weight.shape[0]).half() for name, layer in layers.items()}
    for name, bias in biases.items():
        layers[name].tensors["bias"] = bias
    loaded = load_linear(tmp_path, method_of(layout.config(), plugins=plugins), layers, has_bias=True)
    assert len(loaded.linear.weights) == 1
    x = torch.randn(3, layout.inputs, dtype=torch.float64)
    weight = torch.cat([layer.weight for layer in layers.values()])
    expected = x @ weight.t() + torch.cat(list(biases.values())).double()
    torch.testing.assert_close(loaded.linear(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("plugins", METHODS.values(), ids=METHODS)
def test_a_skipped_part_beside_quantized_ones(tmp_path: Path, plugins: tuple[str, ...]) -> None:
    layers = {name: make_awq_layer(AwqLayout(), seed) for seed, name in enumerate(("gate_proj", "up_proj"))}
    plain = torch.randn(32, 256).half()
    parts = {
        "gate_proj": layers["gate_proj"],
        "skipped": Layer({"weight": plain}, np.empty(0), plain.double()),
    }
    config = AwqLayout().config(modules_to_not_convert=["kippe"])
    loaded = load_linear(
        tmp_path, method_of(config, plugins=plugins), {**parts, "up_proj": layers["up_proj"]}
    )
    assert [(module.method, module.reason) for module in loaded.modules] == [
        (plugins[-1], ""),
        ("unquantized", "modules_to_not_convert names 'kippe'"),
        (plugins[-1], ""),
    ]
    assert len(loaded.linear.weights) == 3
    check(loaded, torch.cat([layers["gate_proj"].weight, plain.double(), layers["up_proj"].weight]))


@pytest.mark.parametrize("plugins", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("layout", ARRAY[::2], ids=name_of)
def test_slices_of_outputs_lie_side_by_side(
    tmp_path: Path, layout: AwqLayout, plugins: tuple[str, ...]
) -> None:
    x = torch.randn(3, layout.inputs, dtype=torch.float64)
    results = []
    for start, stop in ((0, 32), (32, 72), (72, 96)):
        held = Slice(slice(start, stop), slice(0, layout.inputs))
        layer, loaded = load(tmp_path, layout, plugins, part_of=held)
        results.append(loaded.linear(x))
    torch.testing.assert_close(torch.cat(results, -1), x @ layer.weight.t(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("plugins", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("layout", ARRAY, ids=name_of)
@pytest.mark.parametrize("cut", [128, 64, 40])
def test_slices_of_inputs_add_up(
    tmp_path: Path, layout: AwqLayout, plugins: tuple[str, ...], cut: int
) -> None:
    cut = 64 if layout.version == "gemv_fast" and cut == 40 else cut
    x = torch.randn(3, layout.inputs, dtype=torch.float64)
    total = torch.zeros(3, layout.outputs, dtype=torch.float64)
    for start, stop in ((0, cut), (cut, layout.inputs)):
        held = Slice(slice(0, layout.outputs), slice(start, stop))
        layer, loaded = load(tmp_path, layout, plugins, part_of=held)
        total += loaded.linear(x[:, start:stop])
    torch.testing.assert_close(total, x @ layer.weight.t(), rtol=1e-10, atol=1e-10)


def test_gemm_cuts_scales_where_a_slice_begins_with_a_group(tmp_path: Path) -> None:
    _, loaded = load(tmp_path, AwqLayout(), ("awq",), part_of=Slice(slice(0, 96), slice(64, 256)))
    assert loaded.linear.weights[0].tensors.scales.shape == (6, 96)
    _, loaded = load(tmp_path, AwqLayout(), ("awq",), part_of=Slice(slice(0, 96), slice(40, 256)))
    assert loaded.linear.weights[0].tensors.scales.shape == (8, 96)


def test_slices_of_fused_parts(tmp_path: Path) -> None:
    for version in VERSIONS:
        layout = AwqLayout(version)
        layers = {name: make_awq_layer(layout, seed) for seed, name in enumerate(("gate", "up"))}
        held = Slice(slice(32, 64), slice(64, 192))
        loaded = load_linear(
            tmp_path, method_of(layout.config(), plugins=BOTH), layers, dtype=torch.float64, part_of=held
        )
        check(loaded, torch.cat([layer.weight[held.outputs, held.inputs] for layer in layers.values()]))


def test_a_slice_that_tiles_do_not_hold_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layout = AwqLayout()
    with caplog.at_level(logging.WARNING, "quire"):
        layer, loaded = load(tmp_path, layout, BOTH, part_of=Slice(slice(0, 96), slice(0, 44)))
    assert "keeps 44 of 256 inputs, from 0 on, as awq, since the group size 4 is not" in caplog.text
    check(loaded, layer.weight[:, :44])


@pytest.mark.parametrize("plugins", METHODS.values(), ids=METHODS)
def test_groups_that_words_do_not_divide_stay_as_they_are(tmp_path: Path, plugins: tuple[str, ...]) -> None:
    layout = AwqLayout(group_size=20, inputs=100)
    layer, loaded = load(tmp_path, layout, plugins)
    check(loaded, layer.weight)
    reason = "the group size 20 is not a multiple of 8" if plugins == BOTH else ""
    assert (loaded.modules[0].method, loaded.modules[0].reason) == ("awq", reason)


def test_helper_against_values_written_out() -> None:
    """The packer of these tests: AutoAWQ's order_map by hand."""
    (word,) = pack_columns(np.arange(8)[None, :], (0, 2, 4, 6, 1, 3, 5, 7)).flatten().tolist()
    assert f"{word & 0xFFFFFFFF:08x}" == "75316420"
