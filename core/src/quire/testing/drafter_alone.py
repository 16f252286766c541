"""The checks of a drafter by itself: what it proposes for texts that grow, end and come back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random
from typing import ClassVar

from quire.api.request import SamplingParams
from quire.testing.conformance import ConformanceError, require
from quire.testing.counting_model import counted
from quire.testing.drafter_base import DrafterBase
from quire.testing.drafter_calls import Asked, Proposals, Text, TextCalls
from quire.testing.toy_model import MAX_LEN

_UNKNOWN_KEY = "no_such_key"
_MANY = 64

Turn = Sequence[Asked]


class DrafterAlone(DrafterBase):
    """The checks of a drafter by itself; see DrafterConformance for the attributes."""

    depends_on_tokens_only: ClassVar[bool] = True

    def test_settings(self) -> None:
        """The settings are taken; unknown keys and wrong values are refused by a ValueError that says why."""
        self.make_drafter()
        given = self.given_settings()
        if self._settings_model() is not None:
            self._require_refusal({**given, _UNKNOWN_KEY: 1}, _UNKNOWN_KEY)
        for wrong in self.wrong_settings:
            self._require_refusal({**given, **wrong})

    def test_no_requests(self) -> None:
        """Calls with nothing in them, and the end of the engine."""
        drafter = self.make_drafter()
        found = drafter.propose([])
        require(len(found) == 0, f"propose([]) gave {found!r}")
        drafter.verified([])
        drafter.released([])
        drafter.close()

    def test_proposals_are_token_ids(self) -> None:
        """Every request gets a sequence of at most `max_drafts` ids, from one token on, many at once."""
        for num_tokens in (self.num_speculative_tokens, 1):
            calls = TextCalls(self.make_drafter(num_tokens))
            for max_drafts in range(1, num_tokens + 1):
                for length in (1, 2, 3, 20, MAX_LEN - 1):
                    asked = [
                        Asked(text, length, max_drafts)
                        for text in _texts(f"{max_drafts}-{length}")
                        if length <= len(text.token_ids)
                    ]
                    calls.propose(*asked)
            calls.propose(*(Asked(text, 40, 1 + index % num_tokens) for index, text in enumerate(_many())))
            if not calls.drafter.num_proposed:
                self.nothing_shown("it proposed nothing")
        self.note("one-token prompts", f"{_MANY} requests at once")

    def test_is_deterministic(self) -> None:
        """Two new drafters propose the same."""
        turns = self._turns()
        _require_equal(
            self._run(turns), self._run(turns), "a new drafter, asked the same, proposed", "another one"
        )

    def test_requests_are_independent(self) -> None:
        """What a request gets depends on no other one in the call, nor on their order."""
        turns = self._turns()
        together = self._run(turns)
        if not any(together.values()):
            self.nothing_shown("it proposed nothing")
        reverse = self._run([turn[::-1] for turn in turns])
        _require_equal(together, reverse, "asked in one order it proposed", "in the reverse order")
        for text in _texts():
            alone = self._run([[asked for asked in turn if asked.text == text] for turn in turns])
            _require_equal(alone, together, "asked alone it proposed", "asked with others")

    def test_growing_requests(self) -> None:
        """Between two calls any number of tokens comes in; none is missed."""
        for text in _texts():
            calls = TextCalls(self.make_drafter())
            lengths = _lengths(text)
            for index, length in enumerate(lengths):
                asked = Asked(text, length, self.num_speculative_tokens)
                found = calls.propose(asked)
                if self.depends_on_tokens_only:
                    expected = TextCalls(self.make_drafter()).propose(asked)
                    what = f"after calls at {lengths[:index]} tokens it proposed"
                    _require_equal(found, expected, what, "a new drafter, given these tokens at once,")
        self.note("gaps")

    def test_reads_tokens_only(self) -> None:
        """It keeps no view of the token ids: an engine uses that memory again."""
        turns = self._turns()
        kept = self._run(turns, is_memory_reused=False)
        reused = self._run(turns)
        what = "where the memory of token_ids stays as it was after a call, it proposed"
        _require_equal(
            kept, reused, what, "where an engine uses that memory again (take a copy of what you keep)"
        )

    def test_salts_are_apart(self) -> None:
        """Nothing that requests of one salt held shows in the proposals for another."""
        secret = tuple(Random(1).sample(range(60), 45))
        for first, second in (("A", "B"), ("A", ""), ("", "B")):
            for is_released in (True, False):
                calls = TextCalls(self.make_drafter())
                texts = [Text(f"{first}-{index}", secret, first) for index in range(3)]
                for text in texts:
                    for length in (5, 20, 45):
                        asked = Asked(text, length, self.num_speculative_tokens)
                        calls.verified([asked], calls.propose(asked))
                    if is_released:
                        calls.release((text, 45))
                running = () if is_released else tuple(Asked(text, 45, 1) for text in texts)
                for length in (1, 12, 30):
                    spy = Asked(Text(f"{second}-spy", secret, second), length, self.num_speculative_tokens)
                    found = calls.propose(*running, spy)
                    expected = TextCalls(self.make_drafter()).propose(spy)
                    what = f"after requests of the salt {first!r} it proposed, under the salt {second!r},"
                    _require_equal(expected, found, "a new drafter proposed", what)
        self._note_pool(secret)

    def test_released_requests_are_forgotten(self) -> None:
        """An id comes again with other tokens; what was never seen, or is gone, may be released."""
        first = Text("same", tuple(Random(4).choices(range(8, 11), k=40)), "one")
        calls = TextCalls(self.make_drafter())
        calls.release((first, 40))
        for length in (8, 14, 20, 27):
            asked = Asked(first, length, self.num_speculative_tokens)
            calls.verified([asked], calls.propose(asked))
        calls.release((first, 40))
        calls.release((first, 40))
        for num, tokens in enumerate((counted(30, 50), (7,) * 30, Random(2).choices(range(60), k=12) * 3)):
            text = Text("same", tuple(tokens), f"other-{num}")
            fresh = TextCalls(self.make_drafter())
            for length in (5, 14, 23, 30):
                asked = Asked(text, length, self.num_speculative_tokens)
                what = "for an id that was released before, and now has other tokens and another salt, it proposed"
                _require_equal(fresh.propose(asked), calls.propose(asked), "a new drafter proposed", what)
            calls.release((text, 30))

    def test_preempted_requests_come_back(self) -> None:
        """A request is released, and goes on under its id with more tokens."""
        for text in _texts():
            calls = TextCalls(self.make_drafter())
            lengths = _lengths(text)
            for length, following in zip(lengths, lengths[1:], strict=False):
                calls.propose(Asked(text, length, self.num_speculative_tokens))
                calls.release((text, length))
                asked = Asked(text, following, self.num_speculative_tokens)
                [found] = calls.propose(asked).values()
                [fresh] = TextCalls(self.make_drafter()).propose(asked).values()
                require(
                    bool(found) or not fresh,
                    f"request {text.name!r} was released with {length} tokens and came back with {following}: it "
                    f"gets no drafts, while a new drafter proposes {fresh}",
                )
        self.note("preempted requests")

    def _turns(self) -> list[Turn]:
        """Calls with some of the texts each, which grow by any number of tokens between them."""
        random = Random(0)
        lengths = {text.name: text.num_prompt_tokens for text in _texts()}
        turns: list[Turn] = []
        for turn in range(14):
            asked = []
            for index, text in enumerate(_texts()):
                if lengths[text.name] <= len(text.token_ids) and random.random() < 0.8:
                    max_drafts = 1 + (turn + index) % self.num_speculative_tokens
                    asked.append(Asked(text, lengths[text.name], max_drafts))
                lengths[text.name] += random.choice((1, 1, 2, 3, 6))
            turns.append(asked)
        return turns

    def _run(self, turns: Sequence[Turn], *, is_memory_reused: bool = True) -> Proposals:
        """What a new drafter proposes in these calls, while it is told of most of the outcomes."""
        calls, found = TextCalls(self.make_drafter(), is_memory_reused=is_memory_reused), Proposals()
        for turn in turns:
            if turn:
                found |= calls.propose(*turn)
                calls.verified([asked for asked in turn if asked.length % 4], found)
        return found

    def _note_pool(self, secret: tuple[int, ...]) -> None:
        calls = TextCalls(self.make_drafter())
        for index in range(3):
            text = Text(f"text-{index}", secret, "A")
            calls.propose(Asked(text, 45, 1))
            calls.release((text, 45))
        [found] = calls.propose(Asked(Text("next", secret, "A"), 20, self.num_speculative_tokens)).values()
        self.note(
            "requests of one salt learn from each other" if found else "requests learn nothing of others"
        )

    def _require_refusal(self, settings: dict[str, object], named: str = "") -> None:
        """A ValueError of the settings' model or of the factory, with the name in its text."""
        try:
            self.make_drafter(settings=settings)
        except ValueError as error:
            require(
                named in str(error), f"the settings {settings} are refused without naming {named!r}: {error}"
            )
        except Exception as error:
            raise ConformanceError(
                f"the settings {settings} are refused by {type(error).__name__}: {error}; raise ValueError"
            ) from error
        else:
            remedy = 'forbid unknown keys (extra="forbid")' if named else "refuse them by a ValueError"
            raise ConformanceError(f"the settings {settings} are accepted: {remedy}")


