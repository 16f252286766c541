"""The suites catch planted defects, many of which a comparison of whole prompts with transformers lets pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import attention_defects
import model_defects
import other_defects
import pytest
from naive_attention import NaiveAttention

from quire.api.errors import QuireError
from quire.testing import (
    AttentionBackendConformance,
    Conformance,
    ConformanceError,
    LogitsProcessorConformance,
    ModelConformance,
    OpConformance,
    PolicyConformance,
)
from quire.testing.model_base import max_difference
from quire.testing.op_suite import core_spec

TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 0.01,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}
LLAMA = {"architecture": "LlamaForCausalLM", "configs": {"tiny": TINY}}
BIAS = {"architecture": "LlamaForCausalLM", "configs": {"bias": {**TINY, "attention_bias": True}}}
ROPE = {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0}
DYNAMIC = {
    "architecture": "LlamaForCausalLM",
    "configs": {"dynamic": {**TINY, "max_position_embeddings": 20, "rope_parameters": ROPE}},
}
WINDOW = {"architecture": "MistralForCausalLM", "configs": {"window": {**TINY, "sliding_window": 7}}}
GPT2 = {
    "architecture": "GPT2LMHeadModel",
    "configs": {"tiny": {"vocab_size": 97, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}},
}
MPT = {
    "architecture": "MptForCausalLM",
    "configs": {"tiny": {"vocab_size": 97, "max_seq_len": 64, "d_model": 32, "n_layers": 2, "n_heads": 4}},
}
WHOLE = "test_whole_prompts_in_float64"
PARTS = "test_prompts_in_parts"


@dataclass(frozen=True)
class Defect:
    """Something wrong, and the check that says so.

    Attributes:
        attributes: of the suite that finds it.
        is_subtle: a comparison of whole prompts lets it pass.
    """

    name: str
    check: str
    suite: type[Conformance]
    attributes: dict[str, Any] = field(hash=False)
    is_subtle: bool = False

    def make_suite(self) -> type[Conformance]:
        return type(f"Planted{self.name}", (self.suite,), self.attributes)

    def __str__(self) -> str:
        return self.name


def _model(name: str, check: str, base: dict[str, Any] = LLAMA, *, is_subtle: bool = False) -> Defect:
    attributes = {**base, "factory": getattr(model_defects, name)}
    return Defect(name, check, ModelConformance, attributes, is_subtle)


def _served(name: str, check: str, base: dict[str, Any] = LLAMA, *, is_subtle: bool = True) -> Defect:
    attributes = {**base, "attention_backend": getattr(attention_defects, name)}
    return Defect(name, check, ModelConformance, attributes, is_subtle)


def _attention(name: str, check: str) -> Defect:
    backend = getattr(attention_defects, name)
    return Defect(f"{name}Alone", check, AttentionBackendConformance, {"backend": backend})


def _op(name: str, op: str, check: str) -> Defect:
    attributes = {"spec": core_spec(op), "implementation": getattr(other_defects, name)}
    return Defect(name, check, OpConformance, attributes)


def _processor(name: str, check: str) -> Defect:
    attributes = {
        "processor": getattr(other_defects, name),
        "arguments": [3, 4],
        "wrong_arguments": (17, ["a"]),
    }
    return Defect(name, check, LogitsProcessorConformance, attributes)


def _policy(name: str, check: str) -> Defect:
    return Defect(name, check, PolicyConformance, {"policy": getattr(other_defects, name)})


ARITHMETIC = [
    _model("WrongRopePairs", WHOLE),
    _model("IgnoresTheta", WHOLE),
    _model("IgnoresBias", WHOLE, BIAS),
    _model("SwapsGateAndUp", WHOLE),
    _model("SwapsKeyAndValue", WHOLE),
    _model("IgnoresEps", WHOLE),
    _model("TiesTheHead", WHOLE),
    _model("NoFinalNorm", WHOLE),
    _model("ForgetsATensor", "test_every_tensor_is_used"),
    _model("PositionsFromTwo", WHOLE, GPT2),
    _model("AlibiBackwards", WHOLE, MPT),
    _served("WrongKVHead", WHOLE, is_subtle=False),
    _served("NoScale", WHOLE, is_subtle=False),
    _served("WindowOneTooWide", WHOLE, WINDOW, is_subtle=False),
]
SUBTLE = [
    _served("StaleFork", "test_fork"),
    _served("CopiesKeysOnly", "test_fork"),
    _served("CopiesFirstLayerOnly", "test_fork"),
    _served("CopiesBackwards", "test_fork"),
    _served("WrongSlotAtChunkBoundary", PARTS),
    _served("NeighboursBlock", "test_mixed_batches"),
    _served("PaddingWritten", "test_mixed_batches"),
    _served("SeesFutureInMixedBatches", "test_mixed_batches"),
    _served("WindowPerChunk", PARTS, WINDOW),
    _served("NoScaleInDecode", PARTS),
    _served("ReadsPastTheEnd", PARTS),
    _served("MasksByMultiplying", "test_unused_slots_are_not_read"),
    _served("WritesRowByRow", "test_prefix_hits"),
    _served("ReadsBeforeItWrites", "test_prefix_hits"),
    _served("RoundsCache", PARTS),
    _served("BlocksOfFour", "test_block_and_chunk_sizes"),
    _served("DecodesInAnotherOrder", "test_mixed_batches"),
    _served("OneLengthForAllDecodes", "test_block_and_chunk_sizes"),
    _served("AlibiFromTheChunk", PARTS, MPT),
    _model("PositionsFromTheChunk", PARTS, is_subtle=True),
    _model("PositionsOffAfterAHit", "test_prefix_hits", is_subtle=True),
    _model("CountsPositionsItself", "test_one_after_another", is_subtle=True),
    _model("KeepsRopeRows", PARTS, is_subtle=True),
    _model("MixesRows", "test_neighbours", is_subtle=True),
    _model("RotaryTableTooShort", "test_longest_context", is_subtle=True),
    _model("RopeLensOfTheChunk", PARTS, DYNAMIC, is_subtle=True),
    _model("LastRequestsLogits", "test_block_and_chunk_sizes", is_subtle=True),
]
OTHERS = [
    _attention("WrongKVHead", "test_heads_and_block_sizes"),
    _attention("NoScale", "test_dtypes"),
    _attention("IgnoresWindow", "test_windows"),
    _attention("WindowOneTooWide", "test_windows"),
    _attention("WindowPerChunk", "test_windows"),
    _attention("CapsAfterAlibi", "test_alibi"),
    _attention("StaleFork", "test_copied_blocks"),
    _attention("CopiesKeysOnly", "test_copied_blocks"),
    _attention("CopiesFirstLayerOnly", "test_copied_blocks"),
    _attention("PaddingWritten", "test_requests_that_rest"),
    _attention("NeighboursBlock", "test_many_rows"),
    _attention("SeesFutureInMixedBatches", "test_dtypes"),
    _attention("MasksByMultiplying", "test_blocks_used_before"),
    _attention("WritesRowByRow", "test_blocks_written_and_read_in_one_step"),
    _attention("ChangesItsQuery", "test_dtypes"),
    _op("eps_outside_the_root", "rms_norm", "test_equals_the_reference"),
    _op("normalizes_in_place", "rms_norm", "test_inputs_are_unchanged"),
    _op("gives_its_input_back", "rms_norm", "test_aliases_as_declared"),
    _op("ignores_strides", "rms_norm", "test_equals_the_reference"),
    _op("leaves_the_tail", "silu_and_mul", "test_equals_the_reference"),
    _op("trusts_fresh_memory", "silu_and_mul", "test_every_value_is_written"),
    _op("up_before_gate", "silu_and_mul", "test_equals_the_reference"),
    _op("remembers_shapes", "silu_and_mul", "test_equals_the_reference"),
    _op("reuses_a_buffer", "silu_and_mul", "test_calls_are_independent"),
    _op("rotates_copies", "rotary", "test_aliases_as_declared"),
    _op("rotates_by_halves_only", "rotary", "test_equals_the_reference"),
    _processor("RaisesTypeError", "test_refuses_wrong_arguments"),
    _processor("CountsCalls", "test_is_pure"),
    _processor("SharesState", "test_is_pure"),
    _processor("ExtendsHistory", "test_reads_history_only"),
    _processor("ReachesOtherRows", "test_own_row_only"),
    _processor("BansEverything", "test_leaves_a_token"),
    _processor("WidensToFloat64", "test_shape_and_dtype"),
    _processor("MakesNaN", "test_leaves_a_token"),
    _policy("RandomKeys", "test_is_deterministic"),
    _policy("KeysOfNaN", "test_keys_are_numbers"),
    _policy("KeysOfText", "test_keys_are_numbers"),
    _policy("Ties", "test_orders_every_pair"),
    _policy("LastComeFirstServed", "test_leaves_none_behind"),
    _policy("ChangesParams", "test_leaves_requests_alone"),
    _policy("RunningGoLast", "test_leaves_none_behind"),
    _policy("PreemptedGoLast", "test_gets_on_when_blocks_are_scarce"),
]
EVERY = [*ARITHMETIC, *SUBTLE, *OTHERS]


@pytest.mark.parametrize("defect", EVERY, ids=str)
def test_the_named_check_finds_it(defect: Defect) -> None:
    suite = defect.make_suite()
    try:
        with pytest.raises(ConformanceError):
            getattr(suite(), defect.check)()
    finally:
        suite.teardown_class()


@pytest.mark.parametrize("defect", SUBTLE, ids=str)
def test_a_comparison_of_whole_prompts_does_not_find_it(defect: Defect) -> None:
    assert plain_difference(defect) <= 1e-9


@pytest.mark.parametrize("defect", [d for d in ARITHMETIC if d.check == WHOLE], ids=str)
def test_a_comparison_of_whole_prompts_finds_arithmetic(defect: Defect) -> None:
    assert plain_difference(defect) > 1e-6


def plain_difference(defect: Defect) -> float:
    """The largest difference between logits of whole prompts and transformers', in float64."""
    suite = defect.make_suite()
    try:
        model = suite()
        [variant] = model.variants()  # type: ignore[attr-defined]  # of the suite
        differences = []
        for length in (12, 27):
            ids = model.token_ids(variant, length, seed=length)  # type: ignore[attr-defined]  # of the suite
            expected = model.reference(variant.folder, ids)  # type: ignore[attr-defined]  # of the suite
            # for mypy: of the suite
            differences.append(max_difference(model.sequence(variant).logits(ids), expected))  # type: ignore[attr-defined]
        return max(differences)
    finally:
        suite.teardown_class()


