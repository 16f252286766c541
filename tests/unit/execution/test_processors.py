"""Logits processors in the sampler: their row, their tokens, their failures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from quire.api.request import SamplingParams
from quire.api.step import SlotAssignment
from quire.execution.processors import LoadedProcessor, ProcessorTable
from quire.execution.sampler import Sampler
from quire.execution.sampling_state import SamplingState
from quire.plugins.calls import PluginCalls

V = 300  # more than one block of the sampler's padding


class Factory:
    """Makes processors of one function; keeps what it was asked with."""

    def __init__(self, function: Callable[..., object]) -> None:
        self.function = function
        self.asked: list[tuple[object, SamplingParams]] = []

    def for_request(self, arguments: object, params: SamplingParams) -> object:
        self.asked.append((arguments, params))
        return self.function


def table(**factories: Factory) -> ProcessorTable:
    loaded = {
        # for mypy: a fake
        name: LoadedProcessor(name, f"plugin-{name}", f"plugin 'plugin-{name}' (dist 1)", factory)  # type: ignore[arg-type]
        for name, factory in factories.items()
    }
    return ProcessorTable(loaded, PluginCalls().call)


def assignment(slot: int, names: Sequence[str], **params: object) -> SlotAssignment:
    return SlotAssignment(
        slot,
        str(slot),
        [1, 2, 3, 4],
        2,
        SamplingParams(**params),
        100 + slot,
        frozenset(),
        tuple(names),  # type: ignore[arg-type]  # names, or what stands for them
    )


def state_of(bound: ProcessorTable, *entries: tuple[Sequence[str], dict[str, object]]) -> SamplingState:
    state = SamplingState(len(entries), V)
    for slot, (names, params) in enumerate(entries):
        given = assignment(slot, names, **params)
        state.assign(slot, given, bound.bind(given) if names else None)
    return state


def force(token_id: int) -> Callable[..., object]:
    def processor(prompt: object, output: object, row: torch.Tensor) -> torch.Tensor:
        row.fill_(-torch.inf)
        row[token_id] = 0.0
        return row

    return processor


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_with_a_processor_beside_rows_without(dtype, temperature):
    logits = torch.randn(4, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    before = logits.clone()
    params = {"temperature": temperature}
    plain = state_of(table(), *[((), params)] * 4)
    expected = Sampler().sample(logits, range(4), plain).token_ids
    mixed = state_of(table(f=Factory(force(299))), ((), params), (["f"], params), ((), params), ((), params))
    found = Sampler().sample(logits, range(4), mixed)
    assert found.token_ids == [expected[0], 299, expected[2], expected[3]]
    assert found.errors == [None] * 4 and not found.failed_plugins
    assert torch.equal(logits, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_processor_sees_its_own_tokens_and_nothing_else(dtype):
    seen: list[object] = []

    def look(prompt: object, output: object, row: torch.Tensor) -> torch.Tensor:
        seen.append((prompt, output, row.shape, row.dtype, row.untyped_storage().nbytes()))
        return row

    state = state_of(table(f=Factory(look)), (["f"], {}), ((), {}))
    logits = torch.zeros(2, V, dtype=dtype)
    sampler = Sampler()
    sampler.sample(logits, [0, 1], state)
    state.append(0, 9)
    state.append(1, 8)
    sampler.sample(logits, [1, 0], state)
    assert seen == [
        ((1, 2), (3, 4), (V,), torch.float32, 4 * V),
        ((1, 2), (3, 4, 9), (V,), torch.float32, 4 * V),
    ]


def test_several_run_in_order_each_on_what_the_one_before_gave():
    constant = torch.zeros(V)
    constant[5] = 3.0

    def add(prompt: object, output: object, row: torch.Tensor) -> torch.Tensor:
        assert int(row.argmax()) == 5
        row[6] = 9.0
        return row

    factories = {"a": Factory(lambda prompt, output, row: constant), "b": Factory(add)}
    state = state_of(table(**factories), (["a", "b"], {"temperature": 0.0}), (["a"], {"temperature": 0.0}))
    assert Sampler().sample(torch.randn(2, V), [0, 1], state).token_ids == [6, 5]
    assert float(constant[6]) == 0.0, "one processor changed what another keeps"


@pytest.mark.parametrize("error", [RuntimeError("planted"), SystemExit(3), TypeError()])
def test_a_failure_fails_the_row_and_names_its_plugin(error):
    def fail(prompt: object, output: object, row: torch.Tensor) -> torch.Tensor:
        raise error

    params = {"temperature": 1.0}
    state = state_of(
        table(f=Factory(fail), g=Factory(force(4))), (["f"], params), ((), params), (["g"], params)
    )
    found = Sampler().sample(torch.randn(3, V), [2, 1, 0], state)
    assert found.token_ids[0] == 4 and found.token_ids[1] is not None and found.token_ids[2] is None
    assert found.failed_plugins == {2: "plugin-f"}
    assert f"'f' of plugin 'plugin-f' (dist 1) failed when it was called: {type(error).__name__}" in str(
        found.errors[2]
    )


def test_a_row_that_is_not_finite_is_never_shown_to_a_processor():
    factory = Factory(lambda prompt, output, row: pytest.fail("it was called"))
    state = state_of(table(f=factory), (["f"], {"temperature": 1.0}))
    found = Sampler().sample(torch.full((1, V), torch.nan), [0], state)
    assert found.errors == ["logits are not finite"] and not found.failed_plugins


def test_an_interrupt_passes():
    def interrupt(prompt: object, output: object, row: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    state = state_of(table(f=Factory(interrupt)), (["f"], {}))
    with pytest.raises(KeyboardInterrupt):
        Sampler().sample(torch.randn(1, V), [0], state)


def test_binding_gives_copies_of_the_arguments_and_none_leaves_the_row_alone():
    class Leaves(Factory):
        def for_request(self, arguments: object, params: SamplingParams) -> object:
            super().for_request(arguments, params)
            arguments["ids"].append(2)  # type: ignore[index]  # a list, here
            return None

    factory = Leaves(force(1))
    given = assignment(0, ["f"], extra_args={"f": {"ids": [1]}}, temperature=0.0)
    bound = table(f=factory).bind(given)
    assert given.params.extra_args == {"f": {"ids": [1]}}
    row = torch.arange(V, dtype=torch.float32)
    assert bound.apply(row) is None and int(row.argmax()) == V - 1


@pytest.mark.parametrize("error", [ValueError("no"), RuntimeError("planted"), SystemExit(2), None])
def test_a_processor_that_cannot_be_made_again_fails_at_the_first_row(error):
    class Broken(Factory):
        def for_request(self, arguments: object, params: SamplingParams) -> object:
            if error is not None:
                raise error
            return 7

    state = state_of(table(f=Broken(force(1))), (["f"], {}), ((), {"temperature": 0.0}))
    found = Sampler().sample(torch.randn(2, V), [0, 1], state)
    assert found.failed_plugins == {0: "plugin-f"} and found.token_ids[1] is not None
    assert "plugin-f" in str(found.errors[0])


def test_a_slot_that_is_taken_over_forgets_its_processors():
    state = state_of(table(f=Factory(force(1))), (["f"], {"temperature": 0.0}))
    state.assign(0, assignment(0, (), temperature=0.0))
    logits = torch.zeros(1, V)
    logits[0, 7] = 1.0
    assert Sampler().sample(logits, [0], state).token_ids == [7]
