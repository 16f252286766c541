"""Targets, ignore lists and refusals of compressed-tensors checkpoints."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ct_layers import TENSOR, TOKEN, Scheme, float_inputs, make_ct_layer
from gptq_layers import load_linear, method_of
from quire.api.errors import CheckpointError, QuantizationError
from quire.api.quantization import QuantizationMethod, StoredModule, StoredTensor
from quire.loading.checkpoint import open_checkpoint

PLUGINS = ("compressed-tensors",)
W4, W8 = Scheme(), Scheme(8, "channel")
W8A8 = Scheme(8, "channel", format="int-quantized", input_activations=TOKEN)
FP8 = Scheme(8, "channel", format="float-quantized", type="float", input_activations=float_inputs(TOKEN))


def method(config: dict[str, Any]) -> QuantizationMethod:
    return method_of(config, plugins=PLUGINS)


def stored(scheme: Scheme | None, name: str, **options: Any) -> StoredModule:
    tensors = {"weight": torch.zeros(96, 128)} if scheme is None else make_ct_layer(scheme).tensors
    described = {
        suffix: StoredTensor(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for suffix, tensor in tensors.items()
    }
    return StoredModule(name, described, 128, 96, **options)


def test_groups_by_name_by_pattern_and_by_class() -> None:
    groups = {
        "rest": W8A8.group("Linear"),
        "mlp": FP8.group("re:.*mlp\\..*_proj$"),
        "one": W4.group("model.layers.0.mlp.up_proj"),
    }
    chooser = method(W4.config(format="mixed-precision", config_groups=groups))
    for name, scheme, expected in (
        ("model.layers.0.mlp.up_proj", W4, "W4A16"),
        ("model.layers.1.mlp.up_proj", FP8, "FP8 W8A8"),
        ("model.layers.1.self_attn.q_proj", W8A8, "W8A8"),
        ("lm_head", None, None),
    ):
        choice = chooser.choose(stored(scheme, name))
        assert (choice.method and choice.method.name) == (expected and f"compressed-tensors {expected}")


@pytest.mark.parametrize(
    ("ignore", "reason"),
    [
        (["model.layers.0.up_proj"], "on the config's ignore list"),
        (["re:.*up_proj"], "on the config's ignore list (re:.*up_proj)"),
        ([], "not quantized in the checkpoint"),
        (None, "not quantized in the checkpoint"),
    ],
)
def test_unquantized_modules(ignore: list[str] | None, reason: str) -> None:
    choice = method(W4.config(ignore=ignore)).choose(stored(None, "model.layers.0.up_proj"))
    assert (choice.method, choice.reason) == (None, reason)


def test_a_tied_head_stays_unquantized() -> None:
    module = StoredModule("lm_head", {}, 128, 96, is_head=True, is_tied=True)
    choice = method(W4.config()).choose(module)
    assert (choice.method, choice.reason) == (None, "tied to the embedding, which is not quantized")


def test_parts_fuse_where_their_schemes_agree(tmp_path: Path) -> None:
    groups = {"a": W4.group("re:.*(q|k)"), "b": W8.group("re:.*v")}
    layers = {"q": make_ct_layer(W4), "k": make_ct_layer(W4, 1), "v": make_ct_layer(W8, 2)}
    loaded = load_linear(tmp_path, method(W4.config(config_groups=groups)), layers)
    assert len(loaded.linear.weights) == 2
    x = torch.randn(2, 128, dtype=torch.float64)
    expected = torch.cat([x @ layer.weight.t() for layer in layers.values()], 1)
    torch.testing.assert_close(loaded.linear(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("status", ["compressed", "frozen", None])
def test_the_tensors_and_not_the_status_say_whether_weights_are_quantized(status: str | None) -> None:
    """Tools called compressed weights "frozen" for a while."""
    chooser = method(FP8.config(quantization_status=status))
    assert chooser.choose(stored(FP8, "model.up_proj")).method is not None
    module = stored(FP8, "model.up_proj")
    floats = {**module.tensors, "weight": StoredTensor((96, 128), "bfloat16")}
    with pytest.raises(
        QuantizationError, match="'weight' is bfloat16 and 'weight_scale' .*save_compressed=True"
    ):
        chooser.choose(replace(module, tensors=floats))


def test_older_spellings() -> None:
    block = FP8.group()
    block["weights"] |= {"strategy": "block", "block_structure": "64x32"}  # type: ignore[operator]  # a dict of JSON
    block["input_activations"] = None
    implied = W4.group()
    implied["weights"]["strategy"] = None  # type: ignore[index]  # a dict of JSON
    for group in (block, implied):
        config = W4.config(config_groups={"group_0": group}, sparsity_config={"format": "dense"})
        method(config | {"transform_config": None, "kv_cache_scheme": None})


@pytest.mark.parametrize(
    "format",
    [
        "nvfp4-pack-quantized",
        "mxfp4-pack-quantized",
        "mxfp8-quantized",
        "marlin-24",
        "sparse-24-bitmask",
        "dense",
        None,
    ],
)
def test_formats_that_are_not_served(format: str | None) -> None:
    group = W4.group() | {"format": format}
    with pytest.raises(QuantizationError, match=r"group_0.format=.* expected one of pack-quantized, .*W4A16"):
        method(
            W4.config(
                format="mixed-precision" if format is None else format, config_groups={"group_0": group}
            )
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme=.*expected null"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config=.*expected no sparsity"),
        ({"transform_config": {"config_groups": {"R1": {}}}}, "transform_config=.*expected no transforms"),
        ({"config_groups": {}}, "config_groups is empty"),
        ({"config_groups": {"W4A16": ["Linear"]}}, "W4A16=.*must be a JSON object"),
        ({"config_groups": {"g": W4.group() | {"targets": []}}}, "targets is empty"),
        ({"config_groups": {"g": W4.group("re:(")}}, "not a regular expression"),
        ({"ignore": ["re:["]}, "not a regular expression"),
        ({"ignore": "lm_head"}, "must be a list of strings"),
    ],
)
def test_configs_that_are_not_served(change: dict[str, object], message: str) -> None:
    with pytest.raises(QuantizationError, match=message):
        method(W4.config(**change))


@pytest.mark.parametrize(
    ("scheme", "weights", "message"),
    [
        (W4, {"num_bits": 1}, "num_bits=1.*2 to 8 bits"),
        (W4, {"num_bits": 16}, "num_bits=16.*2 to 8 bits"),
        (W4, {"num_bits": "4"}, "num_bits='4' must be of type int"),
        (W4, {"num_bits": True}, "must be of type int"),
        (W4, {"type": "nf"}, "type='nf'.*int or float"),
        (W4, {"strategy": "tensor_group"}, "strategy='tensor_group'.*one of tensor, channel, group"),
        (W4, {"group_size": 0}, "group_size=0.*positive"),
        (W4, {"actorder": "random"}, "actorder='random'"),
        (FP8, {"num_bits": 4}, "num_bits=4.*8 bits of type float"),
        (FP8, {"symmetric": False}, "symmetric=False"),
        (FP8, {"strategy": "block"}, "block_structure=None"),
        (FP8, {"strategy": "block", "block_structure": [128]}, r"block_structure=\[128\] must be two"),
        (FP8, {"type": "int"}, "format='float-quantized'.*int weights"),
        (W8A8, {"strategy": "group", "group_size": 32}, "strategy group.*scale per channel or tensor"),
        (W8A8, {"symmetric": False}, "symmetric=False.*scale per channel"),
        (W8A8, {"type": "float"}, "format='int-quantized'.*float weights"),
    ],
)
def test_weights_that_are_not_served(scheme: Scheme, weights: dict[str, object], message: str) -> None:
    group = scheme.group()
    with pytest.raises(QuantizationError, match=message):
        method(scheme.config(config_groups={"g": group | {"weights": scheme.weights | weights}}))


@pytest.mark.parametrize(
    ("scheme", "inputs", "message"),
    [
        (W8A8, TOKEN | {"symmetric": False}, "symmetric=False.*without a zero point"),
        (W8A8, TOKEN | {"num_bits": 4}, "num_bits=4.*8 bits"),
        (W8A8, TENSOR | {"dynamic": True}, "strategy='tensor, dynamic=True'"),
        (W8A8, float_inputs(TOKEN), "input_activations.type='float'.*int, as the weights"),
        (FP8, TOKEN, "input_activations.type='int'.*float, as the weights"),
        (FP8, float_inputs(TOKEN) | {"strategy": "group", "group_size": 64}, "group_size=64"),
        (Scheme(4, "channel"), TOKEN, "4 bits.*8 bits, symmetric"),
    ],
)
def test_inputs_that_are_not_served(scheme: Scheme, inputs: dict[str, object], message: str) -> None:
    with pytest.raises(QuantizationError, match=message):
        method(scheme.config(config_groups={"g": scheme.group() | {"input_activations": inputs}}))


def test_outputs_are_not_rounded() -> None:
    with pytest.raises(QuantizationError, match="output_activations=.*expected null"):
        method(W4.config(config_groups={"g": W4.group() | {"output_activations": TENSOR}}))


ASYM = Scheme(symmetric=False)
ORDERED = Scheme(actorder="group")
STATIC = replace(W8A8, input_activations=TENSOR)


@pytest.mark.parametrize(
    ("scheme", "suffix"),
    [
        (W4, "weight_packed"),
        (W4, "weight_scale"),
        (ASYM, "weight_zero_point"),
        (W8A8, "weight"),
        (STATIC, "input_scale"),
        (FP8, "weight_scale"),
    ],
)
def test_missing_and_mismatched_tensors(tmp_path: Path, scheme: Scheme, suffix: str) -> None:
    chooser = method(scheme.config())
    tensors = make_ct_layer(scheme).tensors
    size = (128, 96)
    lacking = {name: tensor for name, tensor in tensors.items() if name != suffix}
    with pytest.raises(QuantizationError, match=f"model.up: the checkpoint lacks .*{suffix!r}, expected"):
        load_linear(tmp_path, chooser, {"up": lacking}, size=size)
    tensor = tensors[suffix]
    wrong = tensors | {suffix: torch.cat([tensor.view(torch.uint8)] * 2).view(tensor.dtype)}
    with pytest.raises(QuantizationError, match=f"model.up: tensor {suffix!r} is .*, expected .*: check"):
        load_linear(tmp_path, chooser, {"up": wrong}, size=size)
    with pytest.raises(QuantizationError, match=f"tensor {suffix!r} is bool .*, expected"):
        load_linear(tmp_path, chooser, {"up": tensors | {suffix: tensor.to(torch.bool)}}, size=size)


def test_tensors_that_the_scheme_does_not_know(tmp_path: Path) -> None:
    tensors = make_ct_layer(ORDERED).tensors
    with pytest.raises(
        QuantizationError, match="the module has 'weight_g_idx', which its scheme does not know"
    ):
        load_linear(tmp_path, method(W4.config()), {"up": tensors}, size=(128, 96))


def test_groups_that_do_not_divide(tmp_path: Path) -> None:
    config = W4.config(config_groups={"g": replace(W4, group_size=48).group()})
    with pytest.raises(QuantizationError, match="128 inputs are not a multiple of the group size 48"):
        load_linear(tmp_path, method(config), {"up": make_ct_layer(W4)})


def test_contradictions_between_config_and_tensors() -> None:
    with pytest.raises(QuantizationError, match="ignore list names it .*found weight_packed"):
        method(W4.config(ignore=["up"])).choose(stored(W4, "up"))
    with pytest.raises(QuantizationError, match="no target of config_groups means it"):
        method(W4.config(config_groups={"g": W4.group("down")})).choose(stored(W4, "up"))


def test_what_only_reading_shows(tmp_path: Path) -> None:
    tensors = make_ct_layer(ORDERED).tensors
    damaged = {**tensors, "weight_g_idx": tensors["weight_g_idx"] + 1}
    with pytest.raises(
        QuantizationError, match=r"model.up.weight_g_idx: names groups 1 to 4: expected 0 to 3"
    ):
        load_linear(tmp_path, method(ORDERED.config()), {"up": damaged}, size=(128, 96))
    for size in ([96, 120], [95, 128]):
        shape = {**make_ct_layer(W4).tensors, "weight_shape": torch.tensor(size)}
        with pytest.raises(
            QuantizationError, match=rf"weight_shape: says \[{size[0]}, {size[1]}\]: expected \[96, 128\]"
        ):
            load_linear(tmp_path, method(W4.config()), {"up": shape}, size=(128, 96))


FP8_STATIC = replace(FP8, input_activations=float_inputs(TENSOR))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
@pytest.mark.parametrize(
    ("scheme", "suffix"),
    [
        (W4, "weight_scale"),
        (replace(W4, strategy="tensor"), "weight_scale"),
        (W8A8, "weight_scale"),
        (FP8, "weight_scale"),
        (replace(FP8, strategy="tensor"), "weight_scale"),
        (STATIC, "input_scale"),
        (FP8_STATIC, "input_scale"),
    ],
)
def test_scales_that_are_no_scales(tmp_path: Path, scheme: Scheme, suffix: str, value: float) -> None:
    """Only what inputs are divided by must be above 0."""
    tensors = make_ct_layer(scheme).tensors
    damaged = tensors[suffix].clone()
    damaged.view(-1)[0] = value
    layers = {"up": tensors | {suffix: damaged}}
    if math.isfinite(value) and suffix == "weight_scale":
        load_linear(tmp_path, method(scheme.config()), layers, size=(128, 96))
        return
    with pytest.raises(QuantizationError, match=rf"model.up.{suffix}: .*{suffix} .*expected .*fetch"):
        load_linear(tmp_path, method(scheme.config()), layers, size=(128, 96))


@pytest.mark.parametrize("scheme", [W4, W8A8, FP8])
def test_a_bias_that_the_model_does_not_have_is_zero(tmp_path: Path, scheme: Scheme) -> None:
    tensors = make_ct_layer(scheme).tensors
    load_linear(
        tmp_path, method(scheme.config()), {"up": tensors | {"bias": torch.zeros(96)}}, size=(128, 96)
    )
    with pytest.raises(QuantizationError, match=r"model.up.bias: .*no bias here; expected zeros"):
        load_linear(
            tmp_path, method(scheme.config()), {"up": tensors | {"bias": torch.ones(96)}}, size=(128, 96)
        )


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    layer = make_ct_layer(W4)
    load_linear(tmp_path, method(W4.config()), {"up": layer})
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="model.safetensors"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_scheme": "none"}, "activation_scheme='none'"),
        ({"activation_scheme": "static", "weight_block_size": [64, 32]}, "static without blocks"),
        ({"scale_fmt": "ue8m0"}, "scale_fmt='ue8m0'.*expected float"),
        ({"fmt": "e5m2"}, "fmt='e5m2'"),
        ({"format": "float8_e5m2"}, "format='float8_e5m2'"),
        ({"weight_scale_semantics": "log"}, "weight_scale_semantics='log'.*expected inverse"),
        ({"weight_scale_method": "column"}, "weight_scale_method='column'.*block or row or tensor"),
        ({"weight_scale_method": "block"}, "weight_block_size=None.*with weight_scale_method 'block'"),
        ({"weight_scale_method": "row", "weight_block_size": [64, 32]}, "expected null with .*'row'"),
        ({"scale_rounding": "up"}, "scale_rounding='up'"),
        ({"packing": "words"}, "packing='words'"),
        ({"input_transform": {"R": 1}}, "input_transform="),
        ({"kv_cache_scheme": "static"}, "kv_cache_scheme"),
        ({"weight_block_size": [0, 32]}, "weight_block_size"),
    ],
)
def test_fp8_configs_that_are_not_served(change: dict[str, object], message: str) -> None:
    with pytest.raises(QuantizationError, match=message):
        method({"quant_method": "fp8"} | change)


def test_fp8_needs_its_scales(tmp_path: Path) -> None:
    chooser = method({"quant_method": "fp8", "weight_block_size": [64, 32]})
    with pytest.raises(QuantizationError, match="lacks .*'weight_scale_inv', expected"):
        load_linear(tmp_path, chooser, {"up": make_ct_layer(FP8)})
    assert chooser.choose(stored(None, "up")).reason == "not quantized in the checkpoint"
