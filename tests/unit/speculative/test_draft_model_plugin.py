"""The drafter `draft-model` over a model that answers from a table."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from quire.api.batch import DeviceInfo
from quire.api.config import EngineConfig
from quire.api.errors import ConfigError
from quire.api.speculation import DrafterContext, DraftModel, DraftRequest
from quire.plugins import PluginHost, resolve_factory
from quire_speculative.draft_model.drafter import DraftModelDrafter, make_draft_model
from quire_speculative.draft_model.settings import DraftModelSettings


class Counter(DraftModel):
    """The next number after the last token; None past a request's number of prompt tokens."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def next_tokens(
        self, requests: Sequence[DraftRequest], drafts: Sequence[Sequence[int]]
    ) -> list[int | None]:
        self.calls.append([request.request_id for request in requests])
        lasts = [
            drafted[-1] if drafted else int(request.token_ids[-1])
            for request, drafted in zip(requests, drafts, strict=True)
        ]
        return [
            last + 1 if len(drafted) < request.num_prompt_tokens else None
            for request, drafted, last in zip(requests, drafts, lasts, strict=True)
        ]


def test_all_requests_are_drafted_for_at_once_until_each_has_enough(
    make_request: Callable[..., DraftRequest],
) -> None:
    model = Counter()
    requests = [
        make_request([1, 2, 3], "short", num_prompt=9, max_drafts=1),
        make_request([5], "late", num_prompt=0, max_drafts=4),
        make_request([7, 8], "full", num_prompt=9, max_drafts=3),
        make_request([20], "ends", num_prompt=2, max_drafts=9),
    ]
    found = DraftModelDrafter(model).propose(requests)
    assert found == [[4], [], [9, 10, 11], [21, 22]]
    assert model.calls == [["short", "late", "full", "ends"], ["full", "ends"], ["full", "ends"]]
    assert DraftModelDrafter(model).propose([]) == []


def test_it_builds_the_model_of_its_settings(tmp_path: Path) -> None:
    asked: list[str] = []

    def build(name: str) -> DraftModel:
        asked.append(name)
        return Counter()

    context = DrafterContext(
        config=EngineConfig(),
        device=DeviceInfo(type="cpu"),
        vocab_size=100,
        num_speculative_tokens=5,
        max_model_len=100,
        max_num_seqs=4,
        settings=DraftModelSettings.model_validate({"model": tmp_path}),
        build_model=build,
        sample=lambda *_: pytest.fail("the model samples"),
    )
    assert isinstance(make_draft_model(context), DraftModelDrafter)
    assert asked == [str(tmp_path)] and str(context.settings) == f"model {tmp_path}"
    with pytest.raises(ConfigError, match="needs a model"):
        make_draft_model(replace(context, settings=None))


@pytest.mark.parametrize("wrong", [{}, {"model": ""}, {"model": 3}, {"model": "a", "other": 1}])
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DraftModelSettings.model_validate(wrong)


def test_it_is_registered_and_light_to_list() -> None:
    host = PluginHost.discover()
    registration = host.drafters.registration("draft-model")
    spec = host.drafters.spec("draft-model")
    assert registration.distribution == "quire-speculative"
    assert resolve_factory(spec.factory, registration) is make_draft_model
    assert spec.settings is not None
    assert resolve_factory(spec.settings, registration) is DraftModelSettings
    imports = "import sys, quire_speculative.draft_model.plugin"
    check = f"{imports}; print([name for name in ('torch', 'numpy') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
