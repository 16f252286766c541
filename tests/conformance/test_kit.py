"""The kit itself: results, skips, lazy imports, a reference of the author's, and check_plugin."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import SkipTest

import drafter_defects
import other_defects
import pytest
import torch
from attention_defects import NoScale
from model_defects import NoFinalNorm
from naive_attention import NaiveAttention
from torch import Tensor

from quire.api.batch import ForwardBatch
from quire.api.config import PluginSettings
from quire.api.errors import PluginError, QuireError
from quire.api.hookspecs import hookimpl
from quire.api.protocols import AttentionParams
from quire.api.specs import (
    AttentionBackendSpec,
    Capabilities,
    CommandSpec,
    DrafterSpec,
    LogitsProcessorSpec,
    ModelSpec,
    OpImplSpec,
    OpSpec,
    PluginInfo,
    PolicySpec,
)
from quire.loading.checkpoint import open_checkpoint
from quire.plugins import PluginHost
from quire.testing import (
    CheckResult,
    Conformance,
    ConformanceError,
    ModelConformance,
    PolicyConformance,
    check_plugin,
)
from quire.testing.attention_cases import attend_naively
from quire.testing.hf_configs import derive_configs, find_hf_class
from quire.testing.toy_model import ToyModel, write_toy_checkpoint


class Three(Conformance):
    def test_first(self) -> None:
        self.note("one", "two")

    def test_second(self) -> None:
        raise SkipTest("not here")

    def test_third(self) -> None:
        raise ConformanceError("wrong")

    def test_fourth(self) -> None:
        raise ZeroDivisionError("oops")


class Four(Three):
    def test_fifth(self) -> None:
        self.note("two", "three")

    test_fourth = None  # type: ignore[assignment]  # taken out by a subclass


def test_checks_become_results_in_order() -> None:
    results = Three.run("it")
    assert [(r.check, r.status, r.detail) for r in results] == [
        ("test_first", "passed", "one, two"),
        ("test_second", "skipped", "not here"),
        ("test_third", "failed", "wrong"),
        ("test_fourth", "failed", "ZeroDivisionError: oops"),
    ]
    assert results[0].suite == "Conformance it" and results[0].traits == ("one", "two")
    assert Four.checks() == ["test_first", "test_second", "test_third", "test_fifth"]
    last = Four.run()[-1]
    assert (last.check, last.detail, last.traits) == ("test_fifth", "three", ("one", "two", "three"))


def test_what_checks_share_is_dropped_with_the_suite() -> None:
    made: list[int] = []

    class Sharing(Conformance):
        def test_a(self) -> None:
            self.shared("x", lambda: made.append(1))

        def test_b(self) -> None:
            self.shared("x", lambda: made.append(2))

    Sharing.run()
    assert made == [1]
    Sharing.run()
    assert made == [1, 1]


def test_conformance_errors_are_quire_errors_and_no_assertions() -> None:
    assert issubclass(ConformanceError, QuireError) and not issubclass(ConformanceError, AssertionError)


def test_importing_the_kit_imports_no_torch() -> None:
    code = (
        "import sys, quire.testing\n"
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)), dir(quire.testing))\n"
        "from quire.testing import CheckResult\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[]") and "ModelConformance" in done.stdout
    with pytest.raises(AttributeError, match="NoSuite"):
        import quire.testing

        quire.testing.NoSuite  # type: ignore[attr-defined]  # to be refused


class TestAReferenceOfTheAuthor(ModelConformance):
    """An architecture that transformers does not have, against a dozen lines of plain torch."""

    architecture = "QuireToyForCausalLM"
    factory = ToyModel
    configs = {"small": {"vocab_size": 31}, "wide": {"vocab_size": 97}}

    def write_checkpoint(self, fields: Mapping[str, Any], folder: Path) -> None:
        write_toy_checkpoint(folder, vocab_size=fields["vocab_size"])

    def reference(
        self, folder: Path, token_ids: Sequence[int], *, prompt_len: int | None = None, dtype: str = "float64"
    ) -> Tensor:
        checkpoint = open_checkpoint(folder)

        def tensor(name: str) -> Tensor:
            return checkpoint.get(f"{name}.weight").to(getattr(torch, dtype))

        x = tensor("embedding")[list(token_ids)]
        query, key, value = ((x @ tensor(f"layers.0.{part}").T).view(-1, 2, 8) for part in ("q", "k", "v"))
        params = AttentionParams(2, 2, 8, 8**-0.5, alibi_slopes=(0.5, 0.1))
        x = x + attend_naively(query, key, value, params).to(x.dtype)
        return x @ tensor("lm_head").T


def test_what_a_spec_excludes_is_not_tried() -> None:
    steps: list[tuple[int, ...]] = []

    class Remembers(NaiveAttention):
        def prepare(self, batch: ForwardBatch) -> object:
            steps.append(tuple(batch.context_lens))
            return super().prepare(batch)

    class Limited(TestAReferenceOfTheAuthor):
        configs = {"small": {"vocab_size": 31}}
        attention_backend = Remembers
        capabilities = Capabilities(prefix_caching=False, chunked_prefill=False)

    results = {result.check: result for result in Limited.run()}
    assert {name for name, result in results.items() if result.status != "passed"} == {"test_prefix_hits"}
    assert "exclude prefix caching" in results["test_prefix_hits"].detail
    assert len(steps) > 50


def test_a_function_as_an_attribute_is_not_bound() -> None:
    def make(context: object) -> other_defects.Fcfs:
        return other_defects.Fcfs(context)  # type: ignore[arg-type]  # not looked at

    class Made(PolicyConformance):
        policy = make

    assert {result.status for result in Made.run()} == {"passed"}


class Brought:
    """A plugin with something wrong in each thing that it brings, and something that has no suite."""

    @hookimpl
    def quire_plugin_info(self) -> PluginInfo:
        return PluginInfo(api=">=1,<2")

    @hookimpl
    def quire_register_models(self) -> list[ModelSpec]:
        return [ModelSpec("LlamaForCausalLM", NoFinalNorm)]

    @hookimpl
    def quire_register_attention_backends(self) -> list[AttentionBackendSpec]:
        return [
            AttentionBackendSpec("unscaled", NoScale, lambda device, dtype: None),
            AttentionBackendSpec("elsewhere", NaiveAttention, lambda device, dtype: "needs a GPU"),
        ]

    @hookimpl
    def quire_register_ops(self) -> list[OpSpec | OpImplSpec]:
        own = OpSpec("twice", "(Tensor x, Tensor y) -> Tensor", lambda x, y: x + y)
        halves = other_defects.rotates_by_halves_only
        return [own, OpImplSpec("rotary", "halves", halves, lambda device, dtype: None)]

    @hookimpl
    def quire_register_policies(self) -> list[PolicySpec]:
        return [PolicySpec("lifo", other_defects.LastComeFirstServed)]

    @hookimpl
    def quire_register_logits_processors(self) -> list[LogitsProcessorSpec]:
        return [LogitsProcessorSpec("bans", other_defects.CountsCalls)]

    @hookimpl
    def quire_register_drafters(self) -> list[DrafterSpec]:
        return [
            DrafterSpec("leaks", drafter_defects.LeaksWhenReleased),
            DrafterSpec("needs-a-model", drafter_defects.Counting, settings=drafter_defects.ModelSettings),
        ]

    @hookimpl
    def quire_register_commands(self) -> list[CommandSpec]:
        return [CommandSpec("hello", "says hello", "nowhere:Nothing")]


@pytest.fixture(scope="module")
def results() -> list[CheckResult]:
    host = PluginHost.discover(PluginSettings(autoload=False), extra_plugins=[Brought()])
    seen: list[CheckResult] = []
    found = check_plugin(host, "Brought", seen.append)
    assert seen == [result for result in found if result.check != "-"], "each check's result as it comes"
    return found


@pytest.mark.parametrize(
    ("suite", "check"),
    [
        ("ModelConformance LlamaForCausalLM", "test_whole_prompts_in_float64"),
        ("AttentionBackendConformance unscaled", "test_dtypes"),
        ("OpConformance rotary/halves", "test_equals_the_reference"),
        ("PolicyConformance lifo", "test_leaves_none_behind"),
        ("LogitsProcessorConformance bans", "test_is_pure"),
        ("DrafterConformance leaks", "test_salts_are_apart"),
    ],
)
def test_check_plugin_finds_what_is_wrong(results: list[CheckResult], suite: str, check: str) -> None:
    [result] = [result for result in results if (result.suite, result.check) == (suite, check)]
    assert result.status == "failed" and result.detail and result.seconds > 0
    others = [other for other in results if other.suite == suite and other.status == "passed"]
    assert others, "one defect does not fail every check"


@pytest.mark.parametrize(
    ("suite", "reason"),
    [
        ("attention backend elsewhere", "needs a GPU"),
        ("command hello", "no suite for the kind 'command'"),
        ("OpConformance twice", "override `cases`"),
        ("DrafterConformance needs-a-model", "no defaults: give `settings`"),
    ],
)
def test_check_plugin_says_what_it_could_not_check(
    results: list[CheckResult], suite: str, reason: str
) -> None:
    found = [result for result in results if result.suite == suite]
    assert found and all(result.status == "skipped" and reason in result.detail for result in found)


def test_check_plugin_wants_an_enabled_plugin() -> None:
    host = PluginHost.discover(PluginSettings(deny=("llama",)))
    with pytest.raises(PluginError, match="no plugin is called 'lama'"):
        check_plugin(host, "lama")
    with pytest.raises(PluginError, match="'llama' is disabled"):
        check_plugin(host, "llama")


@pytest.mark.parametrize(
    ("architecture", "variants"),
    [
        ("LlamaForCausalLM", {"mqa", "mha", "tied", "attention_bias=True", "head_dim", "rope-dynamic"}),
        ("GPT2LMHeadModel", {"3 heads", "untied", "scale_attn_weights=False"}),
        ("MistralForCausalLM", {"window", "mqa"}),
        ("StableLmForCausalLM", {"use_qkv_bias=True", "qk_layernorm=True", "use_parallel_residual=True"}),
    ],
)
def test_configs_are_derived_from_the_fields_that_there_are(architecture: str, variants: set[str]) -> None:
    derived = derive_configs(find_hf_class(architecture))
    assert next(iter(derived)) == "base" and variants <= set(derived)
    for fields in derived.values():
        sizes = [value for name, value in fields.items() if "hidden_size" in name or name == "n_embd"]
        assert all(isinstance(size, int) and size <= 64 for size in sizes)


def test_an_unknown_architecture_is_said_to_be_one() -> None:
    class Unknown(ModelConformance):
        architecture = "NoSuchForCausalLM"
        factory = ToyModel

    results = Unknown.run()
    assert results[0].status == "failed" and "override `reference`" in results[0].detail
