"""Linears of compressed-tensors checkpoints against float64: whole, fused, and in slices of both dimensions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from large_pages import NEEDS_LARGE_PAGES, flags_at
from torch import Tensor

from ct_layers import (
    TENSOR,
    TOKEN,
    Scheme,
    float_inputs,
    make_ct_layer,
    pack_bits,
    pack_with_gaps,
    round_inputs,
    unpack_bits,
)
from gptq_layers import Layer, Loaded, Slice, load_linear, method_of
from quire.api.errors import CheckpointError, QuantizationError
from quire.nn.tiles import unpack_tiles

PLUGINS = ("compressed-tensors",)
INT8 = {"bits": 8, "format": "int-quantized"}
FP8 = {"bits": 8, "format": "float-quantized", "type": "float"}
GROUPS = float_inputs(TOKEN) | {"strategy": "group", "group_size": 32}

WEIGHT_ONLY = [
    *(
        Scheme(bits, strategy, symmetric)
        for bits in (4, 8)
        for strategy in ("group", "channel", "tensor")
        for symmetric in (True, False)
    ),
    *(
        Scheme(8, strategy, symmetric, "naive-quantized")
        for strategy in ("group", "channel", "tensor")
        for symmetric in (True, False)
    ),
    *(Scheme(bits, "group", symmetric) for bits in (2, 3, 5, 6, 7) for symmetric in (True, False)),
    Scheme(4, actorder="group"),
    Scheme(4, symmetric=False, actorder="dynamic"),
    Scheme(8, actorder="group"),
    Scheme(3, actorder="group"),
    Scheme(4, actorder="static"),
    Scheme(8, "channel", format="naive-quantized", inputs=126),
    Scheme(4, "channel", inputs=100),
    Scheme(4, "channel", False, outputs=44),
]
ROUNDED = [
    Scheme(8, "channel", format="int-quantized", input_activations=TOKEN),
    Scheme(8, "tensor", format="int-quantized", input_activations=TOKEN),
    Scheme(8, "channel", input_activations=TOKEN),
    Scheme(8, "channel", format="int-quantized", input_activations=TENSOR),
    Scheme(8, "tensor", format="int-quantized", input_activations=TENSOR),
]
FLOATS = [
    Scheme(strategy=strategy, block=block, input_activations=inputs, **FP8)
    for strategy, block, inputs in (
        ("channel", (0, 0), None),
        ("tensor", (0, 0), None),
        ("block", (64, 32), None),
        ("block", (40, 48), None),
        ("channel", (0, 0), float_inputs(TOKEN)),
        ("tensor", (0, 0), float_inputs(TOKEN)),
        ("tensor", (0, 0), float_inputs(TENSOR)),
        ("channel", (0, 0), float_inputs(TENSOR)),
        ("block", (64, 32), GROUPS),
    )
]
SLICED = [
    Scheme(),
    Scheme(symmetric=False),
    Scheme(8, "channel", False),
    Scheme(4, "tensor", False),
    Scheme(3, symmetric=False),
    Scheme(8, "group", False, "naive-quantized"),
    Scheme(4, actorder="group"),
    Scheme(8, symmetric=False, actorder="group"),
    Scheme(3, actorder="group"),
    Scheme(8, "channel", format="int-quantized", input_activations=TENSOR),
    *FLOATS[:4],
    Scheme(strategy="channel", input_activations=float_inputs(TENSOR), **FP8),
    Scheme(strategy="block", block=(40, 32), input_activations=GROUPS, **FP8),
]


def name_of(scheme: Scheme) -> str:
    inputs = scheme.input_activations
    words = [
        f"{scheme.type}{scheme.bits}",
        scheme.format.split("-")[0],
        scheme.strategy,
        "sym" if scheme.symmetric else "asym",
        scheme.actorder or "",
        "" if inputs is None else f"inputs-{inputs['strategy']}",
        "x".join(map(str, scheme.block)) if scheme.strategy == "block" else "",
        f"{scheme.outputs}x{scheme.inputs}",
    ]
    return "-".join(word for word in words if word)


def load(folder: Path, scheme: Scheme, **options: object) -> tuple[Layer, Loaded]:
    layer = make_ct_layer(scheme)
    method = method_of(scheme.config(), plugins=PLUGINS)
    return layer, load_linear(folder, method, {"out": layer}, **options)  # type: ignore[arg-type]  # options by name


def product(scheme: Scheme, layer: Layer, x: Tensor) -> Tensor:
    return round_inputs(x.double(), scheme, layer.tensors.get("input_scale")) @ layer.weight.t()


def check(scheme: Scheme, layer: Layer, loaded: Loaded, tolerance: float = 1e-12) -> None:
    x = torch.randn(5, scheme.inputs, dtype=loaded.linear.shape.dtype)
    expected = product(scheme, layer, x)
    found = loaded.linear(x)
    assert found.dtype == x.dtype
    assert (found.double() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("scheme", [*WEIGHT_ONLY, *ROUNDED, *FLOATS], ids=name_of)
def test_every_scheme_is_exact(tmp_path: Path, scheme: Scheme) -> None:
    layer, loaded = load(tmp_path, scheme)
    check(scheme, layer, loaded)
    on_disk = sum(tensor.nbytes for tensor in layer.tensors.values())
    assert 0 < loaded.resident_bytes <= 1.1 * on_disk
    assert not any(buffer.dtype.is_floating_point for buffer in loaded.linear.parameters())


@pytest.mark.parametrize(
    ("scheme", "method", "op"),
    [
        (Scheme(), "W4A16", "w4a16_linear"),
        (Scheme(8, "channel", format="naive-quantized"), "W8A16", "w8a16_linear"),
        (Scheme(4, actorder="group"), "W4A16", "w4a16_linear"),
        (Scheme(4, "channel", inputs=100), "W4A16", "pack_quantized_linear"),
        (Scheme(3), "W3A16", "pack_quantized_linear"),
        (ROUNDED[0], "W8A8", "w8a8_linear"),
        (FLOATS[0], "FP8 W8A16", "fp8_linear"),
        (FLOATS[4], "FP8 W8A8", "fp8_linear"),
    ],
    ids=lambda value: name_of(value) if isinstance(value, Scheme) else "",
)
def test_the_summary_names_method_and_op(tmp_path: Path, scheme: Scheme, method: str, op: str) -> None:
    [module] = load(tmp_path, scheme)[1].modules
    assert (module.method, module.op) == (f"compressed-tensors {method}", op)
    assert bool(module.reason) == (op == "pack_quantized_linear")


@NEEDS_LARGE_PAGES
@pytest.mark.parametrize("scheme", [Scheme(), ROUNDED[0], FLOATS[0]], ids=name_of)
def test_weights_lie_on_large_pages(tmp_path: Path, scheme: Scheme) -> None:
    _, loaded = load(tmp_path, replace(scheme, outputs=256, inputs=256))
    largest = max(loaded.linear.buffers(), key=lambda tensor: tensor.nbytes)
    assert "hg" in flags_at(largest.data_ptr())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scales_dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "kind", [{}, {"bits": 3}, INT8 | {"strategy": "channel"}, FP8 | {"strategy": "channel"}]
)
def test_every_dtype(
    tmp_path: Path, kind: dict[str, object], scales_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    scheme = Scheme(scales_dtype=scales_dtype, **kind)  # type: ignore[arg-type]  # options by name
    layer, loaded = load(tmp_path, scheme, dtype=dtype)
    check(scheme, layer, loaded, {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype])


@pytest.mark.parametrize(
    "scheme", [*WEIGHT_ONLY[:6], ROUNDED[0], Scheme(8, "group", False, "naive-quantized")], ids=name_of
)
def test_tiles_hold_the_integers(tmp_path: Path, scheme: Scheme) -> None:
    scheme = replace(scheme, outputs=40)
    layer, loaded = load(tmp_path, scheme)
    [weight] = [buffer for name, buffer in loaded.linear.named_buffers() if name.endswith("weight")]
    assert np.array_equal(unpack_tiles(weight, scheme.bits)[:40].numpy(), layer.integers)


def test_int8_inputs_round_as_the_tool_does(tmp_path: Path) -> None:
    """The largest magnitude is 127.5 steps: 127 where it is positive, -128 where negative."""
    layer, loaded = load(tmp_path, ROUNDED[0])
    x = torch.zeros(3, 128, dtype=torch.float64)
    x[0, :2] = torch.tensor([127.5, 1.0])
    x[1, :2] = torch.tensor([-127.5, 2.5])
    rounded = torch.zeros_like(x)
    rounded[0, :2] = torch.tensor([127.0, 1.0])
    rounded[1, :2] = torch.tensor([-128.0, 2.0])
    torch.testing.assert_close(loaded.linear(x), rounded @ layer.weight.t(), rtol=1e-12, atol=1e-12)


def fused(folder: Path, scheme: Scheme, widths: dict[str, int]) -> tuple[dict[str, Layer], Loaded]:
    layers = {
        name: make_ct_layer(replace(scheme, outputs=width), seed)
        for seed, (name, width) in enumerate(widths.items())
    }
    for layer in layers.values():
        layer.tensors["bias"] = torch.randn(len(layer.weight)).half()
    return layers, load_linear(folder, method_of(scheme.config(), plugins=PLUGINS), layers, has_bias=True)


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(),
        Scheme(4, "tensor", False),
        Scheme(3, symmetric=False, group_size=64),
        Scheme(actorder="group"),
        *ROUNDED,
        *FLOATS,
        Scheme(strategy="block", block=(32, 32), input_activations=GROUPS, **FP8),
    ],
    ids=name_of,
)
def test_fused_parts(tmp_path: Path, scheme: Scheme) -> None:
    layers, loaded = fused(tmp_path, scheme, {"q": 96, "k": 32, "v": 64})
    inputs = scheme.input_activations
    is_fused = not scheme.actorder and (inputs is None or bool(inputs["dynamic"]))
    assert len(loaded.linear.weights) == (1 if is_fused else 3)
    x = torch.randn(3, 128, dtype=torch.float64)
    parts = [product(scheme, layer, x) + layer.tensors["bias"].double() for layer in layers.values()]
    torch.testing.assert_close(loaded.linear(x), torch.cat(parts, 1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scheme", SLICED, ids=name_of)
def test_slices_of_the_outputs_lie_side_by_side(tmp_path: Path, scheme: Scheme) -> None:
    layer, whole = load(tmp_path, scheme)
    x = torch.randn(4, 128, dtype=torch.float64)
    found = []
    for start, stop in ((0, 32), (32, 96)):
        loaded = load(tmp_path, scheme, part_of=Slice(slice(start, stop), slice(0, 128)))[1]
        found.append(loaded.linear(x))
        assert loaded.resident_bytes < whole.resident_bytes
    torch.testing.assert_close(torch.cat(found, 1), product(scheme, layer, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cut", [64, 96, 32])
@pytest.mark.parametrize("scheme", SLICED, ids=name_of)
def test_slices_of_the_inputs_add_up(tmp_path: Path, scheme: Scheme, cut: int) -> None:
    layer = make_ct_layer(scheme)
    x = torch.randn(4, 128, dtype=torch.float64)
    found = torch.zeros(4, 96, dtype=torch.float64)
    for inputs in (slice(0, cut), slice(cut, 128)):
        loaded = load(tmp_path, scheme, part_of=Slice(slice(0, 96), inputs))[1]
        found += loaded.linear(x[:, inputs])
    torch.testing.assert_close(found, product(scheme, layer, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "scheme",
    [Scheme(), Scheme(4, symmetric=False), Scheme(8, "group", False, "naive-quantized"), FLOATS[2]],
    ids=name_of,
)
def test_slices_may_cut_groups(tmp_path: Path, scheme: Scheme) -> None:
    layer = make_ct_layer(scheme)
    x = torch.randn(4, 128, dtype=torch.float64)
    halves = (slice(0, 48), slice(48, 128))
    found = sum(
        load(tmp_path, scheme, part_of=Slice(slice(0, 96), inputs))[1].linear(x[:, inputs])
        for inputs in halves
    )
    torch.testing.assert_close(found, product(scheme, layer, x), rtol=1e-10, atol=1e-10)


def test_rows_rounded_by_group_are_not_cut_within_one(tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="inputs 0 to 48 of 128 .* each 32 .* expected a multiple"):
        load(tmp_path, FLOATS[-1], part_of=Slice(slice(0, 96), slice(0, 48)))


def test_a_slice_that_begins_within_a_word_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="hold 8 each: a multiple is needed"):
        load(tmp_path, Scheme(), part_of=Slice(slice(0, 96), slice(36, 128)))


@pytest.mark.parametrize("rows", [(0, 12), (12, 96)])
def test_packed_zero_points_may_be_cut_within_a_word(tmp_path: Path, rows: tuple[int, int]) -> None:
    scheme = Scheme(symmetric=False)
    layer, loaded = load(tmp_path, scheme, part_of=Slice(slice(*rows), slice(0, 128)))
    x = torch.randn(2, 128, dtype=torch.float64)
    torch.testing.assert_close(loaded.linear(x), x @ layer.weight[slice(*rows)].t(), rtol=1e-10, atol=1e-10)


def test_act_order_sorts_the_inputs_by_group(tmp_path: Path) -> None:
    layer, loaded = load(tmp_path, Scheme(actorder="group"))
    buffers = dict(loaded.linear.named_buffers())
    [order] = [buffer for name, buffer in buffers.items() if name.endswith("input_order")]
    groups = layer.tensors["weight_g_idx"][order.long()]
    assert groups.tolist() == sorted(groups.tolist()) and order.tolist() != list(range(128))


@pytest.mark.parametrize(
    ("label", "block", "inputs"),
    [("dynamic", (64, 32), GROUPS), ("dynamic", None, TOKEN), ("static", None, TENSOR)],
)
@pytest.mark.parametrize("is_scalar", [True, False])
def test_fine_grained_fp8(
    tmp_path: Path, label: str, block: tuple[int, int] | None, inputs: dict[str, object], is_scalar: bool
) -> None:
    strategy = "tensor" if block is None else "block"
    # for mypy: options by name
    scheme = Scheme(strategy=strategy, block=block or (0, 0), input_activations=float_inputs(inputs), **FP8)  # type: ignore[arg-type]
    layer = make_ct_layer(scheme)
    if block is not None:
        layer.tensors["weight_scale_inv"] = layer.tensors.pop("weight_scale").float()
    elif is_scalar:
        layer.tensors.update(
            {name: t.view(()) for name, t in layer.tensors.items() if name.endswith("scale")}
        )
    config = {"quant_method": "fp8", "activation_scheme": label, "modules_to_not_convert": ["lm_head"]}
    method = method_of(config | {"weight_block_size": list(block) if block else None}, plugins=PLUGINS)
    loaded = load_linear(tmp_path, method, {"out": layer})
    assert loaded.modules[0].method == "fp8 FP8 W8A8"
    check(scheme, layer, loaded)


@pytest.mark.parametrize("is_static", [True, False])
def test_fp8_of_transformers_without_blocks(tmp_path: Path, is_static: bool) -> None:
    """ "weight_scale_inv" and "activation_scale" of no dimension."""
    inputs = float_inputs(TENSOR if is_static else TOKEN)
    # for mypy: options by name
    scheme = Scheme(strategy="tensor", input_activations=inputs, scales_dtype=torch.float32, **FP8)  # type: ignore[arg-type]
    layer = make_ct_layer(scheme)
    names = {"weight_scale": "weight_scale_inv", "input_scale": "activation_scale"}
    stored = {names.get(n, n): t if n == "weight" else t.reshape(()) for n, t in layer.tensors.items()}
    config = {"quant_method": "fp8", "weight_block_size": None, "dequantize": False, "scale_fmt": "float"}
    config["activation_scheme"] = "static" if is_static else "dynamic"
    loaded = load_linear(
        tmp_path, method_of(config, plugins=PLUGINS), {"out": replace(layer, tensors=stored)}
    )
    check(scheme, layer, loaded)


def gptqmodel_fp8(how: str) -> tuple[dict[str, object], dict[str, Tensor], Tensor]:
    """A config and tensors as GPTQModel writes them, scales as 448 / the largest magnitude, and the weight."""
    weight = torch.from_numpy(np.random.default_rng(0).normal(0, 0.02, (96, 128)))
    rows, columns = {"tensor": (96, 128), "row": (1, 128), "block": (32, 64)}[how]
    blocks = weight.view(96 // rows, rows, 128 // columns, columns)
    inverse = (448 / blocks.abs().amax((1, 3))).float()
    rounded = (blocks * inverse[:, None, :, None]).reshape(96, 128).to(torch.float8_e4m3fn)
    exact = rounded.double() / inverse.double().repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    config = {
        "quant_method": "fp8",
        "method": "fp8",
        "format": "float8_e4m3fn",
        "checkpoint_format": "fp8",
        "bits": 8,
        "group_size": -1,
        "desc_act": False,
        "pack_dtype": "int32",
        "lm_head": False,
        "meta": {"quantizer": ["gptqmodel:7.6.0"]},
        "weight_scale_method": how,
        "weight_scale_semantics": "inverse",
    }
    if how == "block":
        config["weight_block_size"] = [rows, columns]
    shape = {"tensor": (), "row": (96,), "block": inverse.shape}[how]
    return config, {"weight": rounded, "weight_scale_inv": inverse.reshape(shape)}, exact


@pytest.mark.parametrize("how", ["tensor", "row", "block"])
def test_scales_of_gptqmodel_are_divided_by(tmp_path: Path, how: str) -> None:
    config, tensors, weight = gptqmodel_fp8(how)
    method = method_of(config, plugins=PLUGINS)
    x = torch.randn(3, 128, dtype=torch.float64)
    linear = load_linear(tmp_path, method, {"out": tensors}, size=(128, 96)).linear
    torch.testing.assert_close(linear(x), x @ weight.t(), rtol=1e-6, atol=1e-7)
    part = Slice(slice(32, 96), slice(64, 128))
    sliced = load_linear(tmp_path, method, {"out": tensors}, size=(128, 96), part_of=part).linear
    torch.testing.assert_close(sliced(x[:, 64:]), x[:, 64:] @ weight[32:, 64:].t(), rtol=1e-6, atol=1e-7)
    tensors["weight_scale_inv"].view(-1)[0] = 0
    with pytest.raises(QuantizationError, match="out.weight_scale_inv: .*value 0, expected values above 0"):
        load_linear(tmp_path, method, {"out": tensors}, size=(128, 96))


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(4, "channel"),
        Scheme(3, "channel", False),
        Scheme(8, "channel", format="naive-quantized"),
        ROUNDED[0],
        FLOATS[0],
        FLOATS[4],
    ],
    ids=name_of,
)
def test_scales_per_output_without_their_second_dimension(tmp_path: Path, scheme: Scheme) -> None:
    layer = make_ct_layer(scheme)
    stored = replace(layer, tensors=layer.tensors | {"weight_scale": layer.tensors["weight_scale"].flatten()})
    method = method_of(scheme.config(), plugins=PLUGINS)
    check(scheme, layer, load_linear(tmp_path, method, {"out": stored}))
    sliced = load_linear(tmp_path, method, {"out": stored}, part_of=Slice(slice(32, 96), slice(0, 128)))
    whole = load_linear(tmp_path, method, {"out": stored}).linear
    x = torch.randn(3, 128, dtype=torch.float64)
    torch.testing.assert_close(sliced.linear(x), whole(x)[:, 32:])


def test_the_shape_may_be_of_int32(tmp_path: Path) -> None:
    layer = make_ct_layer(Scheme())
    layer.tensors["weight_shape"] = layer.tensors["weight_shape"].int()
    check(
        Scheme(), layer, load_linear(tmp_path, method_of(Scheme().config(), plugins=PLUGINS), {"out": layer})
    )


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("stored", [None, "all", "one"])
def test_act_order_without_an_order(tmp_path: Path, bits: int, symmetric: bool, stored: str | None) -> None:
    """compressed-tensors takes inputs in their own order where weight_g_idx is absent, or holds -1."""
    layer = make_ct_layer(Scheme(bits, symmetric=symmetric))
    method = method_of(Scheme(bits, symmetric=symmetric, actorder="group").config(), plugins=PLUGINS)
    if stored is not None:
        groups = torch.full((128,), -1, dtype=torch.int32)
        layer.tensors["weight_g_idx"] = (
            groups if stored == "all" else groups.index_fill(0, torch.arange(64), 3)
        )
    loaded = load_linear(tmp_path, method, {"out": layer})
    check(Scheme(), layer, loaded)
    assert ("no weight_g_idx is stored" in loaded.modules[0].reason) == (stored is None)
    x = torch.randn(3, 128, dtype=torch.float64)
    slices = (slice(0, 48), slice(48, 128)) if bits == 4 else (slice(0, 32), slice(32, 128))
    found = sum(
        load_linear(tmp_path, method, {"out": layer}, part_of=Slice(slice(0, 96), inputs)).linear(
            x[:, inputs]
        )
        for inputs in slices
    )
    torch.testing.assert_close(found, x @ layer.weight.t(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_old_packing_with_gaps(tmp_path: Path, bits: int, symmetric: bool) -> None:
    """compressed-tensors up to 0.12 let no integer go on in the next word."""
    scheme = Scheme(bits, symmetric=symmetric)
    layer = make_ct_layer(scheme)
    layer.tensors["weight_packed"] = pack_with_gaps(layer.integers, bits)
    if not symmetric:
        zeros = unpack_bits(layer.tensors["weight_zero_point"].t(), bits, 96)
        layer.tensors["weight_zero_point"] = pack_with_gaps(zeros, bits).t().contiguous()
    method = method_of(scheme.config(), plugins=PLUGINS)
    loaded = load_linear(tmp_path, method, {"out": layer})
    check(scheme, layer, loaded)
    words = [buffer for buffer in loaded.linear.buffers() if buffer.dtype == torch.int32]
    assert words[0].equal(pack_bits(layer.integers, bits))
    part = Slice(slice(8, 40), slice(48, 128))
    x = torch.randn(3, 80, dtype=torch.float64)
    sliced = load_linear(tmp_path, method, {"out": layer}, part_of=part).linear
    torch.testing.assert_close(sliced(x), x @ layer.weight[8:40, 48:].t(), rtol=1e-10, atol=1e-10)
