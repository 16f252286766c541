"""The OpenAPI schema: valid, complete, and with the limits of this server."""

from __future__ import annotations

from typing import Any

from fake_engine import FakeEngine
from schemathesis.specs.openapi import definitions
from serving_app import state_of

from quire_serving.app import create_routes

STREAMING = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/generate")


def schema_of(**settings: Any) -> dict[str, Any]:
    engine = FakeEngine(vocab_size=500, max_model_len=64)
    return create_routes(state_of(engine, **settings)).openapi()


def test_it_is_a_schema_of_openapi() -> None:
    errors = [error.message for error in definitions.OPENAPI_31_VALIDATOR.iter_errors(schema_of())]
    assert errors == []


def test_each_operation_tells_what_it_answers() -> None:
    for path, operations in schema_of()["paths"].items():
        for operation in operations.values():
            good = {status: each for status, each in operation["responses"].items() if status[0] == "2"}
            assert bool(good) != (path == "/v1/embeddings"), path
            for status, response in good.items():
                kinds = response.get("content", {})
                assert status == "204" or any("schema" in kind for kind in kinds.values()), path
                assert ("text/event-stream" in kinds) == (path in STREAMING)


def test_limits_are_the_servers_own() -> None:
    schemas = schema_of(max_n=3, max_logprobs=7, max_prompts=5)["components"]["schemas"]
    assert schemas["ModelName"]["enum"] == ["fake"]
    assert schemas["TokenId"]["maximum"] == 499 and schemas["TokenIds"]["maxItems"] == 63
    assert schemas["NumChoices"]["maximum"] == 3 and schemas["Texts"]["maxItems"] == 5
    assert (schemas["NumLogprobs"]["minimum"], schemas["NumLogprobs"]["maximum"]) == (0, 7)


def test_bounds_of_integers_are_integers() -> None:
    seed = schema_of()["components"]["schemas"]["ChatRequest"]["properties"]["seed"]["anyOf"][0]
    assert (seed["minimum"], seed["exclusiveMaximum"]) == (-(2**63), 2**63)
    assert isinstance(seed["minimum"], int)


def test_only_neutral_values_of_unserved_fields_are_in_it() -> None:
    fields = schema_of()["components"]["schemas"]["CompletionRequest"]["properties"]
    assert fields["use_beam_search"]["enum"] == [None, [], {}, False]
    assert fields["suffix"]["enum"] == [None, [], {}, ""]
