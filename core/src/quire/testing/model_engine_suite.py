"""ModelConformance: the checks of a model, without an engine and within one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from unittest import SkipTest

import torch

from quire.testing.conformance import ConformanceError, require
from quire.testing.model_base import Variant, max_difference
from quire.testing.model_suite import ModelChecks
from quire.testing.served_model import Generated, Job, WatchedEngine

_LENGTHS = (1, 5, 13, 22, 30)
_TOLERANCE = 1e-8
"""Of log-probabilities, in float64; against the reference, a wider `tolerance_float64` of the suite counts."""


class ModelConformance(ModelChecks):
    """A model against Hugging Face, or against a reference of yours, over all that an engine does with it.

    For an architecture that transformers has::

        class TestMine(ModelConformance):
            architecture = "MineForCausalLM"  # of an installed plugin; `factory` for a class at hand
            configs = {"base": {"hidden_size": 32, ...}, "mqa": {...}}  # keywords of MineConfig

    Without `configs`, tiny ones are derived from the fields of transformers' config class. For an
    architecture of your own, override `write_checkpoint(fields, folder)` and `reference(folder, token_ids,
    ...)`. `hf_class` names a class of another name, `ops` brings ops of your own (with `factory`),
    `attention_backend` computes the attention, `capabilities` are the spec's (what they exclude is not
    tried), `is_thorough = True` runs every combination. Each generated token's whole distribution is
    compared with the reference's, not the token alone.
    """

    def test_block_and_chunk_sizes(self) -> None:
        """Requests together, over block sizes and token budgets."""
        blocks: tuple[int, ...] = (1, 4, 16)
        chunks: tuple[int | None, ...] = (1, 7, None)
        if self.is_thorough:
            blocks, chunks = (1, 2, 3, 4, 16), (1, 2, 5, 7, 16, None)
        if not self._capabilities().chunked_prefill:
            chunks = (None,)
        pairs = [(block, chunk) for block in blocks for chunk in chunks]
        for variant in self.engine_variants():
            for block_size, chunk in pairs:
                what = f"block size {block_size}, {chunk or 'no'} tokens a step"
                settings: dict[str, object] = {"block_size": block_size, "enable_prefix_caching": False}
                if chunk is None:
                    settings["enable_chunked_prefill"] = False
                else:
                    settings["max_num_batched_tokens"] = chunk
                with self._engine(variant, settings) as engine:
                    self._check(variant, engine.run(self._jobs(variant)), what)
        self.note("block sizes", "chunks")

    def test_prefix_hits(self) -> None:
        """Common prefixes: hits within one step, after it, and of a whole earlier prompt."""
        if not self._capabilities().prefix_caching:
            raise SkipTest("its capabilities exclude prefix caching")
        for variant in self.engine_variants():
            with self._engine(variant, {"block_size": 4}) as engine:
                jobs = self._sharing_jobs(variant)
                for state in ("a cold prefix cache", "a warm prefix cache"):
                    self._check(variant, engine.run(jobs), state)
                hits = engine.counter("prefix_cache_hits")
                may_hit = self._may_share(variant, jobs)
                require(
                    hits > 0 or not may_hit,
                    f"{variant.name}: the prefix cache was not hit: nothing was shown",
                )
                self.note(*(["prefix hits"] if hits else []))

    def test_preemption(self) -> None:
        """A pool that is too small for all requests: some lose their blocks and are computed again."""
        for variant in self.engine_variants():
            jobs = [
                Job(tuple(self.token_ids(variant, length, seed=length)), variant.max_len // 3)
                for length in (6, 7, 9, 11)
            ]
            blocks = -(-variant.max_len // 4) + 1
            settings: dict[str, object] = {"max_num_batched_tokens": 16, "enable_prefix_caching": False}
            with self._engine(variant, {"block_size": 4, "num_kv_blocks": blocks, **settings}) as engine:
                self._check(variant, engine.run(jobs), "a scarce KV cache")
                require(
                    engine.counter("num_preemptions") > 0,
                    f"{variant.name}: no request was preempted: nothing was shown",
                )
        self.note("preemption")

    def test_fork(self) -> None:
        """Choices that share their prompt's blocks and write into copies of the last one."""
        for variant in self.engine_variants():
            for block_size, length in ((4, 6), (16, 13)):
                params = {"n": 3, "temperature": 1.0, "seed": 5}
                jobs = [Job(tuple(self.token_ids(variant, length + i, seed=i)), 6, params) for i in (0, 1)]
                with self._engine(variant, {"block_size": block_size}) as engine:
                    results = engine.run(jobs)
                    self._check(variant, results, f"3 choices, block size {block_size}", is_greedy=False)
                    may_fork = engine.counter("num_forks") > 0 and engine.attention.num_copied_blocks > 0
                    require(may_fork, f"{variant.name}: no block was copied for a fork: nothing was shown")
                    texts = {choice.token_ids for choice in results[0]}
                    require(len(texts) > 1, f"{variant.name}: all choices are alike: nothing was shown")
        self.note("fork", "copy-on-write")

    def test_mixed_batches(self) -> None:
        """Requests that arrive while others decode: rows of one token beside rows of several."""
        for variant in self.engine_variants():
            settings: dict[str, object] = {"max_num_batched_tokens": 9, "enable_prefix_caching": False}
            with self._engine(variant, {"block_size": 4, **settings}) as engine:
                results = engine.run(self._jobs(variant), stagger=2)
                require(
                    any(step.is_mixed for step in engine.attention.steps),
                    f"{variant.name}: no step decoded beside a prompt: nothing was shown",
                )
                self._check(variant, results, "decodes beside prompt chunks")
        self.note("mixed batches")

    def test_one_after_another(self) -> None:
        """Requests alone in one engine, longer and shorter in turn: nothing is left of an earlier one."""
        for variant in self.engine_variants():
            with self._engine(variant, {"block_size": 4, "enable_prefix_caching": False}) as engine:
                for job in [*reversed(self._jobs(variant)), *self._jobs(variant, seed=50)]:
                    self._check(variant, engine.run([job]), "one request after another")
        self.note("one after another")

    def test_neighbours(self) -> None:
        """A request's logits are the same whatever runs beside it."""
        for variant in self.engine_variants():
            probe = Job(tuple(self.token_ids(variant, 9, seed=3)), 5)
            with self._engine(variant, {"block_size": 4, "enable_prefix_caching": False}) as engine:
                [[alone]] = engine.run([probe])
                for seed in (20, 40):
                    others = self._jobs(variant, seed=seed)
                    together = engine.run([others[0], probe, *others[1:]])[1][0]
                    difference = max_difference(together.logprobs, alone.logprobs)
                    require(
                        together.token_ids == alone.token_ids and difference <= _TOLERANCE,
                        f"{variant.name}: a request's log-probabilities differ by {difference:.2g} when others run "
                        "beside it: rows must not depend on each other",
                    )
        self.note("neighbours")

    def test_unused_slots_are_not_read(self) -> None:
        """A KV cache full of NaN wherever no token of a running request was written."""
        for variant in self.engine_variants():
            settings = {"block_size": 4, "enable_prefix_caching": False, "max_num_batched_tokens": 16}
            with self._engine(variant, settings, is_poisoned=True) as engine:
                for seed in (0, 60):
                    engine.attention.poison()
                    jobs = self._jobs(variant, seed=seed)
                    self._check(variant, engine.run(jobs, stagger=1), "a KV cache of NaN")
        self.note("poisoned KV cache")

    def test_longest_context(self) -> None:
        """A prompt and an output that together reach the longest context."""
        for variant in self.engine_variants():
            longest = variant.max_len
            settings: dict[str, object] = {"max_model_len": longest, "max_num_batched_tokens": longest - 3}
            with self._engine(variant, {"block_size": 4, **settings}) as engine:
                jobs = [
                    Job(tuple(self.token_ids(variant, longest - rest, seed=rest)), rest) for rest in (1, 9)
                ]
                results = engine.run([*jobs, *self._jobs(variant)[:2]])
                self._check(variant, results, f"the longest context, {longest} tokens")
                for job, [choice] in zip(jobs, results, strict=False):
                    require(
                        len(choice.token_ids) == job.max_tokens and choice.finish_reason == "length",
                        f"{variant.name}: at the longest context, {len(choice.token_ids)} of {job.max_tokens} "
                        f"tokens came and the reason is {choice.finish_reason!r}",
                    )
        self.note("longest context")

    @contextmanager
    def _engine(
        self, variant: Variant, settings: Mapping[str, object], *, is_poisoned: bool = False
    ) -> Iterator[WatchedEngine]:
        capabilities, allowed = self._capabilities(), dict(settings)
        if not capabilities.prefix_caching:
            allowed["enable_prefix_caching"] = False
        if not capabilities.chunked_prefill:
            allowed.pop("max_num_batched_tokens", None)
            allowed["enable_chunked_prefill"] = False
        with WatchedEngine(self.served(), variant.folder, allowed, is_poisoned=is_poisoned) as engine:
            try:
                yield engine
            except ConformanceError as error:
                prefix = f"{variant.name}: "
                text = str(error)
                raise ConformanceError(text if text.startswith(prefix) else prefix + text) from error

    def _jobs(self, variant: Variant, seed: int = 0) -> list[Job]:
        lengths = [min(length, variant.max_len - 7) for length in _LENGTHS]
        return [
            Job(tuple(self.token_ids(variant, length, seed + i)), 4 + i % 3)
            for i, length in enumerate(lengths)
        ]

    def _sharing_jobs(self, variant: Variant) -> list[Job]:
        """Prompts with common prefixes of 8 and 13 tokens, and one of another prompt's whole."""
        common = self.token_ids(variant, 13, seed=7)
        tails = [self.token_ids(variant, length, seed=80 + length) for length in (1, 2, 5)]
        prompts = [common[:8] + tails[0], *(common + tail for tail in tails), common, common[:9]]
        return [Job(tuple(prompt), 5) for prompt in prompts]

    def _may_share(self, variant: Variant, jobs: Sequence[Job]) -> bool:
        switch = variant.parsed.rope_switch_len
        return switch is None or any(len(job.prompt) + job.max_tokens <= switch for job in jobs)

    def _check(
        self, variant: Variant, results: Sequence[Sequence[Generated]], what: str, *, is_greedy: bool = True
    ) -> None:
        """Compare every choice with the reference, token by token."""
        limit = max(_TOLERANCE, self.tolerance_float64)
        for choice in (choice for choices in results for choice in choices):
            count = len(choice.prompt)
            ids = [*choice.prompt, *choice.token_ids[:-1]]
            expected = self.expected_logits(variant, ids, count)[count - 1 :].double().log_softmax(-1)
            where = f"{variant.name}: {what}: after a prompt of {count} tokens"
            for index, row in enumerate(expected):
                difference = max_difference(choice.logprobs[index], row)
                require(
                    difference <= limit,
                    f"{where}, the log-probabilities of output {index} differ from the reference by "
                    f"{difference:.2g}, more than {limit:.0e}",
                )
                likeliest = int(torch.argmax(choice.logprobs[index]))
                require(
                    not is_greedy or choice.token_ids[index] == likeliest,
                    f"{where}, output {index} is {choice.token_ids[index]}, the likeliest token is {likeliest}",
                )
