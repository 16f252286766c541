"""The checks of a model without an engine: its configuration, its weights, its logits."""

from __future__ import annotations

import torch

from quire.api.errors import CheckpointError, QuireError
from quire.api.protocols import ModelConfig
from quire.loading.checkpoint import open_checkpoint
from quire.loading.hf_config import architectures_of, read_hf_config
from quire.testing.conformance import ConformanceError, require
from quire.testing.model_base import ModelBase, max_difference
from quire.testing.model_traits import model_traits

_PROMPT_LEN = 27
_NUM_STEPS = 3


class ModelChecks(ModelBase):
    """The checks without an engine."""

    def test_config_is_parsed(self) -> None:
        """`parse_config` gives what core needs, with the checkpoint's own values."""
        for variant in self.variants():
            config = variant.config
            require(
                isinstance(config, ModelConfig),
                f"{variant.name}: parse_config gave {type(config).__name__}, which lacks one of vocab_size, "
                "max_position_embeddings, num_attention_heads and rope_switch_len",
            )
            for name in ("vocab_size", "max_position_embeddings", "num_attention_heads"):
                value = getattr(config, name)
                require(
                    isinstance(value, int) and value > 0, f"{variant.name}: {name} is {value!r}, not a count"
                )
            named = read_hf_config(variant.folder).get("vocab_size", variant.parsed.vocab_size)
            require(
                variant.parsed.vocab_size == named,
                f"{variant.name}: vocab_size is {variant.parsed.vocab_size}, config.json says {named}",
            )
            self.note(variant.name)

    def test_every_tensor_is_used(self) -> None:
        """Each tensor of the checkpoint has its place in the weight map or is declared ignored."""
        for variant in self.variants():
            names = open_checkpoint(variant.folder).names()
            require(bool(names), f"{variant.name}: the checkpoint holds no tensors")
            require(
                self._architecture() in architectures_of(read_hf_config(variant.folder)),
                f"{variant.name}: config.json does not name the architecture {self._architecture()}",
            )
            try:
                model = self.sequence(variant).built.model
            except CheckpointError as error:
                raise ConformanceError(f"{variant.name}: {error}") from error
            self.note(*model_traits(model, variant.parsed))

    def test_whole_prompts_in_float64(self) -> None:
        """Logits of a prompt in one pass, and of a prompt of one token."""
        self._check_whole("float64", self.tolerance_float64)

    def test_whole_prompts_in_float32(self) -> None:
        """The same in float32."""
        self._check_whole("float32", self.tolerance_float32)

    def test_prompts_in_parts(self) -> None:
        """Logits of a prompt in parts of 1, 2 and 7 tokens, then of one token after the other."""
        sizes = (1, 2, 7) if self._capabilities().chunked_prefill else ()
        for variant in self.variants():
            count = min(_PROMPT_LEN, variant.max_len - _NUM_STEPS)
            ids = self.token_ids(variant, count + _NUM_STEPS, seed=1)
            expected = self.expected_logits(variant, ids, count)
            for size in (*sizes, count):
                sequence = self.sequence(variant)
                rows = [sequence.logits(ids[i : min(i + size, count)], count) for i in range(0, count, size)]
                rows += [sequence.logits([token_id], count) for token_id in ids[count:]]
                difference = max_difference(torch.cat(rows), expected)
                limit = self.tolerance_float64
                require(
                    difference <= limit,
                    f"{variant.name}: a prompt of {count} tokens in parts of {size} differs from the reference by "
                    f"{difference:.2g}, more than {limit:.0e}: look at positions, rope_lens and what "
                    "the model keeps between forward passes",
                )

    def _check_whole(self, dtype: str, tolerance: float) -> None:
        for variant in self.variants():
            for length in (1, min(_PROMPT_LEN, variant.max_len)):
                ids = self.token_ids(variant, length)
                expected = self.expected_logits(variant, ids, length, dtype)
                try:
                    found = self.sequence(variant, dtype).logits(ids)
                except QuireError as error:
                    raise ConformanceError(f"{variant.name}: {type(error).__name__}: {error}") from error
                require(
                    found.shape == expected.shape,
                    f"{variant.name}: logits of {length} tokens have shape {tuple(found.shape)}, "
                    f"expected {tuple(expected.shape)}",
                )
                difference = max_difference(found, expected)
                require(
                    difference <= tolerance,
                    f"{variant.name}: the {dtype} logits of a prompt of {length} tokens differ from the reference by "
                    f"{difference:.2g}, more than {tolerance:.0e}",
                )
                require(
                    float(expected.std()) > 1e-3,
                    f"{variant.name}: the reference's logits are all alike: nothing was shown",
                )
