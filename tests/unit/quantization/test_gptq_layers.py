"""GPTQ linears of every layout against float64: whole, fused, and in slices of both dimensions."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from gptq_layers import (
    BOTH,
    Layer,
    Layout,
    Loaded,
    Slice,
    load_linear,
    make_layer,
    method_of,
    pack_stream,
    unpack_stream,
)
from quire.api.errors import QuantizationError
from quire.nn.tiles import unpack_tiles

METHODS = {"gptq": ("gptq",), "gptq-marlin": BOTH}
ARRAY = [
    Layout(bits, group_size, sym, desc_act, zero_offset)
    for bits in (2, 3, 4, 8)
    for group_size in (32, -1)
    for sym, desc_act, zero_offset in ((True, False, 1), (False, False, 0), (False, True, 1), (True, True, 0))
]


def name_of(layout: Layout) -> str:
    sym, version = "sym" if layout.sym else "asym", 2 - layout.zero_offset
    return f"w{layout.bits}g{layout.group_size}-{sym}-v{version}{'-desc' if layout.desc_act else ''}"


def load(folder: Path, layout: Layout, plugins: tuple[str, ...], **options: object) -> tuple[Layer, Loaded]:
    layer = make_layer(layout)
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
def test_every_layout_is_exact(tmp_path: Path, layout: Layout, plugins: tuple[str, ...]) -> None:
    layer, loaded = load(tmp_path, layout, plugins)
    check(loaded, layer.weight)
    in_tiles = plugins == BOTH and layout.bits in (4, 8)
    assert loaded.modules[0].method == ("gptq-marlin" if in_tiles else "gptq")
    assert loaded.modules[0].op == (f"w{layout.bits}a16_linear" if in_tiles else "gptq_linear")
    assert loaded.modules[0].reason == ""
    on_disk = sum(tensor.nbytes for tensor in layer.tensors.values())
    assert loaded.resident_bytes <= 1.1 * on_disk


@pytest.mark.parametrize("plugins", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scales_dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_dtype(
    tmp_path: Path, plugins: tuple[str, ...], dtype: torch.dtype, scales_dtype: torch.dtype
) -> None:
    layout = Layout(sym=False, scales_dtype=scales_dtype)
    layer, loaded = load(tmp_path, layout, plugins, dtype=dtype)
    check(loaded, layer.weight)
    scales = [buffer for name, buffer in loaded.linear.named_buffers() if name.endswith("scales")]
    assert [buffer.dtype for buffer in scales] == [scales_dtype]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("desc_act", [False, True])
def test_tiles_hold_the_integers(tmp_path: Path, bits: int, desc_act: bool) -> None:
    layer, loaded = load(tmp_path, Layout(bits, sym=False, desc_act=desc_act, outputs=40 + 8 * bits), BOTH)
    tiles = loaded.linear.weights[0].tiles
    integers = unpack_stream(layer.tensors["qweight"], bits)
    assert np.array_equal(integers, layer.integers)
    order = slice(None) if tiles.input_order is None else tiles.input_order.numpy()
    assert np.array_equal(unpack_tiles(tiles.weight, bits)[: integers.shape[1]].numpy(), integers.T[:, order])
    assert (tiles.input_order is not None) == desc_act


def test_what_goes_without_saying_is_not_kept(tmp_path: Path) -> None:
    for plugins in METHODS.values():
        layer, loaded = load(tmp_path, Layout(), plugins)
        kept = {name.rpartition(".")[2] for name, _ in loaded.linear.named_buffers()}
        assert kept == ({"qweight", "scales"} if plugins == ("gptq",) else {"weight", "scales"})


def test_outputs_that_do_not_fill_tiles(tmp_path: Path) -> None:
    layer, loaded = load(tmp_path, Layout(sym=False, outputs=40), BOTH)
    check(loaded, layer.weight)


@pytest.mark.parametrize("plugins", METHODS.values(), ids=METHODS)
def test_missing_g_idx(tmp_path: Path, plugins: tuple[str, ...]) -> None:
    layer = make_layer(Layout(sym=False))
    del layer.tensors["g_idx"]
    check(
        load_linear(tmp_path, method_of(Layout(sym=False).config(), plugins=plugins), {"a": layer}),
        layer.weight,
    )


@pytest.mark.parametrize("plugins", METHODS.values(), ids=METHODS)
def test_act_order_that_the_config_does_not_tell(tmp_path: Path, plugins: tuple[str, ...]) -> None:
    layer = make_layer(Layout(desc_act=True))
    check(load_linear(tmp_path, method_of(Layout().config(), plugins=plugins), {"a": layer}), layer.weight)


@pytest.mark.parametrize("plugins", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("desc_act", [False, True])
@pytest.mark.parametrize("bits", [3, 4])
def test_fused_parts(tmp_path: Path, plugins: tuple[str, ...], desc_act: bool, bits: int) -> None:
    layout = Layout(bits, sym=False, desc_act=desc_act)
    layers = {
        name: make_layer(replace(layout, outputs=n), n) for name, n in (("q", 96), ("k", 32), ("v", 64))
    }
    biases = {name: torch.randn(layer.weight.shape[0]).half() for name, layer in layers.items()}
    for name, bias in biases.items():
        layers[name].tensors["bias"] = bias
    method = method_of(layout.config(), plugins=plugins)
    loaded = load_linear(tmp_path, method, layers, has_bias=True)
    assert len(loaded.linear.weights) == (3 if desc_act else 1)
    x = torch.randn(3, layout.inputs, dtype=torch.float64)
    weight = torch.cat([layer.weight for layer in layers.values()])
    expected = x @ weight.t() + torch.cat(list(biases.values())).double()
    torch.testing.assert_close(loaded.linear(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("plugins", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("bits", [3, 4])
def test_parts_of_one_module_in_another_order(tmp_path: Path, plugins: tuple[str, ...], bits: int) -> None:
    """Rows of a fused q, k, v module, interleaved head by head in runs that fill words."""
    layout = Layout(bits, sym=False)
    layer = make_layer(layout)
    rows = {"q": (*range(64, 96), *range(32)), "k": tuple(range(32, 64))}
    loaded = load_linear(tmp_path, method_of(layout.config(), plugins=plugins), {"qk": layer}, rows=rows)
    check(loaded, layer.weight[[*rows["q"], *rows["k"]]])


def test_parts_that_are_kept_differently(tmp_path: Path) -> None:
    layouts = {"q": Layout(4), "k": Layout(8), "v": Layout(2)}
    layers = {name: make_layer(layout) for name, layout in layouts.items()}
    config = Layout().config(dynamic={r".*\.k": {"bits": 8}, r"+:.*\.v": {"bits": 2}})
    loaded = load_linear(tmp_path, method_of(config), layers)
    assert [module.op for module in loaded.modules] == ["w4a16_linear", "w8a16_linear", "gptq_linear"]
    check(loaded, torch.cat([layer.weight for layer in layers.values()]))


@pytest.mark.parametrize("plugins", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("layout", ARRAY[:: len(METHODS)][1:] + [Layout(3, desc_act=True)], ids=name_of)
def test_slices_of_outputs_lie_side_by_side(tmp_path: Path, layout: Layout, plugins: tuple[str, ...]) -> None:
    x = torch.randn(3, layout.inputs, dtype=torch.float64)
    results = []
    for start, stop in ((0, 32), (32, 96)):
        held = Slice(slice(start, stop), slice(0, layout.inputs))
        layer, loaded = load(tmp_path, layout, plugins, part_of=held)
        results.append(loaded.linear(x))
    torch.testing.assert_close(torch.cat(results, -1), x @ layer.weight.t(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("plugins", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("layout", [*ARRAY, Layout(4, 128, sym=False)], ids=name_of)
@pytest.mark.parametrize("cut", [64, 96])
def test_slices_of_inputs_add_up(tmp_path: Path, layout: Layout, plugins: tuple[str, ...], cut: int) -> None:
    layout = replace(layout, inputs=256)
    x = torch.randn(3, layout.inputs, dtype=torch.float64)
    total = torch.zeros(3, layout.outputs, dtype=torch.float64)
    for start, stop in ((0, cut), (cut, 256)):
        held = Slice(slice(0, layout.outputs), slice(start, stop))
        layer, loaded = load(tmp_path, layout, plugins, part_of=held)
        total += loaded.linear(x[:, start:stop])
    torch.testing.assert_close(total, x @ layer.weight.t(), rtol=1e-10, atol=1e-10)


def test_slices_of_fused_parts(tmp_path: Path) -> None:
    layout = Layout(sym=False)
    layers = {name: make_layer(layout, seed) for seed, name in enumerate(("gate", "up"))}
    held = Slice(slice(32, 64), slice(32, 96))
    loaded = load_linear(tmp_path, method_of(layout.config()), layers, part_of=held)
    check(loaded, torch.cat([layer.weight[held.outputs, held.inputs] for layer in layers.values()]))


def test_a_slice_that_breaks_groups_says_that_it_falls_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layout = Layout(desc_act=True, inputs=256)
    held = Slice(slice(0, 96), slice(0, 96))
    with caplog.at_level(logging.WARNING, "quire"):
        layer, loaded = load(tmp_path, layout, BOTH, part_of=held)
    assert "gptq-marlin keeps layers as gptq, since" in caplog.text
    assert {name.rpartition(".")[2] for name, _ in loaded.linear.named_buffers()} >= {"qweight", "g_idx"}


def test_a_slice_between_groups_stays_in_tiles(tmp_path: Path) -> None:
    layout = Layout(group_size=128, inputs=256, sym=False)
    layer, loaded = load(tmp_path, layout, BOTH, part_of=Slice(slice(0, 96), slice(64, 256)))
    assert loaded.linear.weights[0].tiles.scales.shape == (6, 3, 16)
    check(loaded, layer.weight[:, 64:])


class LiveBytes(TorchDispatchMode):
    """Follows the bytes of all tensors made within it that are alive.

    Attributes:
        peak: the most at any time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # torch's own
        result = func(*args, **(kwargs or {}))
        given = [value.untyped_storage().data_ptr() for value in args if isinstance(value, Tensor)]
        if isinstance(result, Tensor) and result.device.type == "cpu":
            storage = result.untyped_storage()
            if storage.data_ptr() not in given:
                reference = StorageWeakRef(storage)
                self._storages[reference.cdata] = (reference, storage.nbytes())
        self._storages = {key: held for key, held in self._storages.items() if not held[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._storages.values()))
        return result