def test_there_are_enough_of_each_kind() -> None:
    assert len(EVERY) >= 20 and len({defect.name for defect in EVERY}) == len(EVERY)
    assert len(SUBTLE) >= 10 and all(defect.is_subtle for defect in SUBTLE)
    assert len(ARITHMETIC) >= 5
    assert {defect.suite for defect in EVERY} == {
        AttentionBackendConformance,
        LogitsProcessorConformance,
        ModelConformance,
        OpConformance,
        PolicyConformance,
    }


class TestNaiveAttention(AttentionBackendConformance):
    """What the defects are planted in is right."""

    backend = NaiveAttention


class TestLlamaOverNaiveAttention(ModelConformance):
    """Likewise, in an engine."""

    architecture = "LlamaForCausalLM"
    configs = {"tiny": TINY, "dynamic": DYNAMIC["configs"]["dynamic"]}  # type: ignore[index]  # a dict of dicts
    attention_backend = NaiveAttention


class TestBans(LogitsProcessorConformance):
    """Likewise."""

    processor = other_defects.Bans
    arguments = [3, 4]
    wrong_arguments = (17, ["a"])


class TestFcfs(PolicyConformance):
    """Likewise."""

    policy = other_defects.Fcfs


@pytest.mark.nightly
@pytest.mark.parametrize("defect", EVERY, ids=str)
def test_whole_suites_find_it(defect: Defect) -> None:
    """All checks run, none breaks the run, and the named one is among those that fail."""
    results = defect.make_suite().run(defect.name)
    failed = {result.check for result in results if result.status == "failed"}
    assert defect.check in failed
    assert isinstance(ConformanceError("x"), QuireError)
