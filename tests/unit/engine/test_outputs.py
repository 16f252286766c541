"""Outputs of requests: text, stops, logprobs, choices, and what a stream shows."""

import statistics
import time

import pytest

from quire.api.errors import NumericalError
from quire.api.request import FinishReason, Request, SamplingParams
from quire.api.step import TokenLogprobs
from quire.engine.outputs import RequestTracker
from quire.scheduling.plan import RequestUpdate

EOS = 1


class Letters:
    """Token 97 is "a" and so on; ids below 32 are special and show as "<id>"."""

    added_tokens = {i: f"<{i}>" for i in range(32)}

    def encode(self, text, *, add_special_tokens=True):
        return [ord(char) for char in text]

    def decode(self, token_ids, *, skip_special_tokens=True):
        return "".join(chr(i) if i >= 32 else "" if skip_special_tokens else f"<{i}>" for i in token_ids)


class Driver:
    """Stands for the scheduler: appends to the requests and makes updates."""

    def __init__(self, *, n=1, tokenizer=Letters(), stop_token_ids=(), prompt="Hi", **params):  # noqa: B008  # it keeps nothing
        self.params = SamplingParams(n=n, stop_token_ids=list(stop_token_ids), max_tokens=99, **params)
        self.requests = [
            Request(
                f"r/{index}", [ord(c) for c in prompt], self.params, index, 100,
                stop_token_ids=frozenset((EOS, *stop_token_ids)), arrival_s=1.0, choice_index=index,
            )
            for index in range(n)
        ]  # fmt: skip
        self.tracker = RequestTracker("r", prompt, self.requests, tokenizer)

    def give(self, text="", *, index=0, ids=None, reason=None, stop_reason=None, error=None, **lists):
        request = self.requests[index]
        new = ids if ids is not None else [ord(char) for char in text]
        request.output_token_ids += new
        request.finish_reason, request.stop_reason, request.error = reason, stop_reason, error
        return self.tracker.apply(RequestUpdate(request, new, is_finished=reason is not None, **lists))

    def choice(self, index=0):
        return self.tracker.output().outputs[index]


def entry(token_id, logprob=-1.0, rank=1, top=()):
    return TokenLogprobs(token_id, logprob, rank, [i for i, _ in top], [value for _, value in top])


def test_text_and_tokens_are_cumulative_and_earlier_outputs_stay_as_they_were():
    driver = Driver()
    driver.give("ab")
    first = driver.tracker.output()
    driver.give("c", reason=FinishReason.LENGTH)
    last = driver.tracker.output()
    assert (first.outputs[0].text, first.outputs[0].token_ids, first.finished) == ("ab", [97, 98], False)
    assert first.outputs[0].finish_reason is None
    assert (last.outputs[0].text, last.outputs[0].token_ids, last.finished) == ("abc", [97, 98, 99], True)
    assert last.outputs[0].finish_reason == "length"
    assert (last.request_id, last.prompt, last.prompt_token_ids) == ("r", "Hi", [72, 105])


def test_a_stop_string_cuts_the_text_keeps_its_tokens_and_is_reported():
    driver = Driver(stop=["STOP"])
    assert driver.give("abST") is None
    assert driver.give("OPx") == "STOP"
    choice = driver.choice()
    assert (choice.text, choice.finish_reason, choice.stop_reason) == ("ab", "stop", "STOP")
    assert choice.token_ids == [ord(c) for c in "abSTOP"]  # drafts accepted after it are dropped
    assert driver.tracker.is_finished


def test_a_stop_string_is_kept_where_asked():
    driver = Driver(stop="STOP", include_stop_str_in_output=True)
    assert driver.give("abSTOPx") == "STOP"
    assert driver.choice().text == "abSTOP"


def test_what_comes_after_a_stop_string_is_ignored():
    driver = Driver(stop=["S"])
    driver.give("aS")
    assert driver.give("S more", reason=FinishReason.ABORT) is None
    choice = driver.choice()
    assert (choice.text, choice.token_ids, choice.finish_reason) == ("a", [97, 83], "stop")
    driver.tracker.end(driver.requests[0])
    assert driver.choice().stop_reason == "S"


def test_a_stop_string_in_the_last_token_wins_over_the_length():
    driver = Driver(stop=["S"])
    assert driver.give("aS", reason=FinishReason.LENGTH) == "S"
    assert driver.choice().finish_reason == "stop"


