"""`int8` and `int4` on the fly: exact integers, error bounds, layouts of checkpoints, options, models."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar
from weakref import ref

import pytest
import torch
from large_pages import NEEDS_LARGE_PAGES, flags_at
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from quire import LLM, SamplingParams
from quire.api.errors import ConfigError, QuantizationError
from quire.api.plugin_settings import PluginSettings
from quire.api.quantization import QuantizationContext, QuantizationRequest, StoredModule, StoredTensor
from quire.execution.device import detect_device
from quire.nn.linear import Linear, LinearMethod, LinearShape
from quire.nn.linear_method import WholeLinear
from quire.ops.table import OpTable
from quire.plugins import PluginHost, resolve_factory
from quire.testing.forward import full_logits
from quire.testing.quantization_suite import OnTheFlyConformance
from quire.testing.tiny_models import write_tiny_gpt2, write_tiny_llama, write_tiny_mpt, write_tiny_qwen2
from quire_quantization.on_the_fly import int4_plugin, int8_plugin
from quire_quantization.on_the_fly.int4 import Int4Method, Int4Quantization, dividing_group_size
from quire_quantization.on_the_fly.int8 import Int8Method, Int8Quantization
from quire_quantization.on_the_fly.options import Int4Options, Int8Options
from quire_quantization.on_the_fly.workers import Crews

NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7)
OCTETS = (0, 2, 1, 3)
"""Which input of its word each field holds, lowest bits first."""

PROMPTS = [
    "What is the capital of France?",
    "Which animal says meow?",
    "What colour is grass?",
    "Hello! How are you?",
]


def op_table() -> OpTable:
    host = PluginHost.discover(PluginSettings(autoload=False))
    return OpTable(host.ops.registrations(), detect_device("cpu"), "float32", resolve_factory)


OPS = op_table()


class TestInt8(OnTheFlyConformance):
    spec = int8_plugin.quire_register_quantizations()[0]
    tolerances: ClassVar = dict.fromkeys(("float64", "float32", "bfloat16"), 0.015)
    max_bytes_ratio = 0.26  # of float32

    def test_is_int8(self) -> None:
        layer = self.build(None, "float32", {"a": {"weight": torch.ones(16, 16)}}, (16, {"a": 16}))
        assert [method.name for method, _ in layer.runs] == ["int8"]


class TestInt4(OnTheFlyConformance):
    spec = int4_plugin.quire_register_quantizations()[0]
    tolerances: ClassVar = dict.fromkeys(("float64", "float32", "bfloat16"), 0.09)
    max_bytes_ratio = 0.15


class TestInt4WithZeros(TestInt4):
    options = Int4Options(group_size=64, symmetric=False)
    tolerances: ClassVar = dict.fromkeys(("float64", "float32", "bfloat16"), 0.1)
    max_bytes_ratio = 0.14


def shape_of(parts: dict[str, int], inputs: int, whole: WholeLinear | None = None) -> LinearShape:
    return LinearShape(inputs, tuple(parts.items()), False, torch.float32, torch.device("cpu"), whole)


def load(method: LinearMethod, **parts: Tensor) -> Linear:
    """A layer of parts, each filled from its tensor as a loader gives it."""
    inputs = next(iter(parts.values())).shape[1]
    layer = Linear(shape_of({name: len(tensor) for name, tensor in parts.items()}, inputs))
    layer.assign([method] * len(parts))
    for name, tensor in reversed(parts.items()):
        (slot,) = layer.tensor_slots(name)
        assert slot.store is not None and slot.target.shape == tensor.shape
        slot.store(tensor)
    layer.process_after_loading()
    return layer


def unpack(layer: Linear, order: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Integers, scales and zeros [N, K] of a layer's tiles, float64, with nothing of the code under test."""
    held = dict(layer.weights[0].named_buffers())
    rows, inputs, fields = layer.shape.out_features, layer.shape.in_features, len(order)
    bits, groups = 32 // fields, held["scales"].shape[1]
    words = held["weight"].long() & 0xFFFFFFFF
    integers, scales, zeros = (torch.zeros(rows, inputs, dtype=torch.float64) for _ in range(3))
    for row in range(rows):
        tile, lane = divmod(row, 16)
        for field, offset in enumerate(order):
            integers[row, offset::fields] = ((words[tile, :, lane] >> (bits * field)) % 2**bits).double()
        of_input = torch.arange(inputs) // (inputs // groups)
        scales[row] = held["scales"][tile, :, lane].double()[of_input]
        zeros[row] = (
            2 ** (bits - 1) if "zeros" not in held else held["zeros"][tile, :, lane].double()[of_input]
        )
    return integers, scales, zeros


