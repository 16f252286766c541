"""Linear layers of named parts, and the LM head."""

from __future__ import annotations

from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from quire.api.errors import CheckpointError, ShapeError
from quire.nn.linear import Linear, LinearShape, LMHead
from quire.nn.unquantized import UnquantizedMethod, is_prepacked, make_product, padded_rows

Layer = TypeVar("Layer", bound=Linear)
CPU = torch.device("cpu")
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def make_shape(dtype: torch.dtype, *, has_bias: bool = False, **parts: int) -> LinearShape:
    return LinearShape(24, tuple(parts.items()), has_bias, dtype, CPU)


def unquantized(layer: Layer) -> Layer:
    layer.assign([UnquantizedMethod()] * len(layer.shape.parts))
    return layer


def fill(layer: Linear | LMHead, part: str | None) -> dict[str, Tensor]:
    """Random values in a part's slots; what was put there, by suffix."""
    values = {}
    for slot in layer.tensor_slots(part):
        slot.target.copy_(torch.randn(slot.target.shape))
        values[slot.suffix] = slot.target.clone()
    return values


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 65])
def test_parts_lie_side_by_side(dtype: torch.dtype, has_bias: bool, rows: int) -> None:
    layer = unquantized(Linear(make_shape(dtype, has_bias=has_bias, q=40, k=8, v=8)))
    parts = {name: fill(layer, name) for name in ("k", "v", "q")}
    layer.process_after_loading()
    x = torch.randn(rows, 24, dtype=dtype)
    result = layer(x)
    assert result.dtype == dtype
    split = result.split([40, 8, 8], dim=-1)
    for name, found in zip(("q", "k", "v"), split, strict=True):
        expected = x.double() @ parts[name]["weight"].double().t()
        if has_bias:
            expected = expected + parts[name]["bias"].double()
        tolerance = TOLERANCES[dtype]
        torch.testing.assert_close(found.double(), expected, atol=tolerance * 5, rtol=tolerance)


def test_slots_say_where_tensors_go() -> None:
    layer = unquantized(Linear(make_shape(torch.float32, has_bias=True, gate=6, up=10)))
    weight, bias = layer.tensor_slots("up")
    assert (weight.suffix, weight.target.shape, weight.output_dim, weight.input_dim) == (
        "weight",
        (10, 24),
        0,
        1,
    )
    assert (bias.suffix, bias.target.shape, bias.output_dim, bias.input_dim) == ("bias", (10,), 0, None)


def test_a_single_part_needs_no_name_and_unknown_parts_are_refused() -> None:
    single = unquantized(Linear(make_shape(torch.float32, out=6)))
    assert single.tensor_slots(None)[0].target.shape == (6, 24)
    several = unquantized(Linear(make_shape(torch.float32, q=6, k=2)))
    for part in (None, "v"):
        with pytest.raises(CheckpointError, match="the layer's parts are q, k"):
            several.tensor_slots(part)


def test_packing_frees_the_plain_weight() -> None:
    layer = unquantized(Linear(make_shape(torch.bfloat16, out=6)))
    fill(layer, None)
    layer.process_after_loading()
    kept = sum(parameter.numel() for parameter in layer.parameters())
    assert kept == (0 if is_prepacked(torch.bfloat16, CPU) else 6 * 24)


def test_calling_too_early_says_so() -> None:
    with pytest.raises(RuntimeError, match="process_after_loading"):
        unquantized(Linear(make_shape(torch.float32, out=6)))(torch.zeros(1, 24))


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_tied_head_uses_the_embeddings_weight(dtype: torch.dtype) -> None:
    embedding = nn.Embedding(50, 24, dtype=dtype).requires_grad_(False)
    head = unquantized(LMHead(make_shape(dtype, lm_head=50), embedding))
    assert not list(head.tensor_slots(None)) and not list(head.parameters())
    head.process_after_loading()
    x = torch.randn(3, 24, dtype=dtype)
    expected = x.double() @ embedding.weight.double().t()
    torch.testing.assert_close(head(x).double(), expected, atol=0.2, rtol=TOLERANCES[dtype])


def test_untied_head_loads_like_a_linear() -> None:
    head = unquantized(LMHead(make_shape(torch.float64, has_bias=True, lm_head=50)))
    values = fill(head, None)
    head.process_after_loading()
    x = torch.randn(3, 24, dtype=torch.float64)
    torch.testing.assert_close(head(x), x @ values["weight"].t() + values["bias"])


def test_ties_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match="no bias"):
        LMHead(make_shape(torch.float32, has_bias=True, lm_head=50), nn.Embedding(50, 24))
    head = unquantized(LMHead(make_shape(torch.float32, lm_head=50), nn.Embedding(51, 24)))
    with pytest.raises(ShapeError, match=r"\(51, 24\); it needs \(50, 24\)"):
        head.process_after_loading()


def test_product_of_a_row_view() -> None:
    weight = torch.randn(16, 24, dtype=torch.bfloat16)
    wide = torch.randn(5, 48, dtype=torch.bfloat16)
    result = make_product(weight, None)[0](wide[:, 24:])
    torch.testing.assert_close(result, wide[:, 24:] @ weight.t(), atol=0.1, rtol=0.05)


def test_few_numbers_of_rows_are_compiled_for() -> None:
    found = [padded_rows(rows) for rows in range(1, 2049)]
    assert len(set(found)) < 64
    assert all(rows <= padded < rows + max(8, rows / 8) for rows, padded in enumerate(found, 1))
    assert found[:16] == list(range(1, 17))


class Products(TorchDispatchMode):
    """Sees what packed products are given."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.mkldnn._linear_pointwise.default:
            self.inputs.append(args[0].clone())
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not is_prepacked(torch.bfloat16, CPU), reason="no packed products on this CPU")
def test_products_are_padded_with_zeros() -> None:
    product, _ = make_product(torch.randn(40, 33, dtype=torch.bfloat16), None)
    for rows in (1, 16, 17, 24, 65):
        with Products() as seen:
            product(torch.ones(rows, 33, dtype=torch.bfloat16))
        [given] = seen.inputs
        assert given.shape == (padded_rows(rows), 33)
        assert given[:rows].eq(1).all() and given[rows:].eq(0).all()


@pytest.mark.parametrize("rows", [1, 16, 17, 24, 65, 129, 300])
def test_a_product_has_the_rows_that_it_is_given(rows: int) -> None:
    weight = torch.randn(40, 33, dtype=torch.bfloat16)
    x = torch.randn(rows, 33, dtype=torch.bfloat16)
    result = make_product(weight.clone(), None)[0](x)
    assert result.shape == (rows, 40) and result.is_contiguous()
    torch.testing.assert_close(result.double(), x.double() @ weight.double().t(), atol=0.1, rtol=0.02)
