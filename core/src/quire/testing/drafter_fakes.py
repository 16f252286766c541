"""What stands for core where a drafter is checked alone: a second model, and how tokens are sampled."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from quire.api.speculation import DraftModel, DraftRequest
from quire.testing.conformance import require
from quire.testing.counting_model import next_number


class FakeDraftModel(DraftModel):
    """Counts as the suites' model does; some tokens it has no room to compute."""

    def next_tokens(
        self, requests: Sequence[DraftRequest], drafts: Sequence[Sequence[int]]
    ) -> list[int | None]:
        """See DraftModel."""
        require(
            len(drafts) == len(requests),
            f"next_tokens() was called with drafts for {len(drafts)} of {len(requests)} requests",
        )
        return [
            _next_token([*request.token_ids.tolist(), *drafted])
            for request, drafted in zip(requests, drafts, strict=True)
        ]


class FakeCore:
    """What a DrafterContext offers to call. Models are built within the factory: later than that is refused."""

    def __init__(self) -> None:
        self.is_building = True

    def build_model(self, name: str) -> DraftModel:
        """See DrafterContext."""
        require(
            isinstance(name, str) and bool(name),
            f"build_model() was called with {name!r}, not with a folder or a name",
        )
        require(self.is_building, "build_model() was called after the factory; call it within the factory")
        return FakeDraftModel()

    def sample(
        self, requests: Sequence[DraftRequest], drafts: Sequence[Sequence[int]], logits: Tensor
    ) -> list[int]:
        """See DrafterContext: the likeliest tokens."""
        require(
            len(requests) == len(drafts) == len(logits),
            f"sample() was called with {len(requests)} requests, drafts of {len(drafts)}, {len(logits)} rows",
        )
        tokens: list[int] = logits.argmax(-1).tolist()
        return tokens


def _next_token(token_ids: Sequence[int]) -> int | None:
    return None if len(token_ids) % 7 == 6 else next_number(token_ids[-1])
