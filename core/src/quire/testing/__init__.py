"""What tests of Quire and of its plugins use: tiny models, forward passes, conformance suites.

A suite is a class: subclass it in a test file as `class TestMine(ModelConformance)`, set a few class
attributes, and pytest runs its checks; `quire plugins check NAME` runs the same without pytest. Names
are imported when they are first used, so this module imports neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quire.testing.attention_suite import AttentionBackendConformance
    from quire.testing.check import check_plugin
    from quire.testing.conformance import CheckResult, Conformance, ConformanceError
    from quire.testing.drafter_suite import DrafterConformance
    from quire.testing.model_engine_suite import ModelConformance
    from quire.testing.op_cases import OpCase
    from quire.testing.op_suite import OpConformance
    from quire.testing.parser_suite import TextParserConformance
    from quire.testing.policy_suite import PolicyConformance
    from quire.testing.processor_suite import LogitsProcessorConformance
    from quire.testing.quantization_base import PackedLinear
    from quire.testing.quantization_suite import QuantizationConformance

__all__ = [
    "AttentionBackendConformance",
    "CheckResult",
    "Conformance",
    "ConformanceError",
    "DrafterConformance",
    "LogitsProcessorConformance",
    "ModelConformance",
    "OpCase",
    "OpConformance",
    "PackedLinear",
    "PolicyConformance",
    "QuantizationConformance",
    "TextParserConformance",
    "check_plugin",
]

_MODULES = {
    "AttentionBackendConformance": "attention_suite",
    "CheckResult": "conformance",
    "Conformance": "conformance",
    "ConformanceError": "conformance",
    "DrafterConformance": "drafter_suite",
    "LogitsProcessorConformance": "processor_suite",
    "ModelConformance": "model_engine_suite",
    "OpCase": "op_cases",
    "OpConformance": "op_suite",
    "PackedLinear": "quantization_base",
    "PolicyConformance": "policy_suite",
    "QuantizationConformance": "quantization_suite",
    "TextParserConformance": "parser_suite",
    "check_plugin": "check",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