def test_a_stream_holds_back_what_a_stop_string_may_cut_and_shows_it_at_the_end():
    driver = Driver(stop=["STOP"])
    driver.give("abcdef")
    assert driver.choice().text == "abc"
    driver.give("ST", reason=FinishReason.LENGTH)
    assert driver.choice().text == "abcdefST"


def test_stop_strings_wait_for_min_tokens():
    driver = Driver(stop=["b"], min_tokens=3)
    assert driver.give("abb") is None
    assert driver.give("ab") == "b"
    assert driver.choice().text == "abba"


@pytest.mark.parametrize("skip", [True, False])
def test_the_eos_token_gives_no_text(skip):
    driver = Driver(skip_special_tokens=skip)
    driver.give("a", ids=[97, EOS], reason=FinishReason.STOP)
    choice = driver.choice()
    assert (choice.text, choice.token_ids, choice.stop_reason) == ("a", [97, EOS], None)


def test_special_tokens_inside_the_output_show_where_asked():
    driver = Driver(skip_special_tokens=False)
    driver.give(ids=[97, 5, 98], reason=FinishReason.LENGTH)
    assert driver.choice().text == "a<5>b"


@pytest.mark.parametrize("include,text", [(False, "a"), (True, "a.")])
def test_a_stop_token_gives_text_only_where_asked(include, text):
    driver = Driver(stop_token_ids=[46], include_stop_str_in_output=include)
    driver.give("a.", reason=FinishReason.STOP, stop_reason=46)
    choice = driver.choice()
    assert (choice.text, choice.token_ids, choice.stop_reason) == (text, [97, 46], 46)


def test_the_last_token_of_a_request_that_ran_out_of_length_gives_text_even_if_it_could_stop():
    driver = Driver(stop_token_ids=[46])
    driver.give("a.", reason=FinishReason.LENGTH)
    assert driver.choice().text == "a."


def test_bytes_held_back_come_out_at_the_end():
    class Bytes(Letters):
        def decode(self, token_ids, *, skip_special_tokens=True):
            return bytes(token_ids).decode("utf-8", "replace")

    driver = Driver(tokenizer=Bytes())
    driver.give(ids=[97, 0xE4])
    assert driver.choice().text == "a"
    driver.requests[0].finish_reason = FinishReason.ABORT
    driver.tracker.end(driver.requests[0])
    assert driver.choice().text == "a\ufffd"
    assert driver.choice().finish_reason == "abort"


@pytest.mark.parametrize("kwargs", [{"tokenizer": None}, {"detokenize": False}])
def test_without_a_tokenizer_or_detokenization_texts_are_empty(kwargs):
    driver = Driver(logprobs=1, **kwargs)
    driver.give("ab", reason=FinishReason.LENGTH, logprobs=[entry(97), entry(98)])
    choice = driver.choice()
    assert (choice.text, choice.token_ids) == ("", [97, 98])
    expected = None if "tokenizer" in kwargs else "a"
    assert choice.logprobs[0][97].decoded_token == expected


def test_choices_are_separate_and_the_request_ends_with_the_last():
    driver = Driver(n=3)
    driver.give("a", index=0, reason=FinishReason.LENGTH)
    driver.give("bb", index=2, reason=FinishReason.LENGTH)
    assert not driver.tracker.is_finished
    driver.give("c", index=1, reason=FinishReason.STOP)
    output = driver.tracker.output()
    assert [(choice.index, choice.text) for choice in output.outputs] == [(0, "a"), (1, "c"), (2, "bb")]
    assert [choice.finish_reason for choice in output.outputs] == ["length", "stop", "length"]
    assert output.finished


def test_logprobs_have_the_sampled_token_first_and_the_likeliest_with_ranks():
    driver = Driver(logprobs=2)
    top = [(98, -0.5), (99, -1.5)]
    driver.give("a", logprobs=[entry(97, -3.0, 7, top)])
    driver.give("b", logprobs=[entry(98, -0.5, 1, top)], reason=FinishReason.LENGTH)
    choice = driver.choice()
    assert [list(position) for position in choice.logprobs] == [[97, 98, 99], [98, 99]]
    first = choice.logprobs[0]
    assert [(p.logprob, p.rank, p.decoded_token) for p in first.values()] == [
        (-3.0, 7, "a"), (-0.5, 1, "b"), (-1.5, 2, "c"),
    ]  # fmt: skip
    assert choice.cumulative_logprob == -3.5