def weights_of(layer: Linear, order: Sequence[int] = NIBBLES) -> Tensor:
    integers, scales, zeros = unpack(layer, order)
    return (integers - zeros) * scales


def randoms(rows: int, inputs: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(seed)) * 0.05


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def test_int8_integers_by_hand() -> None:
    weight = torch.tensor(
        [
            [1.27, -1.27, 0.014, 0.016, 0.0, -0.014, 0.634, -0.01],
            [0.0] * 8,
            [-254.0, 127, 1, 3, -1, -3, 2, 0],  # ties go to the even integer
        ]
    )
    integers, scales, _ = unpack(load(Int8Method(OPS), a=weight), OCTETS)
    assert (integers - 128).tolist() == [
        [127, -127, 1, 2, 0, -1, 63, -1],
        [0] * 8,
        [-127, 64, 0, 2, 0, -2, 1, 0],
    ]
    assert scales[:, 0].tolist() == pytest.approx([0.01, 0.0, 2.0], rel=1e-7)


@NEEDS_LARGE_PAGES
@pytest.mark.parametrize("method", [Int8Method(OPS), Int4Method(OPS, 128, True)], ids=["int8", "int4"])
def test_weights_lie_on_large_pages(method: LinearMethod) -> None:
    largest = max(load(method, a=randoms(256, 256)).buffers(), key=lambda tensor: tensor.nbytes)
    assert "hg" in flags_at(largest.data_ptr())


def test_int4_integers_by_hand() -> None:
    """Weights that 16 steps hold exactly come back exactly, whichever end is the larger."""
    steps = torch.tensor([[-8, 7, -3, 0, 1, 2, -5, 4], [8, -7, 3, 0, -1, -2, 5, -4], [0] * 8])
    weight = torch.cat([steps * 0.25, steps * 2.0], dim=1)
    integers, scales, zeros = unpack(load(Int4Method(OPS, 8), a=weight), NIBBLES)
    assert scales[:, [0, 8]].tolist() == [[0.25, 2.0], [-0.25, -2.0], [0.0, 0.0]]
    assert integers[:2].tolist() == [[0, 15, 5, 8, 9, 10, 3, 12] * 2] * 2
    assert torch.equal((integers - zeros) * scales, weight.double())


