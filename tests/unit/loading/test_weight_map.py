"""Executing a weight map: every tensor to one place, every parameter filled, everything else refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from quire.api.errors import CheckpointError
from quire.api.specs import WeightMap, WeightPart
from quire.loading.checkpoint import open_checkpoint
from quire.loading.weight_map import load_weights
from quire.nn.linear import Linear, LinearShape
from quire.nn.unquantized import UnquantizedMethod


class Net(nn.Module):
    """Two layers, each a fused linear of parts a (2 rows) and b (1 row) and a norm."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        shape = LinearShape(3, (("a", 2), ("b", 1)), True, dtype, torch.device("cpu"))
        self.layers = nn.ModuleList()
        for _ in range(2):
            layer = nn.Module()
            layer.fused = Linear(shape)
            layer.fused.assign([UnquantizedMethod()] * 2)
            layer.norm = nn.LayerNorm(3, dtype=dtype)
            self.layers.append(layer)

    def weights(self, index: int) -> dict[str, Tensor]:
        return dict(self.layers[index].fused.weights[0].named_parameters())


def weight_map(**changes: object) -> WeightMap:
    modules = {
        "layers.{i}.fused": (WeightPart("h.{i}.a", "a"), WeightPart("h.{i}.b", "b")),
        "layers.{i}.norm": (WeightPart("h.{i}.ln"),),
    }
    return WeightMap(**{"modules": modules, "num_layers": 2, **changes})


def tensors(prefix: str = "") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    result = {}
    for i in range(2):
        for name, shape in (("a", (2, 3)), ("b", (1, 3)), ("ln", (3,))):
            result[f"{prefix}h.{i}.{name}.weight"] = torch.randn(shape, generator=generator)
            result[f"{prefix}h.{i}.{name}.bias"] = torch.randn(shape[:1], generator=generator)
    return result