def test_no_logprobs_where_none_were_asked_for():
    driver = Driver()
    driver.give("a")
    assert (driver.choice().logprobs, driver.choice().cumulative_logprob) == (None, None)
    assert driver.tracker.output().prompt_logprobs is None


def test_prompt_logprobs_gather_over_chunks_from_the_first_choice_only():
    driver = Driver(n=2, prompt="abc", prompt_logprobs=0)
    driver.give(prompt_logprobs=[entry(98, -1.0, 4)])
    driver.give(prompt_logprobs=[entry(99, -2.0, 1)], text="x")
    driver.give(index=1, text="x", prompt_logprobs=[entry(7)])
    values = driver.tracker.output().prompt_logprobs
    assert values[0] is None
    assert [[(i, p.logprob, p.rank, p.decoded_token) for i, p in v.items()] for v in values[1:]] == [
        [(98, -1.0, 4, "b")], [(99, -2.0, 1, "c")],
    ]  # fmt: skip


def test_building_outputs_decodes_each_logprob_once():
    driver = Driver(logprobs=0)
    for _ in range(5):
        driver.give("a", logprobs=[entry(97)])
        driver.choice()
    first, second = driver.choice().logprobs, driver.choice().logprobs
    assert first is not second
    assert all(a is b for a, b in zip(first, second, strict=True))


def test_an_error_is_in_the_output():
    driver, error = Driver(n=2), NumericalError("logits are not finite")
    driver.give("a", index=1, reason=FinishReason.ERROR, error=error)
    output = driver.tracker.output()
    assert output.error is error
    assert output.outputs[1].finish_reason == "error"


def test_abort_ends_a_choice_with_the_text_so_far():
    driver = Driver(stop=["STOP"])
    driver.give("abS")
    driver.requests[0].finish_reason = FinishReason.ABORT
    driver.tracker.end(driver.requests[0])
    choice = driver.choice()
    assert (choice.text, choice.finish_reason) == ("abS", "abort")
    assert driver.tracker.is_finished and driver.tracker.finish_reason == "abort"


def test_metrics_and_cached_tokens():
    driver = Driver()
    driver.requests[0].num_cached_tokens, driver.requests[0].num_preemptions = 1, 2
    driver.requests[0].first_scheduled_s = 1.5
    driver.give()
    waiting = driver.tracker.output()
    driver.give("a")
    driver.give("b", reason=FinishReason.LENGTH)
    output = driver.tracker.output()
    assert waiting.metrics.first_token_s is None and waiting.metrics.first_scheduled_s == 1.5
    metrics = output.metrics
    assert (output.num_cached_tokens, metrics.num_cached_tokens, metrics.num_preemptions) == (1, 1, 2)
    assert metrics.arrival_s == 1.0
    assert metrics.first_scheduled_s <= metrics.first_token_s <= metrics.last_token_s <= metrics.finished_s


def test_spaces_between_special_tokens_uses_the_tokenizers_added_tokens():
    class Spaced(Letters):
        def decode(self, token_ids, *, skip_special_tokens=True):
            return " ".join(super(Spaced, self).decode([i], skip_special_tokens=False) for i in token_ids)

    for is_spaced, text in ((True, " <5> <6> a"), (False, " <5><6> a")):
        driver = Driver(
            tokenizer=Spaced(), skip_special_tokens=False, spaces_between_special_tokens=is_spaced
        )
        driver.give(ids=[5, 6, 97], reason=FinishReason.LENGTH)
        assert driver.choice().text == text


@pytest.mark.parametrize("stop", [None, ["zzzz"]])
def test_a_delta_costs_what_is_new(stop):
    driver = Driver(stop=stop)

    def cost(num_tokens):
        taken = []
        for _ in range(num_tokens):
            begin = time.perf_counter()
            driver.give("a" * 9)
            driver.tracker.take()
            taken.append(time.perf_counter() - begin)
        return statistics.median(taken[-500:])

    early = cost(1000)
    assert cost(60_000) < 4 * early
