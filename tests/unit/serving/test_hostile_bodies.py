"""Bodies that would cost more to refuse than to answer, and values at the edge of float32."""

from __future__ import annotations

import pytest
from serving_app import FakeServer

UNKNOWN = {f"k{number}": 1 for number in range(20_000)}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": "Hi", **UNKNOWN}, "k0"),
        (
            "/v1/completions",
            {"prompt": "Hi", "logit_bias": {str(n): "x" for n in range(20_000)}},
            "logit_bias",
        ),
        ("/v1/completions", {"prompt": "Hi", "logit_bias": {"5": 101}}, "logit_bias"),
        ("/v1/completions", {"prompt": "Hi", "repetition_penalty": 1e-39}, "repetition_penalty"),
        ("/detokenize", {"tokens": [""] * 20_000}, "tokens.0"),
    ],
)
def test_one_error_says_enough(path: str, body: dict[str, object], param: str) -> None:
    answer = FakeServer.of().client.post(path, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(param) and len(answer.content) < 500


def test_a_slash_too_much_redirects_nowhere() -> None:
    answer = FakeServer.of().client.post("/v1/completions/", json={"prompt": "Hi"}, follow_redirects=False)
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "not_found"
