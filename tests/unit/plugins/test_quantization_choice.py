"""Which quantization method serves a checkpoint: labels, priorities, settings, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from quire.api.batch import DeviceInfo
from quire.api.errors import ConfigError, PluginError, UnsupportedModelError
from quire.api.quantization import QuantizationRequest
from quire.api.specs import QuantizationSpec, Registration
from quire.plugins.quantization_choice import QuantizationChoice, choose_quantization, claim_order

DEVICE = DeviceInfo("cpu")


def entry(
    name: str,
    *labels: str,
    priority: int = 10,
    refusal: str | None = None,
    aliases: tuple[str, ...] = (),
    plugin: str = "",
) -> Registration:
    spec = QuantizationSpec(
        name,
        "nowhere:Method",
        quant_methods=labels,
        supports=lambda request: refusal,
        priority=priority,
        aliases=aliases,
    )
    return Registration(spec, plugin or name, f"dist-{name}", "1.0")


FORMATS = [
    entry("gptq", "gptq"),
    entry("gptq-marlin", "gptq", priority=20, aliases=("marlin",)),
    entry("awq", "awq"),
    entry("awq-marlin", "awq", priority=20, aliases=("marlin",), refusal="no tiles here"),
    entry("int8"),
]


def choose(
    label: str | None, setting: str | None = None, entries: list[Registration] | None = None
) -> QuantizationChoice | None:
    config = None if label is None else {"quant_method": label}
    request = QuantizationRequest(config, DEVICE, "bfloat16")
    return choose_quantization(FORMATS if entries is None else entries, request, setting, ["exl (denied)"])


@pytest.mark.parametrize(
    ("label", "setting", "served"),
    [
        ("gptq", None, "gptq-marlin"),
        ("GPTQ", None, "gptq-marlin"),
        ("gptq", "gptq", "gptq-marlin"),
        ("gptq", "auto_gptq", "gptq-marlin"),
        ("gptq", "gptq_marlin", "gptq-marlin"),
        ("gptq", "marlin", "gptq-marlin"),
        ("awq", None, "awq"),
        (None, "int8", "int8"),
        (None, "INT8", "int8"),
    ],
)
def test_the_method_that_serves(label: str | None, setting: str | None, served: str) -> None:
    choice = choose(label, setting)
    assert choice is not None and choice.served.name == served


def test_a_16_bit_checkpoint_stays_as_it_is() -> None:
    assert choose(None) is None


def test_every_claim_says_why_it_lost() -> None:
    choice = choose("gptq")
    assert choice is not None
    assert [(claim.name, claim.reason) for claim in choice.claims] == [
        ("gptq-marlin", None),
        ("gptq", "gptq-marlin claims it first (priority 20 over 10)"),
    ]
    choice = choose("awq")
    assert choice is not None
    assert [(claim.name, claim.reason) for claim in choice.claims] == [
        ("awq-marlin", "no tiles here"),
        ("awq", None),
    ]


@pytest.mark.parametrize(
    ("label", "setting", "error", "words"),
    [
        ("gptq", "awq", ConfigError, "quantization='awq' contradicts the checkpoint.*'gptq'.*leave it out"),
        ("gptq", "int8", ConfigError, "contradicts the checkpoint"),
        ("gptq", "gptw", ConfigError, "no quantization method is called 'gptw'; this checkpoint is gptq"),
        (None, "gptq", ConfigError, "reads checkpoints that are quantized already.*there are int8"),
        (None, "int9", ConfigError, "no quantization method is called 'int9': did you mean 'int8'"),
        ("awq", "awq-marlin", UnsupportedModelError, "no method serves it here: awq-marlin: no tiles here"),
        (
            "exl2",
            None,
            UnsupportedModelError,
            "quant_method='exl2', which no plugin serves; served are awq, gptq",
        ),
        ("exl2", None, UnsupportedModelError, r"Installed and off: exl \(denied\)"),
    ],
)
def test_what_is_refused(label: str | None, setting: str | None, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        choose(label, setting)


def test_equal_claims_of_two_plugins_are_settled_by_the_user() -> None:
    entries = [entry("mine", "gptq"), entry("yours", "gptq")]
    with pytest.raises(
        ConfigError, match="'mine' of plugin 'mine'.*'yours' of plugin 'yours'.*--no-plugin yours"
    ):
        choose("gptq", entries=entries)
    choice = choose("gptq", "yours", entries)
    assert choice is not None and choice.served.name == "yours"


@pytest.mark.parametrize("answer", [True, 3])
def test_supports_answers_with_a_reason(answer: object) -> None:
    # for mypy: wrong on purpose
    spec = QuantizationSpec("odd", "x:Y", quant_methods=("odd",), supports=lambda request: answer)  # type: ignore[arg-type,return-value]
    with pytest.raises(PluginError, match="supports\\(\\) answered"):
        choose("odd", entries=[Registration(spec, "odd", "odd", "1")])


def test_supports_that_raises_is_named() -> None:
    def fail(request: QuantizationRequest) -> str | None:
        raise KeyError("bits")

    spec = QuantizationSpec("odd", "x:Y", quant_methods=("odd",), supports=fail)
    with pytest.raises(PluginError, match="plugin 'odd'.*supports\\(\\) raised KeyError: 'bits'"):
        choose("odd", entries=[Registration(spec, "odd", "odd", "1")])


def test_the_order_of_claims() -> None:
    order: dict[str, list[Registration]] = claim_order(FORMATS)
    # for mypy: a spec with a name; short
    name: Callable[[Registration], str] = lambda item: item.spec.name  # type: ignore[attr-defined]  # noqa: E731
    assert {label: [name(item) for item in entries] for label, entries in order.items()} == {
        "": ["int8"],
        "awq": ["awq-marlin", "awq"],
        "gptq": ["gptq-marlin", "gptq"],
    }
