"""The suite of attention backends: against a naive oracle in float64, over a cache that is NaN until written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, cast
from unittest import SkipTest

import torch
from torch import Tensor

from quire.api.batch import DTypeName
from quire.api.errors import QuireError
from quire.api.protocols import AttentionBackend, AttentionParams
from quire.api.specs import Capabilities, FactoryRef
from quire.plugins import resolve_factory
from quire.testing.attention_cases import CacheShape, PagedSimulation, Rows
from quire.testing.conformance import Conformance, ConformanceError, require

TOLERANCES: dict[str, float] = {"float64": 1e-10, "float32": 2e-5, "float16": 5e-3, "bfloat16": 4e-2}
_HEADS = ((4, 4, 8), (6, 2, 16), (4, 1, 16), (5, 1, 5), (9, 3, 64))
_SLOPES = (0.5, 0.25, 0.125, 0.0625, 0.03, 0.01)
_PLAIN = AttentionParams(6, 2, 16, scale=0.4)
_STEPS: tuple[Rows, ...] = (
    (("a", 1), ("b", 5), ("c", 9)),
    (("a", 1), ("b", 4), ("c", 1), ("d", 4), ("e", 17)),
    (("a", 6), ("b", 1), ("c", 1), ("d", 3), ("e", 2)),
    (("a", 1), ("b", 1), ("c", 1), ("d", 1), ("e", 1)),
)
"""Prompts, chunks of prompts and decodes, alone and together."""


class AttentionBackendConformance(Conformance):
    """An attention backend, driven as an engine drives it.

    In a test file::

        class TestMine(AttentionBackendConformance):
            backend = "mine.attention:MineAttention"  # or the class
            dtypes = ("float32", "bfloat16")          # those that its spec supports

    `capabilities` are the spec's: what they exclude is not tried. A head size, alibi, a cap or a window may be
    refused by any QuireError; what is computed must be right. `is_thorough = True` tries all sizes.
    """

    backend: ClassVar[FactoryRef] = "quire.ops.paged_attention:TorchPagedAttention"
    dtypes: ClassVar[Sequence[DTypeName]] = ("float64", "float32")
    capabilities: ClassVar[Capabilities] = Capabilities()

    def test_is_a_backend(self) -> None:
        """It has a name and the protocol's methods, and its cache grows with the blocks."""
        backend = self._make()
        require(
            isinstance(backend, AttentionBackend),
            f"{type(backend).__name__} lacks a name or a method of AttentionBackend",
        )
        sizes = []
        for count in (7, 14):
            shape = backend.kv_cache_shape(count, 16, _PLAIN)
            require(
                isinstance(shape, tuple) and all(isinstance(n, int) and n > 0 for n in shape),
                f"kv_cache_shape gave {shape!r}, not a tuple of counts",
            )
            sizes.append(torch.Size(shape).numel())
        least = 7 * 16 * 2 * _PLAIN.num_kv_heads * _PLAIN.head_size
        require(
            sizes[0] >= least and sizes[1] > sizes[0],
            f"kv_cache_shape gives {sizes[0]} values for 7 blocks and {sizes[1]} for 14; "
            f"7 blocks of keys and values are {least}",
        )

    def test_dtypes(self) -> None:
        """Every supported dtype, with fused and with separate inputs."""
        for dtype in self.dtypes:
            for is_fused in (True, False):
                self._play(_STEPS, [_PLAIN], dtype=dtype, is_fused=is_fused)
            self.note(dtype)

    def test_heads_and_block_sizes(self) -> None:
        """Grouped, multi-query and multi-head attention, over block sizes 1, 4 and 16."""
        refusals = []
        for heads, kv_heads, size in _HEADS:
            layer = AttentionParams(heads, kv_heads, size, scale=size**-0.5)
            for block_size in (1, 3, 4, 16, 32) if self.is_thorough else (1, 4, 16):
                try:
                    self._play(_STEPS, [layer], block_size=block_size)
                except _Refused as refusal:
                    refusals.append(f"{heads} heads, {kv_heads} KV heads of {size}: {refusal}")
        require(len(refusals) < 3 * len(_HEADS), f"every shape is refused: {refusals[:1]}")
        self.note("MHA", "GQA", "MQA", *(f"refused {text}" for text in refusals))

    def test_long_contexts(self) -> None:
        """Decodes over contexts of some hundred tokens, and a chunk behind one."""
        steps: tuple[Rows, ...] = (
            (("a", 300), ("b", 17)),
            (("a", 1), ("b", 1), ("c", 65)),
            (("a", 70), ("b", 1), ("c", 1)),
        )
        self._play(steps, [_PLAIN], block_size=16)

    def test_many_rows(self) -> None:
        """40 requests of different lengths, then all decode."""
        first = tuple((f"r{i}", (7 * i) % 23 + 1) for i in range(40))
        self._play((first, tuple((name, 1) for name, _ in first)), [_PLAIN], num_blocks=300)

    def test_windows(self) -> None:
        """Queries that see the latest tokens only, across chunks and block boundaries."""
        if not self.capabilities.sliding_windows:
            raise SkipTest("its capabilities exclude sliding windows")
        for window in (1, 4, 7, 100):
            self._play_or_skip(AttentionParams(6, 2, 16, 0.4, window=window))
        self.note("window")

    def test_alibi(self) -> None:
        """Alibi slopes, one per query head."""
        self._play_or_skip(AttentionParams(6, 2, 16, 0.4, alibi_slopes=_SLOPES))
        self.note("alibi")

    def test_logit_caps(self) -> None:
        """Capped scores."""
        self._play_or_skip(AttentionParams(6, 2, 16, 0.4, logit_cap=1.5))
        self.note("logit cap")

    def test_layers_may_differ(self) -> None:
        """One `prepare` serves layers of different windows and scales."""
        windows = (4, None, 7) if self.capabilities.sliding_windows else (None, None)
        layers = [AttentionParams(6, 2, 16, 0.3 + 0.1 * i, window=w) for i, w in enumerate(windows)]
        try:
            self._play(_STEPS, layers)
        except _Refused as refusal:
            raise SkipTest(f"refused: {refusal}") from refusal

    def test_blocks_written_and_read_in_one_step(self) -> None:
        """A request reads blocks that another one, before or behind it, writes in the same step."""
        for own, count in ((3, 8), (1, 8), (1, 4)):
            simulation = self._simulate([_PLAIN])
            self._compare(simulation, (("z", 1), ("y", 6)))
            self._compare(
                simulation,
                (("b", own), ("a", count), ("y", 1), ("c", own)),
                shared={"b": ("a", count), "c": ("a", 4)},
            )
            self._compare(simulation, (("b", 1), ("a", 2), ("c", 4), ("z", 1)))
        self.note("shared within a step")

    def test_requests_that_rest(self) -> None:
        """A step leaves alone what belongs to requests that have no row in it."""
        simulation = self._simulate([_PLAIN])
        self._compare(simulation, (("a", 5), ("b", 7), ("c", 3)))
        for size in (1, 2, 3, 5):
            self._compare(simulation, (("d", size), ("e", 1)))
        self._compare(simulation, (("a", 1), ("b", 2), ("c", 1), ("d", 1)))

    def test_blocks_used_before(self) -> None:
        """Blocks that a sick request has filled with NaN, taken by others."""
        simulation = self._simulate([_PLAIN])
        simulation.step((("sick", 30),), sick=("sick",))
        simulation.free_request("sick")
        for rows in _STEPS:
            self._compare(simulation, rows)
        self.note("poisoned KV cache")

    def test_a_sick_neighbour(self) -> None:
        """NaN in one request reaches no other one."""
        simulation = self._simulate([_PLAIN])
        self._compare(simulation, (("a", 5), ("b", 9), ("sick", 4), ("c", 4)))
        for rows in (
            (("a", 1), ("b", 1), ("sick", 1), ("c", 1)),
            (("a", 3), ("b", 1), ("sick", 3), ("c", 3)),
        ):
            ordered = sorted(rows, key=lambda row: row[1] != 1)
            found, expected = simulation.step(ordered, sick=("sick",))
            keep = torch.cat([torch.full((count,), name != "sick") for name, count in ordered])
            self._require_equal(found[0][keep], expected[0][keep], self._widest, "beside a request of NaN")
            require(
                bool(found[0][~keep].isnan().any(dim=1).all()),
                "a request whose values are NaN got finite outputs: its failure would go unseen",
            )

    def test_neighbours(self) -> None:
        """A request's outputs are the same alone and beside others."""
        results = []
        for others in ((), (("x", 3), ("y", 12))):
            simulation = self._simulate([_PLAIN])
            self._compare(simulation, (("a", 6),))
            for rows in ((("a", 1),), (("a", 4),)):
                state = simulation.random.get_state()
                if others:
                    self._compare(simulation, others)
                simulation.random.set_state(state)
                found, _ = simulation.step(rows)
                results.append(found[0])
        for alone, beside in zip(results[:2], results[2:], strict=True):
            self._require_equal(beside, alone, self._widest, "after steps of others")

    def test_copied_blocks(self) -> None:
        """`copy_blocks` copies keys and values of whole blocks in every layer, and nothing else."""
        simulation = self._simulate([_PLAIN, _PLAIN])
        self._compare(simulation, (("a", 6), ("b", 5)))
        simulation.fork("a", "c")
        simulation.fork("b", "d")
        self._compare(simulation, (("a", 1), ("b", 1), ("c", 1), ("d", 2)))
        self._compare(simulation, (("a", 2), ("b", 1), ("c", 3), ("d", 1)))
        self.note("copied blocks")

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
    ) -> PagedSimulation:
        blocks = num_blocks or 512 // block_size + 16
        shape = CacheShape(block_size, blocks, getattr(torch, dtype or self._widest), is_fused)
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
        """Play steps with one backend; _Refused where it says by a QuireError that it does not do this."""
        try:
            simulation = self._simulate(
                layers, dtype=dtype, block_size=block_size, num_blocks=num_blocks, is_fused=is_fused
            )
            for rows in steps:
                self._compare(simulation, rows, dtype=dtype)
        except ConformanceError as error:
            raise ConformanceError(f"{_describe(layers[0])}, blocks of {block_size}: {error}") from error
        except QuireError as error:
            raise _Refused(str(error)) from error

    def _play_or_skip(self, layer: AttentionParams) -> None:
        try:
            self._play(_STEPS, [layer])
        except _Refused as refusal:
            raise SkipTest(f"refused: {refusal}") from refusal

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

    def _require_equal(self, found: Tensor, expected: Tensor, dtype: DTypeName, what: str) -> None:
        require(
            found.shape == expected.shape,
            f"{what}: the output has shape {tuple(found.shape)}, expected {tuple(expected.shape)}",
        )
        require(
            found.dtype == getattr(torch, dtype), f"{what}: the output is {found.dtype}, expected {dtype}"
        )
        difference = (found.double() - expected.double()).abs()
        tolerance = TOLERANCES[dtype]
        is_close = difference <= tolerance * (1 + expected.double().abs())  # False for NaN
        require(
            bool(is_close.all()),
            f"{what}: differs from the oracle by {float(difference.nan_to_num(torch.inf).max()):.2g} "
            f"(NaN counts as infinite), more than {tolerance:.0e}",
        )


class _Refused(Exception):  # no error: an answer
    """The backend said that it does not do what was asked."""


def _describe(layer: AttentionParams) -> str:
    text = f"{layer.num_heads} heads, {layer.num_kv_heads} KV heads of {layer.head_size}"
    for name in ("window", "logit_cap"):
        if getattr(layer, name) is not None:
            text += f", {name} {getattr(layer, name)}"
    return text + (", alibi" if layer.alibi_slopes else "")
