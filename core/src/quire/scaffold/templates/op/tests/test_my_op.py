"""The shipped suite: values, aliases, strides, poisoned memory, independence of calls and rows."""

from __future__ import annotations

from quire_my_op.plugin import SPEC

from quire.testing import OpConformance


class TestReference(OpConformance):
    spec = SPEC
    dtypes = ("float64", "float32", "bfloat16")


class TestFast(OpConformance):
    spec = SPEC
    implementation = "quire_my_op.fast:my_op"
    dtypes = ("float32", "bfloat16", "float16")  # those that `supports` accepts
