"""Drives an attention backend beside an oracle: what the checks of its suite share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar, cast

import torch
from torch import Tensor

from quire.api.batch import DTypeName, KVCacheDTypeName
from quire.api.errors import QuireError
from quire.api.protocols import AttentionBackend, AttentionParams
from quire.api.specs import Capabilities, FactoryRef
from quire.plugins import resolve_factory
from quire.testing.attention_cases import CacheShape, PagedSimulation, Rows
from quire.testing.conformance import Conformance, ConformanceError, require

TOLERANCES: dict[str, float] = {"float64": 1e-10, "float32": 2e-5, "float16": 5e-3, "bfloat16": 4e-2}
ROUNDING: dict[str, float] = {"int8": 0.045, "fp8_e4m3": 0.22}
"""What rounding keys and values may change: twice what the reference's outputs differed by over 48 steps."""


class AttentionDriver(Conformance):
    """See AttentionBackendConformance."""

    backend: ClassVar[FactoryRef] = "quire.ops.paged_attention:TorchPagedAttention"
    dtypes: ClassVar[Sequence[DTypeName]] = ("float64", "float32")
    kv_cache_dtypes: ClassVar[Sequence[KVCacheDTypeName]] = ("auto",)
    capabilities: ClassVar[Capabilities] = Capabilities()

    def _kept(self, layer: AttentionParams) -> list[AttentionParams]:
        """The layer with each kind of KV cache."""
        return [replace(layer, kv_cache_dtype=dtype) for dtype in self.kv_cache_dtypes]

    @property
    def _widest(self) -> DTypeName:
        return "float64" if "float64" in self.dtypes else self.dtypes[0]

    def _make(self) -> AttentionBackend:
        return cast(Callable[[], AttentionBackend], resolve_factory(type(self).backend))()

    def _simulate(
        self,
        layers: Sequence[AttentionParams],
        *,
        dtype: DTypeName | None = None,
        block_size: int = 4,
        num_blocks: int | None = None,
        is_fused: bool = True,
        is_exact: bool = True,
    ) -> PagedSimulation:
        blocks = num_blocks or 512 // block_size + 16
        shape = CacheShape(block_size, blocks, getattr(torch, dtype or self._widest), is_fused, is_exact)
        return PagedSimulation(self._make(), layers, shape)

    def _play(
        self,
        steps: Sequence[Rows],
        layers: Sequence[AttentionParams],
        *,
        dtype: DTypeName | None = None,
        block_size: int = 4,
        num_blocks: int | None = None,
        is_fused: bool = True,
    ) -> None:
        """Play steps with one backend; Refusal where it says by a QuireError that it does not do this."""
        try:
            simulation = self._simulate(
                layers, dtype=dtype, block_size=block_size, num_blocks=num_blocks, is_fused=is_fused
            )
            for rows in steps:
                self._compare(simulation, rows, dtype=dtype)
        except ConformanceError as error:
            raise ConformanceError(f"{_describe(layers[0])}, blocks of {block_size}: {error}") from error
        except QuireError as error:
            raise Refusal(str(error)) from error

    def _compare(
        self,
        simulation: PagedSimulation,
        rows: Rows,
        *,
        dtype: DTypeName | None = None,
        shared: dict[str, tuple[str, int]] | None = None,
    ) -> None:
        found, expected = simulation.step(rows, shared=shared)
        for index, (result, right) in enumerate(zip(found, expected, strict=True)):
            what = f"layer {index}, a step of {', '.join(f'{count} of {name}' for name, count in rows)}"
            self._require_equal(result, right, dtype or self._widest, what)

    def _require_equal(
        self, found: Tensor, expected: Tensor, dtype: DTypeName, what: str, tolerance: float | None = None
    ) -> None:
        require(
            found.shape == expected.shape,
            f"{what}: the output has shape {tuple(found.shape)}, expected {tuple(expected.shape)}",
        )
        require(
            found.dtype == getattr(torch, dtype), f"{what}: the output is {found.dtype}, expected {dtype}"
        )
        difference = (found.double() - expected.double()).abs()
        tolerance = tolerance or TOLERANCES[dtype]
        is_close = difference <= tolerance * (1 + expected.double().abs())  # False for NaN
        require(
            bool(is_close.all()),
            f"{what}: differs from the oracle by {float(difference.nan_to_num(torch.inf).max()):.2g} "
            f"(NaN counts as infinite), more than {tolerance:.0e}",
        )


class Refusal(Exception):  # no error: an answer
    """The backend said that it does not do what was asked."""


def _describe(layer: AttentionParams) -> str:
    text = f"{layer.num_heads} heads, {layer.num_kv_heads} KV heads of {layer.head_size}"
    if layer.kv_cache_dtype != "auto":
        text += f", a KV cache of {layer.kv_cache_dtype}"
    for name in ("window", "logit_cap"):
        if getattr(layer, name) is not None:
            text += f", {name} {getattr(layer, name)}"
    return text + (", alibi" if layer.alibi_slopes else "")
