"""Which implementation the op table binds, and what it says of the others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from quire.api.batch import DeviceInfo, DTypeName
from quire.api.errors import DeviceError, PluginError
from quire.api.specs import AttentionBackendSpec, OpImplSpec, OpSpec, Registration
from quire.ops.backend_choice import BackendRequest, choose_attention_backend
from quire.ops.paged_attention import TorchPagedAttention
from quire.ops.specs import core_attention_backend_specs, core_op_specs
from quire.ops.table import OpTable
from quire.plugins.registry import resolve_factory

CPU = DeviceInfo("cpu")


def reference(x: int) -> str:
    return f"reference {x}"


def fast(x: int) -> str:
    return f"fast {x}"


def faster(x: int) -> str:
    return f"faster {x}"


def register(*specs: object, plugin: str = "core") -> list[Registration]:
    return [Registration(spec, plugin, f"quire-{plugin}", "1.0") for spec in specs]


def says(reason: str | None) -> Callable[[DeviceInfo, DTypeName], str | None]:
    return lambda device, dtype: reason


def table(*registrations: Registration) -> OpTable:
    return OpTable(registrations, CPU, "float32", resolve_factory)


OP = OpSpec("twist", "(Tensor x) -> Tensor", reference)


def test_the_best_supported_implementation_is_bound() -> None:
    ops = table(
        *register(OP),
        *register(
            OpImplSpec("twist", "a", fast, says(None), priority=5),
            OpImplSpec("twist", "b", faster, says("needs a GPU"), priority=9),
            OpImplSpec("twist", "c", faster, says(None), priority=1),
            plugin="kernels",
        ),
    )
    assert ops.twist(1) == "fast 1"
    (described,) = ops.describe()
    assert described.bound.name == "a" and described.bound.origin == "kernels (quire-kernels 1.0)"
    assert [(c.name, c.reason) for c in described.candidates] == [
        ("b", "needs a GPU"),
        ("a", None),
        ("c", "a has priority 5, this 1"),
        ("reference", "a has priority 5, this 0"),
    ]


def test_the_reference_serves_when_nothing_else_does() -> None:
    ops = table(*register(OP, OpImplSpec("twist", "b", faster, says("no"))))
    assert ops.twist(2) == "reference 2"
    assert "twist" in ops and "turn" not in ops


def test_supports_sees_device_and_dtype() -> None:
    seen: list[tuple[DeviceInfo, str]] = []

    def supports(device: DeviceInfo, dtype: DTypeName) -> str | None:
        seen.append((device, dtype))
        return None

    table(*register(OP, OpImplSpec("twist", "a", fast, supports)))
    assert seen == [(CPU, "float32")]


def test_unknown_ops_name_the_registered_ones() -> None:
    ops = table(*register(OP))
    with pytest.raises(PluginError, match="no op is called 'turn'; registered are twist"):
        _ = ops.turn
    assert not hasattr(ops, "turn")


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ((OP, OP), "the op 'twist' is registered by"),
        ((OpImplSpec("turn", "a", fast, says(None)),), "the op 'turn', which is not registered"),
        ((OP, *[OpImplSpec("twist", "a", fast, says(None))] * 2), "implementation 'a' of the op 'twist'"),
        ((OpSpec("lost", "() -> ()", "quire.nowhere:op"),), "cannot import the factory"),
    ],
)
def test_refuses(specs: tuple[object, ...], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        table(*register(*specs))


def test_every_core_op_resolves() -> None:
    ops = table(*register(*core_op_specs()))
    described = {entry.op: entry for entry in ops.describe()}
    assert {"rms_norm", "layer_norm", "rotary", "silu_and_mul", "gelu_new", "silu"} <= set(described)
    for name, entry in described.items():
        assert callable(getattr(ops, name)) and entry.bound.name == "reference"


def test_specs_import_no_torch() -> None:
    code = "import sys, quire.ops.specs as s; s.core_op_specs(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def choose(name: str | None, *specs: AttentionBackendSpec) -> object:
    known = register(*core_attention_backend_specs(), *specs)
    return choose_attention_backend(known, BackendRequest(CPU, "bfloat16", name), resolve_factory)


def test_attention_backends_are_chosen_by_support_priority_and_name() -> None:
    class Good(TorchPagedAttention):
        pass

    good = AttentionBackendSpec("good", Good, says(None), priority=5)
    absent = AttentionBackendSpec("absent", lambda: "absent", says("no GPU here"), priority=50)
    assert isinstance(choose(None), TorchPagedAttention)
    assert isinstance(choose(None, good, absent), Good)
    assert not isinstance(choose("torch-paged", good), Good)
    with pytest.raises(PluginError, match="registered are good, torch-paged"):
        choose("best", good)
    with pytest.raises(DeviceError, match="absent: no GPU here"):
        choose("absent", absent)


def test_backends_that_do_not_quantize_are_passed_over_and_refused_by_name() -> None:
    class Plain(TorchPagedAttention):
        pass

    known = register(
        *core_attention_backend_specs(), AttentionBackendSpec("plain", Plain, says(None), priority=50)
    )
    for dtype, kind in (("auto", Plain), ("int8", TorchPagedAttention), ("fp8_e4m3", TorchPagedAttention)):
        request = BackendRequest(CPU, "bfloat16", None, dtype)  # type: ignore[arg-type]  # a name of a dtype
        assert type(choose_attention_backend(known, request, resolve_factory)) is kind
    refusal = (
        "bfloat16 with kv_cache_dtype=int8 on cpu: plain: its KV caches are auto, not int8; "
        "leave kv_cache_dtype out, or attention_backend"
    )
    with pytest.raises(DeviceError, match=refusal):
        choose_attention_backend(known, BackendRequest(CPU, "bfloat16", "plain", "int8"), resolve_factory)


def fails(device: DeviceInfo, dtype: DTypeName) -> str | None:
    raise KeyError("planted")


@pytest.mark.parametrize(
    ("supports", "message"),
    [
        (fails, r"kernels \(quire-kernels 1.0\), mine: supports\(\) raised KeyError: 'planted'"),
        (
            lambda device, dtype: True,
            r"kernels .*, mine: supports\(\) answered True: it must be None or the reason",
        ),
    ],
)
def test_a_broken_supports_is_named_and_never_taken_for_a_refusal(
    supports: Callable[[DeviceInfo, DTypeName], str | None], message: str
) -> None:
    with pytest.raises(PluginError, match=message):
        table(*register(OP), *register(OpImplSpec("twist", "mine", fast, supports), plugin="kernels"))
    entries = register(AttentionBackendSpec("mine", "a:b", supports), plugin="kernels")
    with pytest.raises(PluginError, match=message):
        choose_attention_backend(entries, BackendRequest(CPU, "float32"), resolve_factory)


def test_equal_priorities_are_called_so() -> None:
    specs = [OpImplSpec("twist", name, fast, says(None)) for name in ("b", "a")]
    (described,) = table(*register(OP, *specs)).describe()
    assert described.bound.name == "a"
    assert described.candidates[1].reason == "a has the same priority, 10, and its name comes first"


def test_what_cannot_be_called_is_no_implementation() -> None:
    spec = OpImplSpec("twist", "mine", "math:pi", says(None))
    with pytest.raises(
        PluginError, match=r"'math:pi' of kernels .*, mine of the op 'twist', is not callable"
    ):
        table(*register(OP), *register(spec, plugin="kernels"))


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda: 1 / 0, "'mine' of kernels .*: its factory failed: ZeroDivisionError"),
        (lambda: None, "'mine' of kernels .*: its factory gave None, expected an AttentionBackend"),
    ],
)
def test_a_broken_attention_backend_is_named(factory: Callable[[], object], message: str) -> None:
    entries = register(AttentionBackendSpec("mine", factory, says(None)), plugin="kernels")
    with pytest.raises(PluginError, match=message):
        choose_attention_backend(entries, BackendRequest(CPU, "float32"), resolve_factory)
