"""The suite of quantization methods: layers whole, fused and sliced, their memory, their errors, and engines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar
from unittest import SkipTest

import torch
from torch import Tensor

from quire.api.batch import DTypeName
from quire.api.errors import QuireError
from quire.api.quantization import LayerChoice, StoredModule
from quire.nn.linear_method import WholeLinear
from quire.testing.conformance import require
from quire.testing.forward import full_logits
from quire.testing.quantization_base import Config, PackedLinear, QuantizationBase
from quire.testing.served_model import Generated, Job, WatchedEngine
from quire.testing.toy_model import VOCAB_SIZE

_ROWS = (1, 2, 17, 0)
_PREFIX = tuple(range(3, 16))


class QuantizationConformance(QuantizationBase):
    """A quantization method against the weights that its tensors stand for.

    In a test file::

        class TestMine(QuantizationConformance):
            spec = QuantizationSpec("mine", "mine.method:MyMethod", quant_methods=("mine",))
            configs = {"4 bits": {"quant_method": "mine", "bits": 4}}  # None: a 16-bit checkpoint, on the fly

            def pack(self, weight, config):  # [N, K] float32
                return PackedLinear({"qweight": ..., "scales": ...}, weight=...)  # what they stand for, float64

    `ops` are those that the method brings itself, `options` its plugin's, `optional_tensors` the suffixes that
    a checkpoint may lack, `tolerances` the relative L2 error by dtype, `max_bytes_ratio` the bytes held over
    those stored. Override `multiply` where inputs are rounded. For methods that quantize on the fly `pack` gives
    {"weight": weight} and what their rounding makes of it; it is asked about ranks' slices of inputs too.
    """

    max_bytes_ratio: ClassVar[float] = 1.1
    can_slice_inputs: ClassVar[bool] = True

    def test_products(self) -> None:
        """One layer, over dtypes, numbers of rows, strided rows, with a bias and without."""
        size = self.hidden_size
        for name, config, dtype in self._cases():
            packed = self.packed(name, size // 2, size, config)
            bias = torch.linspace(-1, 1, size // 2)
            for tensors, added in ((packed.tensors, 0), ({**packed.tensors, "bias": bias}, bias.double())):
                layer = self.load(config, dtype, {"a": tensors}, (size, {"a": size // 2}))
                for rows in _ROWS:
                    x = self.inputs(rows, 2 * size, dtype)[:, size // 2 : size // 2 + size]
                    kept = x.clone()
                    expected = self.multiply(x.double(), packed, config) + added
                    what = f"{name}, {dtype}, {rows} rows{', bias' if 'bias' in tensors else ''}"
                    self.check_close(layer(x), expected, dtype, what)
                    require(x.equal(kept), f"{what}: the layer changed its input")
            self.note(dtype)

    def test_fused_parts(self) -> None:
        """Three parts behind one layer, as q, k and v are: the same as each alone."""
        size = self.hidden_size
        widths = {"q": size, "k": size // 2, "v": size // 2}
        for name, config, dtype in self._cases():
            parts = {
                part: self.packed(name, width, size, config, seed=index)
                for index, (part, width) in enumerate(widths.items())
            }
            tensors = {part: packed.tensors for part, packed in parts.items()}
            layer = self.load(config, dtype, tensors, (size, widths))
            x = self.inputs(5, size, dtype)
            expected = torch.cat([self.multiply(x.double(), packed, config) for packed in parts.values()], 1)
            self.check_close(layer(x), expected, dtype, f"{name}, {dtype}, three parts")
        self.note("fused parts")

    def test_output_slices(self) -> None:
        """Two ranks that hold half of each part's outputs: side by side they are the whole."""
        size = self.hidden_size
        widths = (size, size // 2)
        for name, config, dtype in self._cases("float64"):
            parts = [self.packed(name, width, size, config, seed=i) for i, width in enumerate(widths)]
            x = self.inputs(3, size, dtype)
            tensors = {"a": parts[0].tensors, "b": parts[1].tensors}
            for rank in (0, 1):
                half = {"a": widths[0] // 2, "b": widths[1] // 2}
                whole = WholeLinear(size, 0, widths, tuple(width // 2 * rank for width in widths))
                layer = self.load(config, dtype, tensors, (size, half), whole=whole)
                expected = torch.cat(
                    [self.multiply(x.double(), part, config).chunk(2, dim=1)[rank] for part in parts], dim=1
                )
                self.check_close(layer(x), expected, dtype, f"{name}, rank {rank} of 2 by outputs")
        self.note("output slices")

    def test_input_slices(self) -> None:
        """Two ranks that hold half of the inputs: their products add up to the whole's."""
        if not self.can_slice_inputs:
            raise SkipTest("the suite says can_slice_inputs = False")
        size = self.hidden_size
        for name, config, dtype in self._cases("float64"):
            packed = self.packed(name, size // 2, size, config)
            x = self.inputs(3, size, dtype)
            total = torch.zeros(3, size // 2, dtype=torch.float64)
            expected = torch.zeros_like(total)
            for rank in (0, 1):
                whole = WholeLinear(size, size // 2 * rank, (size // 2,), (0,))
                layer = self.load(
                    config, dtype, {"a": packed.tensors}, (size // 2, {"a": size // 2}), whole=whole
                )
                columns = slice(size // 2 * rank, size // 2 * (rank + 1))
                total += layer(x[:, columns]).double()
                part = PackedLinear(packed.tensors, packed.weight[:, columns])
                if config is None:  # a rank rounds what it holds of the weight
                    part = self.pack(packed.tensors["weight"][:, columns].contiguous(), config)
                expected += self.multiply(x[:, columns].double(), part, config)
            self.check_close(total.to(x.dtype), expected, dtype, f"{name}, two ranks by inputs")
        self.note("input slices")

    def test_memory(self) -> None:
        """What a layer holds once it is loaded: nothing as wide as the weights that it stands for."""
        size = self.hidden_size
        for name, config, dtype in self._cases("float32", "bfloat16"):
            packed = self.packed(name, size, size, config)
            layer = self.load(config, dtype, {"a": packed.tensors}, (size, {"a": size}))
            held = sum(tensor.nbytes for tensor in [*layer.parameters(), *layer.buffers()])
            stored = sum(tensor.nbytes for tensor in packed.tensors.values())
            limit = self.max_bytes_ratio * stored
            require(held > 0, f"{name}: the layer registers no tensors, so that its bytes cannot be counted")
            require(
                held <= limit,
                f"{name}, {dtype}: the layer holds {held} bytes, more than {self.max_bytes_ratio} times the "
                f"{stored} of its tensors: free what is not multiplied with",
            )
        self.note("memory")

    def test_rows_do_not_mix(self) -> None:
        """NaN and infinity in one row leave the others alone, and show in their own."""
        size = self.hidden_size
        for name, config, dtype in self._cases():
            packed = self.packed(name, size, size, config)
            layer = self.load(config, dtype, {"a": packed.tensors}, (size, {"a": size}))
            x = self.inputs(6, size, dtype)
            before = layer(x)
            x[2] = float("nan")
            after = layer(x)
            keep = [0, 1, 3, 4, 5]
            require(
                bool(torch.allclose(after[keep].double(), before[keep].double(), rtol=1e-2, atol=1e-3)),
                f"{name}, {dtype}: NaN in one row changes others",
            )
            require(bool(after[2].isnan().all()), f"{name}, {dtype}: a row of NaN gives numbers")

    def test_missing_tensors(self) -> None:
        """A tensor that is not there, or is cut, is named; nothing is guessed."""
        size = self.hidden_size
        for name, config, dtype in self._cases("float32"):
            packed = self.packed(name, size // 2, size, config)
            for suffix, tensor in packed.tensors.items():
                fewer = {key: value for key, value in packed.tensors.items() if key != suffix}
                if suffix not in self.optional_tensors and fewer:
                    self._expect_error(config, dtype, fewer, suffix, f"{name}: without {suffix!r}")
                if tensor.dim() > 0 and tensor.shape[0] > 1:
                    cut = {**packed.tensors, suffix: tensor[:-1].contiguous()}
                    self._expect_error(config, dtype, cut, suffix, f"{name}: with a shorter {suffix!r}")

    def test_what_stays_in_16_bits(self) -> None:
        """A module with a plain weight among quantized ones, and a head that is tied to the embedding."""
        size = self.hidden_size
        for name, config, dtype in self._cases("float64"):
            if config is not None:
                weight = self.inputs(size, size, "float64")
                layer = self.load(config, dtype, {"a": {"weight": weight}}, (size, {"a": size}))
                x = self.inputs(3, size, dtype)
                self.check_close(layer(x), x @ weight.t(), dtype, f"{name}, a module that is not quantized")
            tied = StoredModule("lm_head", {}, size, VOCAB_SIZE, is_head=True, is_tied=True)
            choice = self.method(config, dtype).choose(tied)
            require(
                isinstance(choice, LayerChoice),
                f"{name}: choose() of a tied head gave {choice!r}, not a LayerChoice",
            )
            require(
                choice.method is None or config is None,
                f"{name}: a tied head has no tensors of its own in the checkpoint: leave it in 16 bits",
            )

    def test_choices_are_values(self) -> None:
        """The same module gives an equal method, so that parts fuse; its op is in the table."""
        size = self.hidden_size
        for name, config, dtype in self._cases("float32"):
            packed = self.packed(name, size, size, config)
            layers = [self.load(config, dtype, {"a": packed.tensors}, (size, {"a": size})) for _ in range(2)]
            (first, _), (second, _) = layers[0].runs[0], layers[1].runs[0]
            require(
                first == second, f"{name}: two equal modules give unequal methods: define == of {first!r}"
            )
            host = self.host()
            require(
                not first.op or first.op in host.ops,
                f"{name}: the method names the op {first.op!r}, which nothing registers",
            )

    def test_engine(self) -> None:
        """A model in an engine: prefix hits, prompts in parts, forks; against its weights in float64."""
        for name, config in self.configs.items():
            quantized, plain = self.checkpoints(name, config)
            settings: dict[str, object] = {"block_size": 4, "max_num_batched_tokens": 7}
            if config is None:
                settings["quantization"] = self.spec.name
            jobs = [Job((*_PREFIX, *tail), 5) for tail in ((), (1,), (2, 5), (1, 9, 4))]
            jobs.append(Job(_PREFIX[:9], 5, {"n": 3, "temperature": 1.0, "seed": 5}))
            with WatchedEngine(self.served(), quantized, settings) as engine:
                for _ in ("cold", "warm"):
                    results = engine.run(jobs, stagger=1)
                    for choice in (choice for choices in results for choice in choices):
                        self._check_generated(name, choice, quantized, plain, config)
                require(
                    engine.counter("prefix_cache_hits") > 0, f"{name}: no prefix was hit: nothing was shown"
                )
                require(engine.counter("num_forks") > 0, f"{name}: nothing was forked: nothing was shown")
        self.note("prefix hits", "chunks", "fork")

    def _check_generated(
        self, name: str, choice: Generated, quantized: Path, plain: Path, config: Config
    ) -> None:
        """Against the engine's own whole pass, and, where inputs are not rounded, against the plain weights."""
        ids = (*choice.prompt, *choice.token_ids[:-1])
        setting = self.spec.name if config is None else None
        own = self.shared(
            ("own", name, ids),
            lambda: full_logits(quantized, ids, "float64", host=self.host(), quantization=setting),
        )
        rows = own[len(choice.prompt) - 1 :].log_softmax(-1)
        difference = float((choice.logprobs - rows).abs().max())
        require(
            difference <= 1e-8,
            f"{name}: within an engine the log-probabilities differ by {difference:.2g} from those of one pass",
        )
        if type(self).multiply is not QuantizationBase.multiply:
            return
        reference = self.shared(
            ("plain", name, ids), lambda: full_logits(plain, ids, "float64", host=self.host())
        )
        error = float((own - reference).norm() / reference.norm())
        limit = 10 * self.tolerances["float64"]
        require(
            error <= limit,
            f"{name}: the model's logits differ from those of the weights by {error:.2g}, more than {limit:.0e}",
        )

    def _expect_error(
        self, config: Config, dtype: DTypeName, tensors: Mapping[str, Tensor], suffix: str, what: str
    ) -> None:
        size = self.hidden_size
        try:
            self.build(config, dtype, {"a": tensors}, (size, {"a": size // 2}))
        except QuireError as error:
            require(suffix in str(error), f"{what}, the error does not name the tensor: {error}")
        except Exception as error:
            require(False, f"{what}, loading failed with {type(error).__name__}: {error}")
        else:
            require(False, f"{what}, the layer was loaded all the same")

    def _cases(self, *dtypes: DTypeName) -> Iterator[tuple[str, Config, DTypeName]]:
        for name, config in self.configs.items():
            for dtype in self.dtypes:
                if not dtypes or dtype in dtypes:
                    yield name, config, dtype


class OnTheFlyConformance(QuantizationConformance):
    """A method that quantizes 16-bit checkpoints while they are loaded: near the weights that it was given."""

    configs: ClassVar[Mapping[str, Config]] = {"on the fly": None}
    tolerances: ClassVar[Mapping[str, float]] = dict.fromkeys(("float64", "float32", "bfloat16"), 0.15)

    def pack(self, weight: Tensor, config: Config) -> PackedLinear:
        """The weight as it is."""
        return PackedLinear({"weight": weight}, weight.double())

    def multiply(self, x: Tensor, packed: PackedLinear, config: Config) -> Tensor:
        """The product of the weights before rounding."""
        return x @ packed.weight.t()