def _texts(suffix: str = "") -> list[Text]:
    """Texts that can be foreseen in parts, each of a salt of its own."""
    random = Random(3)
    phrase, source = random.sample(range(60), 9), random.choices(range(60), k=20)
    tokens: dict[str, Iterable[int]] = {
        "counts": counted(6, MAX_LEN - 1),
        "one-token": counted(39, 30),
        "constant": (7,) * 25,
        "phrase": phrase * 5,
        "copy": [*source, *source[4:17], *source],
        "same-source": [*source, *source],
        "counts-later": counted(6, 40),
        "random": random.choices(range(60), k=50),
        "slips": [*counted(18, 20), 3, *counted(20, 9), 51, 52, *counted(18, 20)],
        "two": (8, 9),
    }
    prompts = {"one-token": 1, "two": 2, "counts-later": 3}
    sampled = SamplingParams(temperature=0.8, seed=3)
    texts = []
    for index, (name, ids) in enumerate(tokens.items()):
        params = sampled if index % 2 else SamplingParams(temperature=0.0)
        salt = "" if name == "phrase" else f"salt-{name}{suffix}"
        texts.append(Text(name + suffix, tuple(ids), salt, prompts.get(name, 9), params))
    return texts


def _many() -> list[Text]:
    return [Text(f"many-{index}", counted(index % 60, MAX_LEN), f"salt-{index}") for index in range(_MANY)]


def _lengths(text: Text) -> list[int]:
    """Lengths at which a text is asked for: single steps, the same once more, and gaps."""
    steps, lengths = (1, 1, 0, 2, 1, 5, 0, 1, 9, 3), [text.num_prompt_tokens]
    while len(lengths) <= len(steps) and lengths[-1] + steps[len(lengths) - 1] <= len(text.token_ids):
        lengths.append(lengths[-1] + steps[len(lengths) - 1])
    return lengths


def _require_equal(first: Proposals, second: Proposals, one: str, other: str) -> None:
    """The proposals that both hold are the same; else the first one that is not is named."""
    for (name, length), drafts in first.items():
        found = second.get((name, length), drafts)
        require(
            found == drafts,
            f"request {name!r} of {length} tokens: {one} {drafts}, {other} {found}",
        )
