"""The shipped suite: well-formed guesses, request by request, and the tokens of plain decoding. And a guess."""

from __future__ import annotations

import numpy as np

from quire.api.request import SamplingParams
from quire.api.speculation import DraftRequest
from quire.testing import DrafterConformance


class TestMyDrafter(DrafterConformance):
    name = "my-drafter"
    settings = {"match_tokens": 2}
    wrong_settings = ({"match_tokens": 0}, {"match_token": 2})

    def test_drafts_what_followed(self) -> None:
        token_ids = np.array([1, 2, 3, 4, 1, 2], dtype=np.int32)
        request = DraftRequest("request", token_ids, 6, 3, SamplingParams())
        assert self.make_drafter().propose([request]) == [[3, 4, 1]]
