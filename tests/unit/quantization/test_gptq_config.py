"""What GPTQ's quantization_config may say, which module it is about, and what is refused with a reason."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gptq_layers import BOTH, Layout, load_linear, make_layer, method_of
from quire.api.batch import DeviceInfo
from quire.api.errors import ConfigError, QuantizationError, UnsupportedModelError
from quire.api.quantization import QuantizationRequest, StoredModule, StoredTensor
from quire_quantization.gptq import marlin_plugin, plugin
from quire_quantization.gptq.config import ModuleParameters, parse_config

BASE = Layout().config()
Tensors = dict[str, Tensor]


def stored(
    name: str, layout: Layout, *, is_head: bool = False, **changes: StoredTensor | None
) -> StoredModule:
    tensors = {
        suffix: StoredTensor(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for suffix, tensor in make_layer(layout).tensors.items()
    }
    kept = {key: value for key, value in (tensors | changes).items() if value is not None}
    return StoredModule(name, kept, layout.inputs, layout.outputs, is_head=is_head)


def plain(name: str, *, is_head: bool = False) -> StoredModule:
    return StoredModule(name, {"weight": StoredTensor((96, 128), "bfloat16")}, 128, 96, is_head=is_head)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 5}, "bits=5: supported are 2, 3, 4, 8"),
        ({"bits": "4"}, "bits='4': supported are"),
        ({"bits": True}, "bits=True: supported are"),
        ({"bits": None}, "lacks 'bits'"),
        ({"group_size": None}, "lacks 'group_size'"),
        ({"group_size": 0}, "group_size=0: it must be positive, or -1"),
        ({"group_size": -2}, "group_size=-2: it must be positive"),
        ({"group_size": 32.0}, "group_size=32.0: it must be positive"),
        ({"desc_act": "yes"}, "desc_act='yes': it must be true or false"),
        ({"sym": 1}, "sym=1: it must be true or false"),
        ({"lm_head": "no"}, "lm_head='no': it must be true or false"),
        ({"pack_dtype": "int16"}, "pack_dtype='int16': only 'int32' is read"),
        ({"method": "awq"}, "method='awq': only 'gptq' is read"),
        ({"checkpoint_format": "marlin"}, "stored in Marlin's GPU layout"),
        ({"is_marlin_format": True}, "stored in Marlin's GPU layout"),
        ({"checkpoint_format": "bitblas"}, "checkpoint_format='bitblas': supported are gptq, gptq_v2"),
        ({"checkpoint_format": None, "format": "gguf"}, "format='gguf': supported are"),
        ({"format": "gptq_v2"}, "contradicts itself: checkpoint_format='gptq' and format='gptq_v2'"),
        ({"dynamic": ["a"]}, "dynamic=.*must map regular expressions"),
        ({"dynamic": {"+:(": {}}}, r"dynamic has '\+:\(', which is no regular expression"),
        ({"dynamic": {"a": 4}}, r"dynamic\['a'\]=4: it must be a JSON object"),
        ({"dynamic": {"a": {"bits": 6}}}, r"dynamic\['a'\]\.bits=6: supported are"),
        ({"dynamic": {"a": {"group_size": 0}}}, r"dynamic\['a'\]\.group_size=0"),
        ({"dynamic": {"a": {"sym": "x"}}}, r"dynamic\['a'\]\.sym='x'"),
        ({"modules_in_block_to_quantize": [["a"], [3]]}, "it must be a list of module names"),
    ],
)
@pytest.mark.parametrize("plugins", [("gptq",), BOTH])
def test_configs_that_are_refused(changes: dict[str, object], message: str, plugins: tuple[str, ...]) -> None:
    config = {key: value for key, value in (BASE | changes).items() if value is not None}
    with pytest.raises(QuantizationError, match=message):
        method_of(config, plugins=plugins)


def test_defaults_and_spellings() -> None:
    config = parse_config(
        {"quant_method": "gptq", "bits": 4, "group_size": -1, "damp_percent": 0.01, "dynamic": None}
    )
    assert config.parameters == ModuleParameters(4, None, desc_act=False, sym=True)
    assert (config.zero_offset, config.lm_head, config.block_modules) == (1, False, None)
    assert parse_config(BASE | {"checkpoint_format": None, "format": "gptq_v2"}).zero_offset == 0
    assert parse_config(BASE | {"checkpoint_format": "GPTQ_v2", "format": "gptq_V2"}).zero_offset == 0
    assert parse_config(BASE | {"checkpoint_format": "GPTQ", "method": "GPTQ"}).zero_offset == 1


@pytest.mark.parametrize(
    ("meta", "by_word"),
    [
        (None, False),
        ({}, False),
        ("gptqmodel", False),
        ({"quantizer": ["auto_gptq:0.7.1"]}, False),
        ({"quantizer": ["optimum:1.24.0", "gptqmodel:2.2.0"]}, True),
        ({"quantizer": "GPTQModel:1.0.0"}, True),
    ],
)
def test_the_tool_is_known_from_meta(meta: object, by_word: bool) -> None:
    assert parse_config(BASE | {"meta": meta}).by_word == by_word


def test_the_first_rule_that_matches_from_the_start_decides() -> None:
    rules = {
        r"+:model\.layers\.0\..*down": {"bits": 8, "group_size": -1},
        r"-:.*\.layers\.1\.": {},
        r".*\.down": {"desc_act": True, "sym": False},
        r"layers": {"bits": 2},
    }
    config = parse_config(BASE | {"dynamic": rules})
    first, third, skipped, other = (
        config.parameters_of(f"model.layers.{name}") for name in ("0.down", "2.down", "1.down", "0.up")
    )
    assert first == ModuleParameters(8, None, desc_act=False, sym=True)
    assert third == ModuleParameters(4, 32, desc_act=True, sym=False)
    assert skipped == other == config.parameters
    assert config.skip_reason("model.layers.1.down", is_head=False) == r"dynamic has '-:.*\\.layers\\.1\\.'"


def test_keys_match_the_beginning_of_a_name_unless_they_end_it() -> None:
    """As in GPTQModel 7.6, for keys without special characters too."""
    rules = {"^model.layers.1$": {"bits": 2}, "model.layers.1": {"bits": 3}, "layers": {"bits": 8}}
    config = parse_config(BASE | {"dynamic": rules})
    names = ("model.layers.1", "model.layers.1.down", "model.layers.12", "model.layers.2")
    assert [config.parameters_of(name).bits for name in names] == [2, 3, 3, 4]


def test_a_skipped_module_that_is_quantized_is_read_as_one(tmp_path: Path) -> None:
    config = BASE | {"dynamic": {"-:.*a": {}}}
    layer = make_layer(Layout())
    loaded = load_linear(tmp_path, method_of(config), {"a": layer})
    assert loaded.modules[0].method == "gptq-marlin"
    assert loaded.modules[0].reason == "quantized in the checkpoint although dynamic has '-:.*a'"
    x = torch.randn(2, 128, dtype=torch.float64)
    torch.testing.assert_close(loaded.linear(x), x @ layer.weight.t())
    small = method_of(config | {"group_size": 4}).choose(stored("m.a", Layout(4, 4)))
    assert small.reason.startswith(
        "quantized in the checkpoint although dynamic has '-:.*a'; the group size 4 is"
    )


def test_modules_in_16_bits_say_why() -> None:
    config = BASE | {
        "dynamic": {r"-:.*\.1\.": {}, ".*gate": {"bits": 8}},
        "modules_in_block_to_quantize": [["attn.q"], ["mlp.up"]],
    }
    method = method_of(config)
    tied = StoredModule("lm_head", {}, 128, 96, is_head=True, is_tied=True)
    reasons = {
        "m.1.attn.q": "dynamic has '-:.*\\\\.1\\\\.'",
        "m.0.mlp.down": "modules_in_block_to_quantize does not name it",
        "m.0.attn.q": "not quantized in the checkpoint",
        "m.0.gate": "not quantized in the checkpoint",
    }
    for name, reason in reasons.items():
        choice = method.choose(plain(name))
        assert (choice.method, choice.reason) == (None, reason)
    assert method.choose(plain("lm_head", is_head=True)).reason == "lm_head is false"
    assert method.choose(tied).reason == "tied to the embedding, which is not quantized"
    wanted = method_of(BASE | {"lm_head": True})
    assert wanted.choose(plain("lm_head", is_head=True)).reason == "not quantized in the checkpoint"


@pytest.mark.parametrize("lm_head", [False, True])
def test_a_quantized_head_is_read_as_one(lm_head: bool) -> None:
    choice = method_of(BASE | {"lm_head": lm_head}).choose(stored("lm_head", Layout(), is_head=True))
    assert choice.method is not None
    reason = "" if lm_head else "quantized in the checkpoint although lm_head is false"
    assert (choice.method.op, choice.reason) == ("w4a16_linear", reason)


def test_modules_fall_back_one_by_one_with_a_reason() -> None:
    config = BASE | {
        "dynamic": {".*a": {"bits": 3}, ".*b": {"group_size": 4}, ".*c": {"bits": 8, "group_size": 4}}
    }
    method = method_of(config)
    layouts = {"a": Layout(3), "b": Layout(4, 4), "c": Layout(8, 4), "d": Layout(4)}
    found = {name: method.choose(stored(f"m.{name}", layout)) for name, layout in layouts.items()}
    assert {name: choice.method.op for name, choice in found.items() if choice.method is not None} == {
        "a": "gptq_linear",
        "b": "gptq_linear",
        "c": "w8a16_linear",
        "d": "w4a16_linear",
    }
    assert found["a"].reason == "tiles hold 4 or 8 bits, not 3"
    assert found["b"].reason == "the group size 4 is not a multiple of 8"
    assert found["c"].reason == found["d"].reason == ""


def test_marlin_claims_where_some_layer_goes_into_tiles() -> None:
    (spec,) = marlin_plugin.quire_register_quantizations()
    assert spec.supports is not None
    requests = [
        (BASE, True),
        (BASE | {"bits": 3}, False),
        (BASE | {"bits": 3, "dynamic": {"a": {"bits": 8}, "-:b": {}}}, True),
        (BASE | {"bits": "four", "dynamic": [1]}, False),
    ]
    for config, is_served in requests:
        answer = spec.supports(QuantizationRequest(config, DeviceInfo("cpu"), "float32"))
        assert (answer is None) == is_served
        assert answer is None or "no layer of the checkpoint has them" in answer
    (plain_spec,) = plugin.quire_register_quantizations()
    assert plain_spec.priority < spec.priority


def test_fallback_needs_the_plugin_gptq() -> None:
    method = method_of(BASE | {"dynamic": {".*a": {"bits": 3}}}, plugins=("gptq-marlin",))
    assert method.choose(stored("m.b", Layout())).method is not None
    with pytest.raises(QuantizationError, match="the plugin 'gptq' that brings it is off: switch it on"):
        method.choose(stored("m.a", Layout(3)))
    with pytest.raises(UnsupportedModelError, match="no layer of the checkpoint has them"):
        method_of(BASE | {"bits": 3}, plugins=("gptq-marlin",))


def test_settings_that_name_a_method() -> None:
    assert method_of(BASE, setting="gptq_marlin").choose(stored("m.a", Layout())).method is not None
    with pytest.raises(ConfigError, match="this checkpoint is gptq, served by gptq"):
        method_of(BASE, setting="gptq-marlin", plugins=("gptq",))


def lacks(suffix: str) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.__delitem__(suffix)


def becomes(suffix: str, change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({suffix: change(tensors[suffix]).contiguous()})


@pytest.mark.parametrize("plugins", [("gptq",), BOTH])
@pytest.mark.parametrize(
    ("changes", "damage", "message"),
    [
        (
            {},
            lacks("scales"),
            "lacks the module's tensor 'scales', expected float16 *; found g_idx, qweight, qzeros: check bits",
        ),
        ({}, lacks("qzeros"), "lacks the module's tensor 'qzeros', expected int32 [4, 12]"),
        ({}, lacks("qweight"), "lacks the module's tensor 'qweight', expected int32 [16, 96]"),
        (
            {"desc_act": True},
            lacks("g_idx"),
            "lacks the module's tensor 'g_idx', expected int32 [128]*desc_act is true; check",
        ),
        (
            {"bits": 8},
            None,
            "'qweight' is int32 [16, 96], expected int32 [32, 96]*it is that of 4 bits; check bits",
        ),
        (
            {"group_size": 48},
            None,
            "its 128 inputs are not a multiple of the group size 48: mend group_size",
        ),
        ({"group_size": 64}, None, "'qzeros' is int32 [4, 12], expected int32 [2, 12]: check bits"),
        ({}, becomes("qweight", lambda t: t[:-1]), "'qweight' is int32 [15, 96], expected int32 [16, 96]"),
        ({}, becomes("qweight", lambda t: t.t()), "'qweight' is int32 [96, 16], expected int32 [16, 96]"),
        (
            {},
            becomes("qweight", torch.flatten),
            "'qweight' is int32 [1536], expected int32 [16, 96]",
        ),
        ({}, becomes("qzeros", lambda t: t[:, :-1]), "'qzeros' is int32 [4, 11], expected int32 [4, 12]"),
        (
            {},
            becomes("scales", lambda t: t[:, 1:]),
            "'scales' is float16 [4, 95]*or float32 [4, 96]",
        ),
        ({}, becomes("g_idx", lambda t: t[1:]), "'g_idx' is int32 [127], expected int32 [128]"),
        (
            {},
            becomes("scales", lambda t: t.int()),
            "'scales' is int32 [4, 96], expected float16 or bfloat16 or",
        ),
        ({}, becomes("qweight", lambda t: t.long()), "'qweight' is int64 [16, 96], expected int32"),
        ({}, becomes("qzeros", lambda t: t.half()), "'qzeros' is float16 [4, 12], expected int32"),
    ],
)
def test_tensors_that_are_refused(
    tmp_path: Path,
    changes: dict[str, object],
    damage: Callable[[Tensors], None] | None,
    message: str,
    plugins: tuple[str, ...],
) -> None:
    tensors = make_layer(Layout()).tensors
    if damage is not None:
        damage(tensors)
    method = method_of(BASE | changes, plugins=plugins)
    pattern = r"^model\.a: .*" + ".*".join(re.escape(piece) for piece in re.split(r"(?<=[\] ])\*", message))
    with pytest.raises(QuantizationError, match=pattern):
        load_linear(tmp_path, method, {"a": tensors}, size=(128, 96))


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout(4, -1, inputs=100), "100 inputs of 4 bits do not fill whole words: expected a multiple of 8"),
        (Layout(3, -1, inputs=48), "48 inputs of 3 bits do not fill whole words: expected a multiple of 32"),
        (Layout(4, outputs=92), "92 outputs of 4 bits do not fill whole words"),
    ],
)
def test_sizes_that_do_not_fill_words(layout: Layout, message: str) -> None:
    shapes = {"qweight": (1, 1), "qzeros": (1, 1), "scales": (1, 1)}
    tensors = {key: StoredTensor(shape, "int32") for key, shape in shapes.items()}
    module = StoredModule("m.a", tensors, layout.inputs, layout.outputs)
    with pytest.raises(QuantizationError, match=message):
        method_of(layout.config()).choose(module)


def test_desc_act_needs_no_g_idx_with_one_group() -> None:
    layout = Layout(group_size=-1, desc_act=True)
    choice = method_of(layout.config()).choose(stored("m.a", layout, g_idx=None))
    assert choice.method is not None
    assert choice.method.fuses