@pytest.mark.parametrize("plugins", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize(
    "layout", [Layout(4, 128, sym=False), Layout(4, desc_act=True), Layout(3)], ids=name_of
)
def test_loading_holds_what_is_stored_and_the_result(
    tmp_path: Path, layout: Layout, plugins: tuple[str, ...]
) -> None:
    inputs, outputs = 2048, 4096
    tensors = {
        "qweight": torch.randint(
            -(2**31), 2**31 - 1, (inputs * layout.bits // 32, outputs), dtype=torch.int32
        ),
        "qzeros": torch.randint(
            -(2**31), 2**31 - 1, (inputs // layout.group_size, outputs * layout.bits // 32), dtype=torch.int32
        ),
        "scales": torch.rand(inputs // layout.group_size, outputs).half(),
        "g_idx": (torch.randperm(inputs) if layout.desc_act else torch.arange(inputs)).int(),
    }
    tensors["g_idx"] //= layout.group_size
    stored = sum(tensor.nbytes for tensor in tensors.values())
    method = method_of(layout.config(), plugins=plugins)
    with LiveBytes() as live:
        loaded = load_linear(tmp_path, method, {"a": tensors}, dtype=torch.bfloat16, size=(inputs, outputs))
    is_repacked = loaded.modules[0].method == "gptq-marlin"
    held = stored + loaded.resident_bytes * is_repacked
    assert stored <= live.peak <= held + 6e6


def test_zero_biases_of_layers_without_bias(tmp_path: Path) -> None:
    layer = make_layer(Layout())
    layer.tensors["bias"] = torch.zeros(96, dtype=torch.float16)
    check(load_linear(tmp_path, method_of(Layout().config()), {"a": layer}), layer.weight)
    layer.tensors["bias"][5] = 0.25
    with pytest.raises(QuantizationError, match=r"model\.a\.bias: the model has no bias here.*up to 0\.25"):
        load_linear(tmp_path, method_of(Layout().config()), {"a": layer})


@pytest.mark.parametrize("desc_act", [False, True])
@pytest.mark.parametrize(("group", "found"), [(4, "0 to 4"), (-1, "-1 to 3")])
def test_g_idx_out_of_range(tmp_path: Path, desc_act: bool, group: int, found: str) -> None:
    layers = {name: make_layer(Layout(desc_act=desc_act), seed) for seed, name in enumerate(("q", "k"))}
    layers["k"].tensors["g_idx"][3] = group
    message = rf"^model\.k\.g_idx: inputs are assigned to groups from {found}; expected 0 to 3.*fetch the checkpoint"
    with pytest.raises(QuantizationError, match=message):
        load_linear(tmp_path, method_of(Layout(desc_act=desc_act).config()), layers)


def test_damaged_g_idx_within_range(tmp_path: Path) -> None:
    layers = {name: make_layer(Layout(), seed) for seed, name in enumerate(("q", "k"))}
    layers["k"].tensors["g_idx"][3] = 2
    message = "g_idx of q, k differ in how many inputs a group has, .*: fetch the checkpoint again"
    with pytest.raises(QuantizationError, match=message):
        load_linear(tmp_path, method_of(Layout().config()), layers)


@pytest.mark.parametrize("plugins", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_scales_that_are_not_finite(tmp_path: Path, value: float, plugins: tuple[str, ...]) -> None:
    layers = {name: make_layer(Layout(), seed) for seed, name in enumerate(("q", "k"))}
    layers["k"].tensors["scales"][1, 7] = value
    with pytest.raises(
        QuantizationError, match=r"^model\.k\.scales: 1 of 384 scales values are NaN or infinite"
    ):
        load_linear(tmp_path, method_of(Layout().config(), plugins=plugins), layers)


def test_different_orders_that_the_config_denies(tmp_path: Path) -> None:
    layers = {name: make_layer(Layout(desc_act=True), seed) for seed, name in enumerate(("q", "k"))}
    with pytest.raises(QuantizationError, match="g_idx of q, k differ, though desc_act is false"):
        load_linear(tmp_path, method_of(Layout().config()), layers)


@pytest.mark.parametrize(("bits", "outputs"), [(4, 8), (3, 32)])
def test_packing_is_a_stream_of_bits(bits: int, outputs: int) -> None:
    """The helper itself, against values written out by hand."""
    values = np.arange(outputs)[:, None] % (1 << bits)
    expected = sum(int(value) << (bits * index) for index, value in enumerate(values[:, 0]))
    words = [word & 0xFFFFFFFF for word in pack_stream(values, bits)[:, 0].tolist()]
    assert sum(word << (32 * index) for index, word in enumerate(words)) == expected
