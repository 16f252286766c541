"""Requests as the engine shows them to drafters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from quire.api.request import SamplingParams
from quire.api.speculation import DraftRequest

MakeRequest = Callable[..., DraftRequest]


@pytest.fixture(scope="session")
def make_request() -> MakeRequest:
    """(token ids, request id, number of prompt tokens, most drafts, salt) to a request."""

    def make(
        token_ids: Sequence[int],
        request_id: str = "r",
        num_prompt: int = 1,
        max_drafts: int = 5,
        salt: str = "",
    ) -> DraftRequest:
        array = np.array(token_ids, dtype=np.int32)
        array.flags.writeable = False
        return DraftRequest(request_id, array, num_prompt, max_drafts, SamplingParams(), salt)

    return make
