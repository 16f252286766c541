"""The suite of drafters: guesses that are well formed, keep to their request, and change no token."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from quire.testing.conformance import require
from quire.testing.counting_model import counted
from quire.testing.drafter_alone import DrafterAlone
from quire.testing.drafter_calls import CheckedDrafter
from quire.testing.served_model import Generated, Job
from quire.testing.toy_model import MAX_LEN

_NOTHING: Mapping[str, object] = MappingProxyType({})
_COUNTERS = ("drafts", "draft_tokens", "accepted_tokens")


class DrafterConformance(DrafterAlone):
    """A drafter, alone and in an engine.

    In a test file::

        class TestMine(DrafterConformance):
            name = "mine"               # as it is registered; or `drafter`, its factory, and `settings_model`
            settings = {"order": 3}     # its own keys of `speculative_config`
            wrong_settings = ({"order": 0},)

    Engines serve a model that counts within sixes (6 7 8 9 10 11 6 7 ...) below 60, and sometimes slips:
    `settings` must let the drafter foresee some of it. None stands for defaults of which nothing is known.

    `draft_model_key` is the key of a drafter that calls `build_model`: the suite puts the folder of a tiny
    model there. `num_speculative_tokens` bounds the drafts. A drafter that learns from how often it is called
    says `depends_on_tokens_only = False`. `options` are what the factory finds in its context (by default
    those of the installed plugin).
    """

    def test_in_an_engine(self) -> None:
        """Tokens and log-probabilities are those without a drafter: greedy, sampled, with penalties and stops."""
        self._check_engine(self.num_speculative_tokens, _NOTHING)

    def test_chunks_in_an_engine(self) -> None:
        """Likewise where a step's budget leaves hardly any room for drafts."""
        self._check_engine(1, {"max_num_batched_tokens": 7})
        self._check_engine(3, {"max_num_batched_tokens": 12})
        self.note("chunks")

    def test_preempted_in_an_engine(self) -> None:
        """Likewise where requests lose their blocks and come back."""
        scarce: dict[str, object] = {"num_kv_blocks": -(-MAX_LEN // 4) + 1, "max_num_batched_tokens": 24}
        counters = self._check_engine(3, scarce)
        require(counters["num_preemptions"] > 0, "no request was preempted: nothing was shown")
        self.note("preemption")

    def test_prefix_hits_in_an_engine(self) -> None:
        """Likewise where prompts are found in the prefix cache, drafts of other requests among them."""
        counters = self._check_engine(8, {"enable_prefix_caching": True}, num_rounds=2)
        require(counters["prefix_cache_hits"] > 0, "no prefix was hit: nothing was shown")
        self.note("prefix hits")

    def test_adaptive_in_an_engine(self) -> None:
        """Likewise where the engine decides by measurements how much is drafted."""
        self._check_engine(self.num_speculative_tokens, _NOTHING, is_adaptive=True, num_rounds=2)

    def _check_engine(
        self,
        num_speculative_tokens: int,
        settings: Mapping[str, object],
        *,
        num_rounds: int = 1,
        is_adaptive: bool = False,
    ) -> dict[str, float]:
        """Compare an engine with this drafter with one without; gives counters of the former."""
        self.make_drafter()  # refuses or skips settings that it cannot use
        expected = self.shared("expected", self._without_drafts)
        made: list[CheckedDrafter] = []
        spec = self.engine_spec(made)
        config = {
            "method": spec.name,
            "num_speculative_tokens": num_speculative_tokens,
            "adaptive": is_adaptive,
            **self.given_settings(),
        }
        where = f"in an engine with speculative_config={config} {dict(settings) or ''}".rstrip()
        with self.engine({"speculative_config": config, **settings}, drafters=(spec,)) as engine:
            for _ in range(num_rounds):
                found = [choice for choices in engine.run(_jobs(), stagger=1) for choice in choices]
                for one, other in zip(expected, found, strict=True):
                    _require_same(one, other, where)
            counters = {name: engine.counter(name) for name in ("num_preemptions", "prefix_cache_hits")}
            drafts, drafted, accepted = (engine.counter(f"spec_decode_num_{name}") for name in _COUNTERS)
        problems = [problem for drafter in made for problem in drafter.problems]
        require(not problems, f"{where}: {'; '.join(problems[:2])}")
        if not is_adaptive:
            self._note_outcomes(drafts, drafted, accepted, where)
        return counters

    def _note_outcomes(self, drafts: float, drafted: float, accepted: float, where: str) -> None:
        if not (drafts and drafted):
            self.nothing_shown(f"{where}, no draft was verified")
        if not accepted:
            self.nothing_shown(f"{where}, none of {drafted:.0f} drafts was accepted")
        self.note("accepted drafts", *(["rejected drafts"] if accepted < drafted else []))

    @classmethod
    def _without_drafts(cls) -> list[Generated]:
        with cls.engine() as engine:
            return [choice for choices in engine.run(_jobs()) for choice in choices]


def _jobs() -> list[Job]:
    """Counted prompts: greedy, sampled, with penalties, biases, stops, several choices."""
    return [
        Job(counted(0, 20), 25),
        Job(counted(13, 14), 30, {"temperature": 1.0, "seed": 5}),
        Job(counted(24, 9), 30, {"repetition_penalty": 1.3}),
        Job(counted(36, 17), 22, {"temperature": 0.9, "seed": 7, "top_k": 20, "n": 2}),
        Job((40,), 30, {"frequency_penalty": 0.7}),
        Job(counted(48, 25), 20, {"temperature": 0.7, "seed": 3, "logit_bias": {50: -8.0}}),
        Job(counted(6, 11), 30, {"stop_token_ids": [9], "min_tokens": 8}),
        Job(counted(18, 12), 1),
        Job(counted(54, 10), 15, {"max_draft_tokens": 0}),
    ]


def _require_same(expected: Generated, found: Generated, where: str) -> None:
    what = f"{where}, a request of {len(expected.prompt)} prompt tokens"
    if found.token_ids != expected.token_ids:
        pairs = list(zip(expected.token_ids, found.token_ids, strict=False))
        first = next((index for index, (one, other) in enumerate(pairs) if one != other), len(pairs))
        require(
            False,
            f"{what} gives other tokens than without drafts, from output {first} on: {found.token_ids[first:]}, "
            f"expected {expected.token_ids[first:]}",
        )
    require(
        found.finish_reason == expected.finish_reason,
        f"{what} ends by {found.finish_reason!r}, without drafts by {expected.finish_reason!r}",
    )
    difference = float((found.logprobs - expected.logprobs).abs().max())
    require(
        difference <= 1e-8,
        f"{what}: log-probabilities differ by {difference:.2g} from those without drafts",
    )
