"""The suite of attention backends: against a naive oracle in float64, over a cache that is NaN until written."""

from __future__ import annotations

from dataclasses import replace
from typing import cast
from unittest import SkipTest

import torch

from quire.api.batch import DTypeName
from quire.api.protocols import AttentionBackend, AttentionParams
from quire.api.rotating_attention import RotatingAttentionBackend
from quire.testing.attention_cases import Rows
from quire.testing.attention_driver import ROUNDING, AttentionDriver, Refusal
from quire.testing.attention_rotation import Rotating
from quire.testing.conformance import require

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


class AttentionBackendConformance(AttentionDriver):
    """An attention backend, driven as an engine drives it.

    In a test file::

        class TestMine(AttentionBackendConformance):
            backend = "mine.attention:MineAttention"  # or the class
            dtypes = ("float32", "bfloat16")          # those that its spec supports
            kv_cache_dtypes = ("auto", "int8")        # likewise

    `capabilities` are the spec's: what they exclude is not tried. A head size, alibi, a cap or a window may be
    refused by any QuireError; what is computed must be right. `is_thorough = True` tries all sizes.
    """

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
            for layer in self._kept(_PLAIN):
                for is_fused in (True, False):
                    self._play(_STEPS, [layer], dtype=dtype, is_fused=is_fused)
            self.note(dtype)
        self.note(*(f"{dtype} KV cache" for dtype in self.kv_cache_dtypes if dtype != "auto"))

    def test_heads_and_block_sizes(self) -> None:
        """Grouped, multi-query and multi-head attention, over block sizes 1, 4 and 16."""
        refusals = []
        for heads, kv_heads, size in _HEADS:
            layers = self._kept(AttentionParams(heads, kv_heads, size, scale=size**-0.5))
            for block_size in (1, 3, 4, 16, 32) if self.is_thorough else (1, 4, 16):
                try:
                    for layer in layers:
                        self._play(_STEPS, [layer], block_size=block_size)
                except Refusal as refusal:
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
        for layer in self._kept(_PLAIN):
            self._play(steps, [layer], block_size=16)

    def test_many_rows(self) -> None:
        """40 requests of different lengths, then all decode."""
        first = tuple((f"r{i}", (7 * i) % 23 + 1) for i in range(40))
        self._play((first, tuple((name, 1) for name, _ in first)), [_PLAIN], num_blocks=300)

    def test_windows(self) -> None:
        """Queries that see the latest tokens only, across chunks and block boundaries."""
        if not self.capabilities.sliding_windows:
            raise SkipTest("its capabilities exclude sliding windows")
        for window in (1, 4, 7, 100):
            for layer in self._kept(AttentionParams(6, 2, 16, 0.4, window=window)):
                self._play_or_skip(layer)
        self.note("window")

    def test_alibi(self) -> None:
        """Alibi slopes, one per query head."""
        for layer in self._kept(AttentionParams(6, 2, 16, 0.4, alibi_slopes=_SLOPES)):
            self._play_or_skip(layer)
        self.note("alibi")

    def test_logit_caps(self) -> None:
        """Capped scores."""
        for layer in self._kept(AttentionParams(6, 2, 16, 0.4, logit_cap=1.5)):
            self._play_or_skip(layer)
        self.note("logit cap")

    def test_rounding_of_quantized_caches(self) -> None:
        """Values that a quantized cache must round; a cache of half the bytes is smaller."""
        quantized = [layer for layer in self._kept(_PLAIN) if layer.kv_cache_dtype != "auto"]
        if not quantized:
            raise SkipTest("it declares no quantized caches")
        for layer in quantized:
            sizes = [torch.Size(self._make().kv_cache_shape(7, 16, x)).numel() for x in (layer, _PLAIN)]
            require(
                sizes[0] < 2 * sizes[1],
                f"a KV cache of {layer.kv_cache_dtype} takes {sizes[0]} bytes, one of 16 bits {2 * sizes[1]}",
            )
            simulation = self._simulate([layer], is_exact=False)
            for rows in _STEPS:
                found, expected = simulation.step(rows)
                tolerance = ROUNDING[layer.kv_cache_dtype]
                self._require_equal(
                    found[0], expected[0], self._widest, f"rounded to {layer.kv_cache_dtype}", tolerance
                )

    def test_rotation(self) -> None:
        """`rotate_and_forward` gives, and writes, the bits of its `rotary_op` and `forward`."""
        if not isinstance(self._make(), RotatingAttentionBackend):
            raise SkipTest("it has no rotate_and_forward")
        partial = replace(_PLAIN, num_heads=4, num_kv_heads=1, head_size=20)
        for dtype in self.dtypes:
            for layer in (*self._kept(_PLAIN), *self._kept(partial)):
                for interleaved in (False, True):
                    self._rotate(layer, dtype, interleaved=interleaved)
        self.note("rotates")

    def test_layers_may_differ(self) -> None:
        """One `prepare` serves layers of different windows and scales."""
        windows = (4, None, 7) if self.capabilities.sliding_windows else (None, None)
        layers = [AttentionParams(6, 2, 16, 0.3 + 0.1 * i, window=w) for i, w in enumerate(windows)]
        try:
            self._play(_STEPS, layers)
        except Refusal as refusal:
            raise SkipTest(f"refused: {refusal}") from refusal

    def test_blocks_written_and_read_in_one_step(self) -> None:
        """A request reads blocks that another one, before or behind it, writes in the same step."""
        for layer in self._kept(_PLAIN):
            for own, count in ((3, 8), (1, 8), (1, 4)):
                simulation = self._simulate([layer])
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
        for layer in self._kept(_PLAIN):
            simulation = self._simulate([layer])
            simulation.step((("sick", 30),), sick=("sick",))
            simulation.free_request("sick")
            for rows in _STEPS:
                self._compare(simulation, rows)
        self.note("poisoned KV cache")

    def test_a_sick_neighbour(self) -> None:
        """NaN in one request reaches no other one."""
        for layer in self._kept(_PLAIN):
            simulation = self._simulate([layer])
            self._compare(simulation, (("a", 5), ("b", 9), ("sick", 4), ("c", 4)))
            for rows in (
                (("a", 1), ("b", 1), ("sick", 1), ("c", 1)),
                (("a", 3), ("b", 1), ("sick", 3), ("c", 3)),
            ):
                ordered = sorted(rows, key=lambda row: row[1] != 1)
                found, expected = simulation.step(ordered, sick=("sick",))
                keep = torch.cat([torch.full((count,), name != "sick") for name, count in ordered])
                self._require_equal(
                    found[0][keep], expected[0][keep], self._widest, "beside a request of NaN"
                )
                require(
                    bool(found[0][~keep].isnan().any(dim=1).all()),
                    "a request whose values are NaN got finite outputs: its failure would go unseen",
                )

    def test_neighbours(self) -> None:
        """A request's outputs are the same alone and beside others."""
        for layer in self._kept(_PLAIN):
            results = []
            for others in ((), (("x", 3), ("y", 12))):
                simulation = self._simulate([layer])
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
        for layer in self._kept(_PLAIN):
            simulation = self._simulate([layer, layer])
            self._compare(simulation, (("a", 6), ("b", 5)))
            simulation.fork("a", "c")
            simulation.fork("b", "d")
            self._compare(simulation, (("a", 1), ("b", 1), ("c", 1), ("d", 2)))
            self._compare(simulation, (("a", 2), ("b", 1), ("c", 3), ("d", 1)))
        self.note("copied blocks")

    def _rotate(self, layer: AttentionParams, dtype: DTypeName, *, interleaved: bool) -> None:
        """All of a head of 16 features, 12 of larger ones."""
        runs = []
        for is_fused in (False, True):
            simulation = self._simulate([layer], dtype=dtype, is_exact=False)
            backend = cast(RotatingAttentionBackend, simulation.backend)
            simulation.backend = Rotating(backend, interleaved=interleaved, is_fused=is_fused)
            results = [simulation.step(rows)[0][0] for rows in _STEPS[:2]]
            runs.append([*results, *simulation.caches])
        for apart, fused in zip(*runs, strict=True):
            require(
                torch.equal(apart.contiguous().view(torch.uint8), fused.contiguous().view(torch.uint8)),
                f"{dtype}, {'interleaved' if interleaved else 'halves'}, a KV cache of {layer.kv_cache_dtype}: "
                "rotate_and_forward differs from rotary_op and forward",
            )

    def _play_or_skip(self, layer: AttentionParams) -> None:
        try:
            self._play(_STEPS, [layer])
        except Refusal as refusal:
            raise SkipTest(f"refused: {refusal}") from refusal