def load(folder: Path, stored: dict[str, Tensor], map_: WeightMap, dtype: torch.dtype = torch.float32) -> Net:
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, folder / "model.safetensors")
    net = Net(dtype)
    for parameter in net.parameters():
        parameter.data.fill_(torch.nan)
    load_weights(net, map_, open_checkpoint(folder))
    return net


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_fills_parts_and_plain_modules(tmp_path: Path, prefix: str) -> None:
    stored = tensors(prefix)
    net = load(tmp_path, stored, weight_map(prefixes=("", "transformer.")))
    for i in range(2):
        parts = [f"{prefix}h.{i}.{part}" for part in ("a", "b")]
        assert torch.equal(net.weights(i)["weight"], torch.cat([stored[f"{part}.weight"] for part in parts]))
        assert torch.equal(net.weights(i)["bias"], torch.cat([stored[f"{part}.bias"] for part in parts]))
        assert torch.equal(net.layers[i].norm.weight, stored[f"{prefix}h.{i}.ln.weight"])


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize(("rows_a", "rows_b"), [((0, 1), (2,)), ((2, 0), (1,))])
def test_takes_permuted_rows_of_a_shared_source(
    tmp_path: Path, rows_a: tuple[int, ...], rows_b: tuple[int, ...], is_transposed: bool
) -> None:
    fused = {f"h.{i}.ab.weight": torch.randn(3, 3) for i in range(2)}
    fused |= {f"h.{i}.ab.bias": torch.randn(3) for i in range(2)}
    stored = {name: t.t() if is_transposed and t.dim() == 2 else t for name, t in fused.items()}
    stored |= {name: t for name, t in tensors().items() if ".ln." in name}
    modules = {
        "layers.{i}.fused": (
            WeightPart("h.{i}.ab", "a", is_transposed, rows_a),
            WeightPart("h.{i}.ab", "b", is_transposed, rows_b),
        ),
        "layers.{i}.norm": (WeightPart("h.{i}.ln"),),
    }
    net = load(tmp_path, stored, weight_map(modules=modules))
    for i in range(2):
        assert torch.equal(net.weights(i)["weight"], fused[f"h.{i}.ab.weight"][list(rows_a + rows_b)])
        assert torch.equal(net.weights(i)["bias"], fused[f"h.{i}.ab.bias"][list(rows_a + rows_b)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_converts_the_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    stored = tensors()
    net = load(tmp_path, stored, weight_map(), dtype)
    assert torch.equal(net.weights(0)["weight"][:2], stored["h.0.a.weight"].to(dtype))


def test_refuses_values_that_overflow_float16(tmp_path: Path) -> None:
    stored = tensors()
    stored["h.1.b.weight"][0, 1] = 1e5
    with pytest.raises(
        CheckpointError, match=r"'h\.1\.b\.weight'.*float16 cannot; load the model in bfloat16"
    ):
        load(tmp_path, stored, weight_map(), torch.float16)


def test_names_missing_and_unexpected_tensors(tmp_path: Path) -> None:
    stored = tensors()
    stored["h.0.c.weight"] = stored.pop("h.0.a.weight")
    with pytest.raises(CheckpointError) as error:
        load(tmp_path, stored, weight_map())
    assert "it lacks 'h.0.a.weight' for layers.0.fused (part a)" in str(error.value)
    assert "the model has no place for 'h.0.c.weight'" in str(error.value)


def test_counts_many_missing_tensors(tmp_path: Path) -> None:
    stored = {name: tensor for name, tensor in tensors().items() if "h.0" in name}
    with pytest.raises(CheckpointError, match="and 1 more"):
        load(tmp_path, stored, weight_map())


def test_ignores_named_tensors_only_whole(tmp_path: Path) -> None:
    stored = {**tensors("t."), "t.h.0.mask": torch.ones(2)}
    load(tmp_path, stored, weight_map(prefixes=("", "t."), ignored=(r"h\.\d+\.mask",)))
    with pytest.raises(CheckpointError, match=r"no place for 't\.h\.0\.mask'"):
        load(tmp_path, stored, weight_map(prefixes=("", "t."), ignored=(r"h\.\d+\.ma",)))


def test_refuses_both_spellings_of_a_prefix(tmp_path: Path) -> None:
    stored = {**tensors("t."), **tensors()}
    with pytest.raises(CheckpointError, match=r"no place for 't\.h\.0"):
        load(tmp_path, stored, weight_map(prefixes=("", "t.")))


@pytest.mark.parametrize("shape", [(2, 4), (3, 3), (6,), (2, 3, 1), (3, 2)])
def test_refuses_wrong_shapes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    stored = {**tensors(), "h.1.a.weight": torch.zeros(shape)}
    with pytest.raises(
        CheckpointError, match=r"'h\.1\.a\.weight' has shape .*; layers\.1\.fused .part a. needs \[2, 3\]"
    ):
        load(tmp_path, stored, weight_map())


def test_refuses_wrong_shapes_of_shared_sources(tmp_path: Path) -> None:
    modules = {
        "layers.{i}.fused": (
            WeightPart("h.{i}.ab", "a", True, (0, 1)),
            WeightPart("h.{i}.ab", "b", True, (2,)),
        ),
        "layers.{i}.norm": (WeightPart("h.{i}.ln"),),
    }
    stored = {name: t for name, t in tensors().items() if ".ln." in name}
    for i in range(2):
        stored |= {f"h.{i}.ab.weight": torch.zeros(3, 4), f"h.{i}.ab.bias": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"has shape \[3, 4\]; .* needs \[3, 3\]"):
        load(tmp_path, stored, weight_map(modules=modules))


@pytest.mark.parametrize("dtype", [torch.int32, torch.float8_e4m3fn, torch.int8])
def test_refuses_quantized_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    stored = {**tensors(), "h.1.a.weight": torch.zeros(2, 3).to(dtype)}
    with pytest.raises(CheckpointError, match="if the checkpoint is quantized"):
        load(tmp_path, stored, weight_map())


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((WeightPart("h.{i}.a", "a"),), "does not say what fills part 'b' of layers.0.fused"),
        ((WeightPart("h.{i}.a", "a"), WeightPart("h.{i}.b", "c")), "names part 'c'"),
        ((WeightPart("h.{i}.a", "a", row_permutation=(0, 0)), WeightPart("h.{i}.b", "b")), "each row"),
        ((WeightPart("h.{i}.a", "a", row_permutation=(0,)), WeightPart("h.{i}.b", "b")), "takes 1 rows"),
        ((WeightPart("h.{i}.a", "a", row_permutation=(0, 7)), WeightPart("h.{i}.b", "b")), "each row"),
    ],
)
def test_refuses_maps_that_do_not_fit(tmp_path: Path, parts: tuple[WeightPart, ...], message: str) -> None:
    used = {part.source.split(".")[-1] for part in parts} | {"ln"}
    stored = {name: t for name, t in tensors().items() if name.split(".")[2] in used}
    modules = {"layers.{i}.fused": parts, "layers.{i}.norm": (WeightPart("h.{i}.ln"),)}
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path, stored, weight_map(modules=modules))


def test_refuses_a_module_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="module 'layers.0.absent'"):
        load(tmp_path, tensors(), weight_map(modules={"layers.{i}.absent": (WeightPart("h.{i}.a"),)}))


def test_reports_progress(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "model.safetensors")
    reports: list[tuple[int, int]] = []
    load_weights(
        Net(), weight_map(), open_checkpoint(tmp_path), lambda done, total: reports.append((done, total))
    )
    assert len(reports) == 12
    assert reports[-1] == (144, 144)
    assert reports == sorted(reports)