def test_int4_integers_with_zeros_by_hand() -> None:
    steps = torch.tensor(
        [[0, 15, 3, 1, 9, 2, 11, 4], [-15, 0, -1, -2, -3, -4, -5, -6], [-5, 10] * 4, [0] * 8]
    )
    weight = torch.cat([steps * 0.5, steps * 4.0], dim=1)
    layer = load(Int4Method(OPS, 8, symmetric=False), a=weight)
    integers, scales, zeros = unpack(layer, NIBBLES)
    assert zeros[:, 0].tolist() == [0, 15, 5, 0]
    assert scales[:3, [0, 8]].tolist() == [[0.5, 4.0]] * 3
    assert torch.equal((integers - zeros) * scales, weight.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_int8_is_within_half_a_step(dtype: torch.dtype) -> None:
    weight = randoms(37, 64).to(dtype)
    integers, scales, zeros = unpack(load(Int8Method(OPS), a=weight), OCTETS)
    exact = weight.double()
    assert torch.allclose(scales[:, 0], exact.abs().amax(1) / 127, rtol=1e-6)
    assert integers.min() >= 1
    assert (((integers - zeros) * scales - exact).abs() <= scales * 0.5001).all()


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("symmetric", [True, False])
def test_int4_is_within_half_a_step_and_better_than_plain_rounding(group_size: int, symmetric: bool) -> None:
    weight = randoms(48, 256).bfloat16()
    layer = load(Int4Method(OPS, group_size, symmetric), a=weight)
    integers, scales, zeros = unpack(layer, NIBBLES)
    exact = weight.double()
    error = ((integers - zeros) * scales - exact).abs()
    inside = (integers > 0) & (integers < 15)
    assert (error <= scales.abs() * 0.5001)[inside].all() and inside.double().mean() > 0.8
    plain = plain_rounding(exact, group_size, symmetric)
    assert float(error.norm()) <= 0.99 * float((plain - exact).norm())


def plain_rounding(exact: Tensor, group_size: int, symmetric: bool) -> Tensor:
    """Q4_0's and min/max rounding with the scale that spans each group."""
    groups = exact.view(len(exact), -1, group_size)
    highest, lowest = groups.amax(-1, keepdim=True), groups.amin(-1, keepdim=True)
    if symmetric:
        scales = torch.where(highest > -lowest, highest, lowest) / -8
        rounded = (groups / scales).round().clamp(-8, 7) * scales
    else:
        scales = (highest - lowest) / 15
        zeros = (-lowest / scales).round()
        rounded = (((groups / scales).round() + zeros).clamp(0, 15) - zeros) * scales
    return rounded.view_as(exact)


def test_zero_points_gain_what_the_option_says() -> None:
    weight = randoms(128, 512)
    for group_size, lowest, highest in ((32, 0.04, 0.08), (128, 0.01, 0.03)):
        errors = [
            relative_error(weights_of(load(Int4Method(OPS, group_size, symmetric), a=weight)), weight)
            for symmetric in (True, False)
        ]
        assert lowest <= 1 - errors[1] / errors[0] <= highest


@pytest.mark.parametrize("size", [1e7, 1e30, 3e-8])
def test_scales_beyond_float16(size: float) -> None:
    layer = load(Int4Method(OPS, 32), a=randoms(16, 32) * size, b=randoms(16, 32, seed=1))
    assert layer.weights[0].scales.dtype == torch.bfloat16
    found = weights_of(layer)
    assert relative_error(found[:16], randoms(16, 32) * size) < 0.1
    assert relative_error(found[16:], randoms(16, 32, seed=1)) < 0.1


def test_scales_within_float16() -> None:
    weight = randoms(16, 64)
    weight[3] *= 1e-6
    weight[4] = 0
    layer = load(Int4Method(OPS, 32), a=weight)
    assert layer.weights[0].scales.dtype == torch.float16
    assert (weights_of(layer)[4] == 0).all()


METHODS: dict[str, tuple[LinearMethod, Sequence[int]]] = {
    "int8": (Int8Method(OPS), OCTETS),
    "int4": (Int4Method(OPS, 32), NIBBLES),
    "int4 with zeros": (Int4Method(OPS, 32, symmetric=False), NIBBLES),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("widths", [(5, 20, 16, 7), (16, 48), (1,), (3000,)], ids=str)
def test_parts_may_begin_within_a_tile(name: str, widths: tuple[int, ...]) -> None:
    """Also in layers of several chunks; what no tensor fills is zero."""
    method, order = METHODS[name]
    parts = {f"p{index}": randoms(width, 64, seed=index) for index, width in enumerate(widths)}
    layer = load(method, **parts)
    alone = [weights_of(load(method, a=weight), order) for weight in parts.values()]
    assert torch.equal(weights_of(layer, order), torch.cat(alone))
    padding = -sum(widths) % 16
    assert not padding or not layer.weights[0].weight[-1, :, -padding:].any()


@pytest.mark.parametrize("name", METHODS)
def test_views_are_read_and_left_alone(name: str) -> None:
    """Transposed, cut and float32 tensors: the last one would be rounded in place by a careless step."""
    method, order = METHODS[name]
    weight = randoms(24, 64)
    expected = weights_of(load(method, a=weight.clone()), order)
    wide = torch.cat([weight, weight, weight], dim=1)
    for view in (weight, weight.t().contiguous().t(), wide[:, 64:128]):
        kept = view.clone()
        assert torch.equal(weights_of(load(method, a=view), order), expected)
        assert torch.equal(view, kept)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(name: str, value: float) -> None:
    weight = randoms(40, 64)
    weight[33, 40] = value
    with pytest.raises(QuantizationError, match="NaN, infinite"):
        load(METHODS[name][0], a=weight)


def test_threads_end_with_the_load() -> None:
    """Several chunks by several threads give what one gives; torch's own number of threads is as before."""
    weight, count, before = randoms(2500, 256), torch.get_num_threads(), set(threading.enumerate())
    try:
        torch.set_num_threads(1)
        alone = weights_of(load(Int4Method(OPS, 32), a=weight))
        torch.set_num_threads(3)
        method = Int4Method(OPS, 32)
        together = load(method, a=weight, b=weight)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(count)
    assert torch.equal(weights_of(together), torch.cat([alone, alone]))
    deadline = time.monotonic() + 10
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not set(threading.enumerate()) - before


def test_crews_are_shared_while_kept() -> None:
    crews = Crews()
    first = crews.get()
    assert crews.get() is first
    gone = ref(first)
    del first
    assert gone() is None and crews.get() is not None


def test_tensors_after_processing_are_refused() -> None:
    weights = Int8Method(OPS).create(shape_of({"a": 16}, 8))
    (slot,) = weights.tensor_slots("a")
    weights.process_after_loading()
    with pytest.raises(RuntimeError, match="after process_after_loading"):
        slot.store(torch.zeros(16, 8))  # type: ignore[misc]  # not None, here


def test_slices_of_inputs_on_groups_are_those_of_the_whole() -> None:
    weight = randoms(32, 128)
    whole = weights_of(load(Int4Method(OPS, 32), a=weight))
    for rank in (0, 1):
        shape = shape_of({"a": 32}, 64, WholeLinear(128, 64 * rank, (32,), (0,)))
        layer = Linear(shape)
        layer.assign([Int4Method(OPS, 32)])
        columns = slice(64 * rank, 64 * (rank + 1))
        layer.tensor_slots("a")[0].store(weight[:, columns])  # type: ignore[misc]  # not None, here
        assert torch.equal(weights_of(layer), whole[:, columns])


def test_slices_that_groups_do_not_divide() -> None:
    """96 inputs in groups of 32 over 2 ranks: groups of 24; over 8: refused, since 12 are no whole words."""
    half = Int4Method(OPS, 32).create(shape_of({"a": 16}, 48, WholeLinear(96, 48, (16,), (0,))))
    assert half.scales.shape[1] == 2
    with pytest.raises(QuantizationError, match="a slice of 12 of its 96 inputs.*multiple of 8"):
        Int4Method(OPS, 32).create(shape_of({"a": 16}, 12, WholeLinear(96, 0, (16,), (0,))))


def test_group_sizes_that_divide() -> None:
    wanted = {(896, 128): 128, (48, 32): 24, (8 * 37, 128): 8, (64, 64): 64, (100, 32): None, (4, 4): None}
    assert {case: dividing_group_size(*case) for case in wanted} == wanted


def stored(inputs: int = 64, name: str = "model.layers.0.mlp.up_proj", **kind: bool) -> StoredModule:
    tensors = {} if kind.get("is_tied") else {"weight": StoredTensor((32, inputs), "bfloat16")}
    return StoredModule(name, tensors, inputs, 32, **kind)


def context(options: object = None) -> QuantizationContext:
    return QuantizationContext(QuantizationRequest(None, detect_device("cpu"), "bfloat16"), OPS, options)


def test_choices() -> None:
    int4 = Int4Quantization(context())
    assert int4.choose(stored()).method == Int4Method(OPS, 32) and int4.choose(stored()).reason == ""
    smaller = int4.choose(stored(48))
    assert smaller.method == Int4Method(OPS, 24) and smaller.method.name == "int4 in groups of 24"
    assert smaller.reason == "its 48 inputs are not a multiple of 32"
    assert int4.choose(stored(44)).method is None
    assert int4.choose(stored(44)).reason == "its 44 inputs are not a multiple of 8"
    per_channel = Int4Quantization(context(Int4Options(group_size=-1, symmetric=False))).choose(stored(48))
    assert per_channel.method == Int4Method(OPS, 48, False) and per_channel.reason == ""
    int8 = Int8Quantization(context())
    assert int8.choose(stored(44)).method == Int8Method(OPS)
    assert int8.choose(stored(42)).reason == "its 42 inputs are not a multiple of 4"
    assert int8.choose(stored(42)).method is None


@pytest.mark.parametrize(
    ("quantization", "options"), [(Int8Quantization, Int8Options), (Int4Quantization, Int4Options)]
)
def test_options(quantization: Callable[[QuantizationContext], Any], options: Callable[..., Any]) -> None:
    head, tied = stored(name="lm_head", is_head=True), stored(name="lm_head", is_head=True, is_tied=True)
    for module in (head, tied):
        assert quantization(context()).choose(module).method is not None
        without = quantization(context(options(lm_head=False))).choose(module)
        assert without.method is None and without.reason == "lm_head is false"
    method = quantization(context(options(ignore=(r"layers\.(0|1)\.mlp", "down_proj"))))
    found = {
        name: method.choose(stored(name=f"model.{name}")).reason
        for name in ("layers.0.mlp.up_proj", "layers.10.mlp.up_proj", "layers.7.mlp.down_proj")
    }
    assert found == {
        "layers.0.mlp.up_proj": r"ignore has 'layers\\.(0|1)\\.mlp'",
        "layers.10.mlp.up_proj": "",
        "layers.7.mlp.down_proj": "ignore has 'down_proj'",
    }
    with pytest.raises(ValidationError, match="not a regular expression"):
        options(ignore=("(",))
    with pytest.raises(ValidationError, match="group_size"):
        options(group_size=48)


WRITERS: dict[str, Callable[..., Path]] = {
    "llama": write_tiny_llama,
    "gpt2": write_tiny_gpt2,  # transposed, q, k and v fused, a tied head
    "mpt": write_tiny_mpt,
    "qwen2": write_tiny_qwen2,  # biases
    "qwen2 tied": lambda path: write_tiny_qwen2(path, tie_word_embeddings=True),
}
IDS = [5, 17, 3, 60, 22, 9, 41, 88, 2, 30, 71, 14]


def snap(folder: Path, limit: int) -> Path:
    """Replace all matrices by integers up to a limit, so scaled that rounding gives them back, whatever the groups."""
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and "wpe" not in name:
            is_transposed = ".c_" in name
            matrix = (tensor.t() if is_transposed else tensor) * limit
            matrix = matrix.round().clamp(-limit, limit - 1)
            matrix[:, ::8] = -limit
            matrix *= 2.0**-7 if limit == 8 else 2.0**-11
            tensors[name] = (matrix.t() if is_transposed else matrix).contiguous()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("family", WRITERS)
def test_models_of_weights_that_4_bits_hold(family: str, tmp_path: Path) -> None:
    folder = snap(WRITERS[family](tmp_path), 8)
    plain = full_logits(folder, IDS, "float64")
    assert relative_error(full_logits(folder, IDS, "float64", quantization="int4"), plain) < 1e-9
    assert relative_error(full_logits(folder, IDS, "float32", quantization="int4"), plain) < 1e-4


@pytest.mark.parametrize("family", WRITERS)
def test_models_of_weights_that_8_bits_hold(family: str, tmp_path: Path) -> None:
    """Inputs are rounded all the same."""
    folder = snap(WRITERS[family](tmp_path), 127)
    plain = full_logits(folder, IDS, "float32")
    error = relative_error(full_logits(folder, IDS, "float32", quantization="int8"), plain)
    assert 0 < error < 0.03


@pytest.mark.parametrize("family", WRITERS)
def test_models_of_random_weights(family: str, tmp_path: Path) -> None:
    folder = WRITERS[family](tmp_path)
    plain = full_logits(folder, IDS, "float32")
    errors = {
        name: relative_error(full_logits(folder, IDS, "float32", quantization=name), plain)
        for name in ("int8", "int4")
    }
    assert 0 < errors["int8"] < 0.05 and 2 * errors["int8"] < errors["int4"] < 0.4


def test_one_bad_value_in_a_checkpoint(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.self_attn.k_proj.weight"][2, 3] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for name in ("int8", "int4"):
        with pytest.raises(QuantizationError, match=r"model\.layers\.1\.self_attn\.k_proj\.weight: .*NaN"):
            full_logits(folder, IDS, quantization=name)


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_answers_and_summary_of_the_embedded_model(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Greedy answers as in 16 bits (in int8), with a prefix that is found again and prompts in parts."""
    caplog.set_level(logging.INFO, "quire")
    params = SamplingParams(temperature=0.0, max_tokens=24)
    answers = {}
    for setting in (None, name):
        with LLM(
            "tiny",
            quantization=setting,
            max_model_len=256,
            max_num_seqs=4,
            max_num_batched_tokens=16,
            enable_prefix_caching=True,
        ) as llm:
            runs = [
                [
                    output.outputs[0].text
                    for output in llm.chat(
                        [[{"role": "user", "content": prompt}] for prompt in PROMPTS], params, use_tqdm=False
                    )
                ]
                for _ in range(2)
            ]
        assert runs[0] == runs[1] and all(runs[0])
        answers[setting] = runs[0]
    same = sum(found == wanted for found, wanted in zip(answers[name], answers[None], strict=True))
    assert same == len(PROMPTS) if name == "int8" else same >= 1
    what = {"int8": ("int8", "0.507"), "int4": ("int4 in groups of 32", "0.281")}[name]
    assert f"43 modules {what[0]} (w" in caplog.text
    assert f"{what[1]} of their" in caplog.text


def test_options_reach_the_method(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "quire")
    folder = write_tiny_qwen2(tmp_path)
    settings: dict[str, Any] = {"skip_tokenizer_init": True, "max_model_len": 32, "dtype": "float32"}
    options = {"int4": {"group_size": 64, "lm_head": False, "ignore": ["o_proj"]}}
    with LLM(folder, quantization="int4", plugins={"options": options}, **settings):
        pass
    assert "lm_head by unquantized, since lm_head is false" in caplog.text
    assert (
        "layers.0.self_attn.o_proj, model.layers.1.self_attn.o_proj by unquantized, since ignore"
        in caplog.text
    )
    assert "by int4 in groups of 48, since its 48 inputs are not a multiple of 64" in caplog.text
    with pytest.raises(ConfigError, match="group_size"):
        LLM(folder, quantization="int4", plugins={"options": {"int4": {"group_size": 48}}}, **settings)
