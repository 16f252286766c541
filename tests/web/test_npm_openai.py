"""The npm client of OpenAI against a live server."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from server_process import ServerProcess

KEY = "a-key-of-the-test"
pytestmark = pytest.mark.web


def test_npm_client(npm_folder: Path, capitals: tuple[str, ...]) -> None:
    # Node looks for packages beside the script.
    script = shutil.copy(Path(__file__).with_name("npm_openai.mjs"), npm_folder)
    with ServerProcess("--api-key", KEY, *capitals) as server:
        run = subprocess.run(
            ["node", script, server.url, KEY], capture_output=True, text=True, timeout=60, check=False
        )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["models"] == ["tiny"]
    assert len(found["texts"]) == 2 and found["texts"][0] == found["texts"][1] == found["streamed"] != ""
    assert found["finish"] in ("stop", "length")
    assert found["streamedUsage"]["prompt_tokens"] == found["usage"]["prompt_tokens"] > 0
    assert found["logprobs"] * 2 == found["usage"]["completion_tokens"]
    assert found["completion"] == 2 * found["streamedCompletionUsage"] > 0
    assert found["completions"] == [found["streamedCompletion"]] * 2 == [found["completionTokens"]] * 2
    assert found["stopped"] == found["streamed"].split(found["streamed"][1])[0]
    assert found["toolFinish"] == "tool_calls"
    assert found["tool"] == found["streamedTool"] == {"name": "capital_of", "country": "France"}
    assert found["toldOfResult"] > 5
    assert (found["untold"]["finish"], found["untold"]["calls"]) == ("stop", [])
    assert "France" in found["untold"]["text"]
    assert found["forcedTool"] == {
        "name": "BadRequestError", "status": 400, "code": "tool_choice_unsupported",
    }  # fmt: skip
    assert found["unknownModel"] == {"name": "NotFoundError", "status": 404, "code": "model_not_found"}
    assert (found["badValue"]["name"], found["badValue"]["status"]) == ("BadRequestError", 400)
    assert (found["badKey"]["name"], found["badKey"]["status"]) == ("AuthenticationError", 401)
    assert found["afterBreak"] == found["streamed"]
