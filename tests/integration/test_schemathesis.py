"""schemathesis asks a server of the real model "tiny" for what its OpenAPI schema allows, and for what it forbids."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
import schemathesis
import uvicorn
from fake_engine import FakeEngine
from hypothesis import HealthCheck, Phase, settings
from schemathesis import Case, CheckContext, Response
from schemathesis.specs.openapi.checks import positive_data_acceptance
from serving_app import state_of

from quire.api.client import EngineClient
from quire.api.config import EngineConfig
from quire.engine.local_client import LocalEngine
from quire_serving.app import create_app, create_routes
from quire_serving.parsers import tools
from quire_serving.state import ServerState

MAX_MODEL_LEN = 40  # what has no limit of its own ends soon
NUM_EXAMPLES, NUM_NIGHTLY = 25, 100
PHASES = (Phase.explicit, Phase.generate)  # a failure is told as it came: to shrink it takes minutes
_PROMPT = "no schema can tell how many tokens a text has, or what a template takes"
NOT_IN_THE_SCHEMA = {
    "conflicting_parameters": "fields that contradict each other",
    "best_of_unsupported": "it must equal n",
    "invalid_tool_arguments": "a text that must hold a JSON object",
    "invalid_json_value": "integers past 64 bits where any value is taken",
    "context_length_exceeded": _PROMPT,
    "invalid_prompt": _PROMPT,
    "tokenizer_error": _PROMPT,
    "too_many_choices": "prompts times n",
}
"""Codes with which the server may refuse what its schema allows, and why the schema cannot forbid it."""
NAMED_BY_KEYS = ("vllm_xargs", "logit_bias")
"""Fields whose keys name what this server has: processors, and ids of tokens."""


def tiny_state(engine: EngineClient) -> ServerState:
    state = state_of(engine, {"hermes": tools.hermes}, tool_call_parser="hermes", max_prompts=8)
    return replace(state, model_names=("tiny",))


# The schema of an engine that says of itself what the real one does, since tests are collected by it.
api = schemathesis.openapi.from_dict(
    create_routes(tiny_state(FakeEngine(vocab_size=1024, max_model_len=MAX_MODEL_LEN))).openapi()
)


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    """A server in a thread, with an event loop of its own."""
    servers: list[uvicorn.Server] = []
    is_up = threading.Event()

    async def serve() -> None:
        config = EngineConfig.from_keywords({"model": "tiny", "max_model_len": MAX_MODEL_LEN})
        engine = await LocalEngine.start(config)
        try:
            app = create_app(tiny_state(engine))
            servers.append(uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off")))
            task = asyncio.create_task(servers[0].serve())
            while not servers[0].started:
                await asyncio.sleep(0.01)
            is_up.set()
            await task
        finally:
            await engine.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert is_up.wait(60)
    yield f"http://127.0.0.1:{servers[0].servers[0].sockets[0].getsockname()[1]}"
    servers[0].should_exit = True
    thread.join(30)
    assert not thread.is_alive()


def accepted(context: CheckContext, response: Response, case: Case[Any]) -> None:
    """positive_data_acceptance, but that a refusal may have one of the codes that are told why above."""
    if response.status_code == 400:
        code = response.json()["error"]["code"]
        body = case.body if isinstance(case.body, dict) else {}
        is_of_keys = code == "invalid_sampling_params" and any(body.get(name) for name in NAMED_BY_KEYS)
        if code in NOT_IN_THE_SCHEMA or is_of_keys:
            return
    positive_data_acceptance(context, response, case)


def check(case: Case[Any], base_url: str) -> None:
    case.call_and_validate(
        base_url=base_url, excluded_checks=[positive_data_acceptance], additional_checks=[accepted]
    )


def test_the_schema_is_the_servers_own(base_url: str) -> None:
    assert httpx.get(f"{base_url}/openapi.json").json() == api.raw_schema


@api.parametrize()
@settings(max_examples=NUM_EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_requests_get_what_the_schema_says(case: Case[Any], base_url: str) -> None:
    check(case, base_url)


@pytest.mark.nightly
@api.parametrize()
@settings(max_examples=NUM_NIGHTLY, deadline=None, phases=PHASES, suppress_health_check=list(HealthCheck))
def test_many_requests_get_what_the_schema_says(case: Case[Any], base_url: str) -> None:
    check(case, base_url)
