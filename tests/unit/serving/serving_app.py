"""The server's application over a fake engine, for tests of routes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fake_engine import FakeEngine
from starlette.testclient import TestClient

from quire.api.client import EngineClient
from quire.api.serving import ParserFactory, ServerExtensions
from quire_serving.admission import Admission
from quire_serving.app import create_app
from quire_serving.metrics import ServerMetrics
from quire_serving.settings import ServeSettings
from quire_serving.state import ServerState

__all__ = ["FakeServer", "create_app", "state_of"]


def state_of(
    engine: EngineClient,
    tool_parsers: Mapping[str, ParserFactory] | None = None,
    reasoning_parsers: Mapping[str, ParserFactory] | None = None,
    **settings: Any,
) -> ServerState:
    """A server's state; the model is called "fake"."""
    chosen = ServeSettings(**{"access_log": False, "allowed_hosts": ("*",), **settings})
    return ServerState(
        client=engine,
        settings=chosen,
        extensions=ServerExtensions(
            tool_parsers=tool_parsers or {}, reasoning_parsers=reasoning_parsers or {}
        ),
        model_names=("fake",),
        created=1,
        admission=Admission(engine, chosen),
        metrics=ServerMetrics(engine, "fake"),
    )


@dataclass
class FakeServer:
    """An application and a client of it."""

    engine: FakeEngine
    state: ServerState
    client: TestClient

    @classmethod
    def of(cls, engine: FakeEngine | None = None, **settings: Any) -> FakeServer:
        """Over an engine; settings as for `state_of`."""
        engine = engine or FakeEngine()
        state = state_of(engine, **settings)
        return cls(engine, state, TestClient(create_app(state)))

    def ok(self, path: str, **body: object) -> dict[str, Any]:
        """The JSON body of an answer that must be one."""
        answer = self.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()  # type: ignore[no-any-return]  # JSON

    def refused(self, path: str, **body: object) -> tuple[int, str, str | None]:
        """Status, code and param of an answer that must be an error."""
        # json.dumps writes what not every client can: halves of surrogate pairs
        answer = self.client.post(
            path, content=json.dumps(body), headers={"content-type": "application/json"}
        )
        error = answer.json()["error"]
        assert error["message"]
        return answer.status_code, error["code"], error["param"]

    def events(self, path: str, **body: object) -> list[Any]:
        """The events of a stream; the last one is "[DONE]" where that came."""
        answer = self.client.post(path, json={"stream": True, **body})
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in answer.text.strip().split("\n\n")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]
