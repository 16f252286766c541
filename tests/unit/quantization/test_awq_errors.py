"""AWQ checkpoints that are not what they say: every message names what was found and what was expected."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest
import torch
from torch import Tensor

from awq_layers import AwqLayout, make_awq_layer
from gptq_layers import Slice, load_linear, method_of
from quire.api.errors import QuantizationError
from quire.api.quantization import StoredModule, StoredTensor
from quire_quantization.awq.config import parse_config

BOTH = ("awq", "awq-marlin")
CONFIGS = {
    "3 bits": ({"bits": 3}, r"bits=3; AWQ is served with 4 bits only"),
    "w_bit 8": ({"w_bit": 8}, r"bits=8; AWQ is served"),
    "bits no number": ({"bits": True}, r"bits=True"),
    "bits twice": ({"bits": 4, "w_bit": 8}, r"bits=4 and w_bit=8 contradict each other"),
    "groups twice": (
        {"group_size": 64, "q_group_size": 128},
        r"group_size=64 and q_group_size=128 contradict",
    ),
    "group size 0": ({"group_size": 0}, r"group_size=0 must be a positive integer, or -1"),
    "group size text": ({"group_size": "128"}, r"group_size='128' must be a positive integer"),
    "unknown version": (
        {"version": "gemx"},
        r"version='gemx' is not served; served are gemm, gemv, gemv_fast",
    ),
    "marlin on disk": (
        {"version": "marlin"},
        r"version='marlin' is not served.*save the checkpoint with .* gemm",
    ),
    "llm-awq": ({"backend": "llm-awq"}, r"version='llm-awq' is not served"),
    "versions differ": (
        {"version": "gemm", "checkpoint_format": "gemv"},
        r"version='gemm' and checkpoint_format='gemv' contradict each other",
    ),
    "pack_dtype": ({"pack_dtype": "int8"}, r"pack_dtype='int8'; version 'gemm' packs into int32"),
    "zero_point": ({"zero_point": "yes"}, r"zero_point='yes' must be true or false"),
    "skipped": ({"modules_to_not_convert": "lm_head"}, r"modules_to_not_convert='lm_head' must be a list"),
    "dynamic list": ({"dynamic": ["a"]}, r"dynamic=\['a'\]: it must map regular expressions"),
    "dynamic pattern": ({"dynamic": {"+:(": {}}}, r"dynamic has '\+:\(', which is no regular expression"),
    "dynamic rule": ({"dynamic": {"+:a": 3}}, r"dynamic\['\+:a'\]=3: it must be a JSON object"),
}


@pytest.mark.parametrize(("config", "message"), CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("plugins", [("awq",), BOTH], ids=["awq", "awq-marlin"])
def test_configs(config: dict[str, object], message: str, plugins: tuple[str, ...]) -> None:
    with pytest.raises(QuantizationError, match=message):
        method_of({"quant_method": "awq", **config}, plugins=plugins)


def test_first_rule_of_dynamic_decides() -> None:
    rules = {
        "-:a": {},
        "+:b": {"group_size": 64},
        "b.c": {"bits": 8},
        "c": {"group_size": -1},
        "d": {"bits": 8},
    }
    config = parse_config({"quant_method": "awq", "dynamic": rules})
    assert config.skip_reason("a.b") == "dynamic has '-:a'"
    assert [config.group_size_of(name, 512) for name in ("a", "b.c", "c", "x.b")] == [128, 64, 512, 128]
    with pytest.raises(QuantizationError, match=r"dynamic\['d'\]: bits=8; AWQ is served with 4 bits only"):
        config.group_size_of("d", 512)


def refusal(
    folder: Path, layout: AwqLayout, changes: dict[str, Tensor | None], **config: object
) -> pytest.ExceptionInfo[QuantizationError]:
    """The error of loading a layer whose tensors were replaced, or left out (None)."""
    layer = make_awq_layer(layout)
    tensors = {key: value for key, value in {**layer.tensors, **changes}.items() if value is not None}
    method = method_of(layout.config(**config), plugins=BOTH)
    with pytest.raises(QuantizationError) as caught:
        load_linear(folder, method, {"a": tensors}, size=(layout.inputs, layout.outputs))
    return caught


@pytest.mark.parametrize("version", ["gemm", "gemv", "gemv_fast"])
@pytest.mark.parametrize("suffix", ["qweight", "scales", "qzeros"])
def test_missing_tensors(tmp_path: Path, version: str, suffix: str) -> None:
    caught = refusal(tmp_path, AwqLayout(version), {suffix: None})
    lacks = f"lacks the module's tensor '{suffix}', expected .*; found .*: .*fetch the"
    assert caught.match(rf"model\.a: the checkpoint {lacks}")


@pytest.mark.parametrize("version", ["gemm", "gemv", "gemv_fast"])
@pytest.mark.parametrize("suffix", ["qweight", "scales", "qzeros"])
@pytest.mark.parametrize("dim", [0, 1])
def test_truncated_tensors(tmp_path: Path, version: str, suffix: str, dim: int) -> None:
    layout = AwqLayout(version)
    tensor = make_awq_layer(layout).tensors[suffix]
    cut = tensor.narrow(dim, 0, tensor.shape[dim] - 1).contiguous()
    caught = refusal(tmp_path, layout, {suffix: cut})
    found = rf"{str(cut.dtype)[6:]} \[{cut.shape[0]}, {cut.shape[1]}\]"
    assert caught.match(rf"model\.a: tensor '{suffix}' is {found}, expected ")


@pytest.mark.parametrize("version", ["gemm", "gemv", "gemv_fast"])
@pytest.mark.parametrize("suffix", ["qweight", "scales", "qzeros"])
def test_dtypes(tmp_path: Path, version: str, suffix: str) -> None:
    layout = AwqLayout(version)
    wrong = torch.zeros(make_awq_layer(layout).tensors[suffix].shape, dtype=torch.int64)
    caught = refusal(tmp_path, layout, {suffix: wrong})
    assert caught.match(
        rf"model\.a: tensor '{suffix}' is int64 \[\d+, \d+\], expected .*(int32|int16|float16)"
    )


@pytest.mark.parametrize(("stored", "label"), list(permutations(("gemm", "gemv", "gemv_fast"), 2)))
@pytest.mark.parametrize(("inputs", "outputs"), [(256, 96), (320, 320)])
def test_another_layout_than_the_label_is_named(
    tmp_path: Path, stored: str, label: str, inputs: int, outputs: int
) -> None:
    caught = refusal(tmp_path, AwqLayout(stored, inputs=inputs, outputs=outputs), {}, version=label)
    assert caught.match(rf"'qweight' is .*the weight is stored as version {stored} has it: mend `version`")


def test_the_label_is_checked_before_sizes(tmp_path: Path) -> None:
    """96 inputs, which gemv_fast could not have."""
    caught = refusal(tmp_path, AwqLayout(inputs=96), {}, version="gemv_fast")
    assert caught.match("the weight is stored as version gemm has it: mend `version`")


@pytest.mark.parametrize("suffix", ["scales", "qzeros"])
def test_tables_that_are_not_finite(tmp_path: Path, suffix: str) -> None:
    for value in (float("nan"), float("-inf")):
        layout = AwqLayout("gemv_fast" if suffix == "qzeros" else "gemm")
        table = make_awq_layer(layout).tensors[suffix]
        table[3, 5] = value
        caught = refusal(tmp_path, layout, {suffix: table})
        assert caught.match(rf"^model\.a\.{suffix}: 1 of \d+ {suffix} values are NaN or infinite")


def test_biases_of_layers_without_bias(tmp_path: Path) -> None:
    layer = make_awq_layer(AwqLayout())
    bias = torch.zeros(96, dtype=torch.float16)
    method = method_of(AwqLayout().config(), plugins=BOTH)
    layer.tensors["bias"] = bias
    loaded = load_linear(tmp_path, method, {"a": layer})
    x = torch.randn(2, 256, dtype=torch.float64)
    torch.testing.assert_close(loaded.linear(x), x @ layer.weight.t())
    bias[5] = 0.25
    with pytest.raises(QuantizationError, match=r"model\.a\.bias: the model has no bias here.*up to 0\.25"):
        load_linear(tmp_path, method, {"a": layer})


def test_both_kinds_of_weights(tmp_path: Path) -> None:
    caught = refusal(tmp_path, AwqLayout(), {"weight": torch.zeros(96, 256).half()})
    assert caught.match("both weight and qweight, qzeros, scales are stored")


def test_nothing_stored() -> None:
    module = StoredModule("model.a", {}, 256, 96)
    with pytest.raises(
        QuantizationError, match="lacks the module's tensor 'scales', .*found none of its tensors"
    ):
        method_of(AwqLayout().config(), plugins=BOTH).choose(module)


def test_groups_that_do_not_divide(tmp_path: Path) -> None:
    caught = refusal(tmp_path, AwqLayout(), {}, group_size=96)
    assert caught.match("model.a: its 256 inputs are not a multiple of the group size 96: mend group_size")


@pytest.mark.parametrize(
    ("version", "inputs", "outputs", "message"),
    [
        ("gemm", 64, 12, "12 outputs are not a multiple of 8"),
        ("gemv", 36, 8, "36 inputs are not a multiple of 8"),
        ("gemv_fast", 96, 8, "96 inputs are not a multiple of 64"),
        ("gemv_fast", 64, 6, "6 outputs are not a multiple of 4"),
    ],
)
def test_sizes_that_words_do_not_divide(version: str, inputs: int, outputs: int, message: str) -> None:
    tensors = make_awq_layer(AwqLayout(version, inputs=64, outputs=8)).tensors
    stored = {key: StoredTensor(tuple(value.shape), str(value.dtype)[6:]) for key, value in tensors.items()}
    method = method_of(AwqLayout(version, group_size=-1).config(), plugins=BOTH)
    with pytest.raises(QuantizationError, match=f"its {message}, which version '{version}' packs together"):
        method.choose(StoredModule("model.a", stored, inputs, outputs))


@pytest.mark.parametrize(
    ("version", "held", "message"),
    [
        ("gemm", Slice(slice(0, 12), slice(0, 256)), "12 outputs of part 'a', and version 'gemm' packs 8"),
        ("gemv", Slice(slice(0, 96), slice(0, 20)), "20 inputs from 0 on, and version 'gemv' packs 8"),
        (
            "gemv_fast",
            Slice(slice(0, 96), slice(96, 160)),
            "64 inputs from 96 on, and version 'gemv_fast' packs 64",
        ),
    ],
)
def test_slices_that_words_do_not_allow(tmp_path: Path, version: str, held: Slice, message: str) -> None:
    layout = AwqLayout(version)
    method = method_of(layout.config(), plugins=BOTH)
    with pytest.raises(QuantizationError, match=f"{message} together: use fewer ranks"):
        load_linear(tmp_path, method, {"a": make_awq_layer(layout)}, part_of=held)


def test_the_fallback_needs_the_plugin_awq(tmp_path: Path) -> None:
    message = r"\(.*\), and the plugin 'awq', which could, is off or not installed: enable it"
    layouts = [AwqLayout(group_size=20, inputs=100), AwqLayout("gemv_fast")]
    for layout in layouts:
        method = method_of(layout.config(), plugins=("awq-marlin",))
        with pytest.raises(QuantizationError, match=message):
            load_linear(tmp_path, method, {"a": make_awq_layer(layout)})
    layout = replace(layouts[0], group_size=32, inputs=256)
    method = method_of(layout.config(), plugins=("awq-marlin",))
    with pytest.raises(QuantizationError, match=message):
        held = Slice(slice(0, 96), slice(0, 44))
        load_linear(tmp_path, method, {"a": make_awq_layer(layout)}, part_of=held)
