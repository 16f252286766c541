"""Triton's paged attention: in Triton's interpreter, compiled for real targets, on a GPU, and how it is planned."""

from __future__ import annotations

import itertools
import json
import os

import pytest
from triton_runs import HERE, ROOT, run_cases, run_python

from quire.api.batch import DeviceInfo
from quire_kernels.paged_attention.triton_plans import HeadShape, make_plan
from quire_kernels.triton.plans import Device
from quire_kernels.triton_plugin import quire_register_attention_backends

pytest.importorskip("triton")

CASES = (
    "triton_attention_cases.py",
    *(
        str(HERE / f"triton_{name}_cases.py")
        for name in ("schedule", "replay", "attention_engine", "kv_write")
    ),
)
H200 = Device(processors=132, is_cuda=True)
SHAPES = [
    HeadShape(num_kv_heads, group, head_size, itemsize, is_quantized)
    for num_kv_heads, group, head_size, itemsize, is_quantized in itertools.product(
        (1, 8), (1, 3, 7, 8, 71, 128), (5, 64, 80, 96, 112, 128, 192, 256), (2, 4), (False, True)
    )
]


def test_in_the_interpreter() -> None:
    run_cases(*CASES, "-m", "not gpu and not nightly", interpret=True)


@pytest.mark.nightly
def test_more_in_the_interpreter() -> None:
    run_cases(*CASES, "-m", "nightly", interpret=True)


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    run_cases(*CASES, interpret=False)


@pytest.mark.nightly
def test_all_layers_compiled_for_real_targets() -> None:
    """`test_triton_linears.py` compiles two of them. `make nightly` has what they take recorded."""
    record = os.environ.get("QUIRE_AOT_RECORD")
    run_python(str(HERE / "triton_aot.py"), "--all", *(("--output", record) if record else ()))


def test_the_record_has_every_kernel_within_limits() -> None:
    record = json.loads((ROOT / "benchmarks" / "results" / "triton-aot.json").read_text())
    for target, shared_bytes in {"sm_80": 163 << 10, "sm_90": 227 << 10, "gfx942": 64 << 10}.items():
        kernels = [kernel for kernel in record["kernels"] if kernel["target"] == target]
        assert {"write_kv", "schedule_items", "attend", "merge_partials"} <= {k["kernel"] for k in kernels}
        attends = [kernel for kernel in kernels if kernel["kernel"] == "attend"]
        sizes = {word for kernel in attends for word in kernel["constants"].split() if "HEAD_SIZE" in word}
        assert sizes == {f"HEAD_SIZE={size}" for size in (64, 80, 96, 112, 128, 192, 256)}
        assert all(kernel["shared_bytes"] <= shared_bytes for kernel in attends)
        assert all(kernel["spilled_bytes"] <= 64 for kernel in attends)
        assert all(kernel["matrix_instructions"] for kernel in attends if "float16" in kernel["dtypes"])


@pytest.mark.parametrize("is_decode", [True, False])
@pytest.mark.parametrize("is_cuda", [True, False])
def test_plans_fit_their_heads(*, is_decode: bool, is_cuda: bool) -> None:
    for shape in SHAPES:
        plan = make_plan(shape, Device(132, is_cuda), is_decode=is_decode)
        assert plan.block_tokens * shape.group <= plan.block_rows
        assert plan.block_tokens == 1 or not is_decode
        for size in (plan.block_rows, plan.tile, shape.lanes):  # of matrix products
            assert size >= 16 and size.bit_count() == 1
        assert shape.head_size <= shape.lanes < 2 * max(16, shape.head_size)


def test_one_long_context_is_shared_out_to_all_processors() -> None:
    for shape in SHAPES:
        plan = make_plan(shape, H200, is_decode=True)
        items = min(plan.target_items, 131072 // plan.tile // plan.min_tiles)
        assert items * shape.num_kv_heads >= 2 * H200.processors
        assert items * shape.num_kv_heads < 5 * H200.processors, "more would only be merged"


def test_sizes_bound_the_grid() -> None:
    """It is what a step's numbers of rows and tokens allow, and as small as these allow."""
    shape = HeadShape(8, 4, 128, 2)
    assert make_plan(shape, H200, is_decode=True).most_blocks(256, 256) == 256
    prompts = make_plan(shape, H200, is_decode=False)
    assert prompts.block_tokens == 32
    assert prompts.most_blocks(1, 8192) == 8192 // 32 + 1
    assert prompts.most_blocks(3, 100) == 3 + 3


@pytest.mark.parametrize(
    ("device", "dtype", "reason"),
    [
        (DeviceInfo("cuda", capabilities=frozenset({"sm_90"})), "bfloat16", None),
        (DeviceInfo("cuda", capabilities=frozenset({"sm_80"})), "float32", None),
        (DeviceInfo("cuda", capabilities=frozenset({"gfx942"})), "float16", None),
        (DeviceInfo("cuda", capabilities=frozenset({"sm_75"})), "float16", "sm_80 or later, not sm_75"),
        (DeviceInfo("cuda", capabilities=frozenset({"sm_90"})), "float64", "float64"),
        (DeviceInfo("cpu"), "bfloat16", "needs a CUDA or ROCm device, not cpu"),
    ],
)
def test_support(device: DeviceInfo, dtype: str, reason: str | None) -> None:
    (spec,) = quire_register_attention_backends()
    assert spec.name == "triton-paged"
    found = spec.supports(device, dtype)  # type: ignore[arg-type]  # a name of a dtype
    assert found is None if reason is None else reason in (found or "")
