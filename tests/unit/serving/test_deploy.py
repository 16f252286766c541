"""The files of deploy/ hold what they have to, and name only what exists."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from quire.cli.main import build_parser
from quire.plugins import PluginHost
from quire_serving.settings import ServeSettings

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
DOCKERFILES = ["Dockerfile", "Dockerfile.cuda"]


def load(name: str) -> Any:
    yaml = pytest.importorskip("yaml")
    documents = list(yaml.safe_load_all((DEPLOY / name).read_text()))
    return documents if len(documents) > 1 else documents[0]


def check_command(words: list[str]) -> None:
    """A command line of `quire`: it serves a model, with flags and values that its parser takes."""
    parser, _ = build_parser(PluginHost.discover(strict=False), ["serve"])
    args = parser.parse_args(words)
    assert args.command == "serve" and args.served_model and not args.served_model.startswith("-")
    assert args.host and args.port == 8000


def instructions(name: str) -> Iterator[tuple[str, str]]:
    text = re.sub(r"(?m)^#.*\n", "", (DEPLOY / name).read_text()).replace("\\\n", " ")
    for line in filter(str.strip, text.splitlines()):
        word, rest = line.strip().split(None, 1)
        yield word, rest


@pytest.mark.parametrize("name", DOCKERFILES)
def test_dockerfile(name: str) -> None:
    lines = list(instructions(name))
    known = {"FROM", "RUN", "WORKDIR", "COPY", "USER", "ENV", "VOLUME", "EXPOSE", "HEALTHCHECK", "STOPSIGNAL"}
    assert {word for word, _ in lines} <= known | {"ENTRYPOINT", "CMD"}
    for word, rest in lines:
        if word == "COPY":
            assert all((ROOT / source).exists() for source in rest.split()[:-1]), rest
    installed = " ".join(rest for word, rest in lines if word == "RUN")
    for project in ROOT.glob("plugins/*/pyproject.toml"):
        assert f"./plugins/{project.parent.name}" in installed
    last = dict(lines)
    assert last["USER"] == "10001"
    assert "/ready" in last["HEALTHCHECK"]
    assert json.loads(last["ENTRYPOINT"]) == ["quire"]
    check_command(json.loads(last["CMD"]))


def test_commands_in_the_documentation() -> None:
    text = (ROOT / "docs" / "how-to" / "deploy.md").read_text()
    text += "".join((DEPLOY / name).read_text().replace("#", "") for name in DOCKERFILES)
    commands = re.findall(r"(?m)^ *serve .*$", text.replace("\\\n", " ").replace(" serve ", "\n serve "))
    served = [
        shlex.split(command.split("`")[0])
        for command in commands
        if " --port" in command and "..." not in command
    ]
    assert len(served) >= 3
    parser, _ = build_parser(PluginHost.discover(strict=False), ["serve"])
    for words in served:
        parser.parse_args(words)


def test_every_file_is_documented() -> None:
    text = (ROOT / "docs" / "how-to" / "deploy.md").read_text()
    names = [path.name for path in DEPLOY.iterdir() if path.name not in ("grafana", "prometheus")]
    names += ["grafana/quire-dashboard.json", "prometheus/prometheus.yml"]
    assert [name for name in names if name not in text and name != "compose.yaml"] == []
    assert "docker compose" in text


def test_compose() -> None:
    pytest.importorskip("yaml")
    compose = load("compose.yaml")
    services = compose["services"]
    assert set(services) == {"quire", "prometheus", "grafana"}
    check_command(services["quire"]["command"])
    assert (
        DEPLOY / services["quire"]["build"]["context"] / services["quire"]["build"]["dockerfile"]
    ).is_file()
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        for source in (volume.split(":")[0] for volume in service.get("volumes", [])):
            assert (DEPLOY / source).exists() if source.startswith("./") else source in compose["volumes"]
        for config in service.get("configs", []):
            assert config["source"] in compose["configs"]
    assert int(services["quire"]["stop_grace_period"].rstrip("s")) > ServeSettings().drain_s  # type: ignore[call-arg]  # fields have defaults
    import yaml

    scrape = yaml.safe_load(compose["configs"]["prometheus"]["content"])["scrape_configs"][0]
    plain = load("prometheus/prometheus.yml")["scrape_configs"][0]
    assert scrape["static_configs"][0]["targets"] == ["quire:8000"]
    assert scrape["metrics_path"] == plain["metrics_path"] == "/metrics"
    providers = yaml.safe_load(compose["configs"]["grafana-dashboards"]["content"])["providers"]
    folder = providers[0]["options"]["path"]
    assert any(volume.split(":")[1].startswith(folder) for volume in services["grafana"]["volumes"])


def test_compose_as_docker_reads_it() -> None:
    if shutil.which("docker") is None:
        pytest.skip("no docker here")
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker has no compose here")
    command = ["docker", "compose", "-f", str(DEPLOY / "compose.yaml"), "config", "--quiet"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_kubernetes() -> None:
    deployment, service = load("kubernetes.yaml")
    pod = deployment["spec"]["template"]["spec"]
    container = pod["containers"][0]
    check_command(container["args"])
    assert container["startupProbe"]["httpGet"]["path"] == "/ready"
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/health"
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    drain = float(container["args"][container["args"].index("--drain-s") + 1])
    assert pod["terminationGracePeriodSeconds"] > pause + drain
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == labels
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
    keys = container["args"][container["args"].index("--api-key-file") + 1]
    assert keys.startswith(next(mount["mountPath"] for mount in container["volumeMounts"]))


def test_sky() -> None:
    sky = load("sky.yaml")
    assert sky["service"]["readiness_probe"]["path"] == "/ready"
    command = next(line for line in sky["run"].splitlines() if "quire serve" in line)
    words = shlex.split(command)
    check_command(words[words.index(".venv/bin/quire") + 1 :])
    assert str(sky["resources"]["ports"]) == words[words.index("--port") + 1]
    used = set(re.findall(r"\$\{?([A-Z_]+)", sky["run"]))
    assert used == set(sky["envs"]) | set(sky["secrets"])
    assert "$(STAMPS)/run:" in (ROOT / "Makefile").read_text() and ".stamps/run" in sky["setup"]


def test_systemd_unit(tmp_path: Path) -> None:
    text = (DEPLOY / "quire.service").read_text()
    values = dict(re.findall(r"(?m)^(\w+)=(.*)$", text))
    check_command(values["ExecStart"].split()[1:])
    drain = float(values["ExecStart"].split("--drain-s ")[1])
    assert float(values["TimeoutStopSec"]) > drain
    assert values["KillSignal"] == "SIGTERM"
    if shutil.which("systemd-analyze") is None:
        pytest.skip("the text is right; there is no systemd-analyze here to read the whole")
    unit = tmp_path / "quire.service"
    unit.write_text(text.replace("/opt/quire/bin/quire", "/bin/true"))
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    said = [line for line in checked.stderr.splitlines() if "quire.service" in line]
    assert said == [], said


class FakeTriton(ModuleType):
    """What Triton's module has of what the model uses."""

    TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1

    def __init__(self) -> None:
        super().__init__("triton_python_backend_utils")

    Tensor = staticmethod(lambda name, array: SimpleNamespace(name=name, array=array))
    TritonError = staticmethod(lambda message: message)
    InferenceResponse = staticmethod(
        lambda tensors, error=None: SimpleNamespace(tensors=tensors, error=error)
    )

    @staticmethod
    def get_input_tensor_by_name(request: Any, name: str) -> Any:
        value = request.inputs.get(name)
        return None if value is None else SimpleNamespace(as_numpy=lambda: np.array([value.encode()], object))


class TritonRequest:
    """A request and its sender at once."""

    def __init__(self, **inputs: str) -> None:
        self.inputs = inputs
        self.responses: list[Any] = []
        self.is_done = threading.Event()

    def get_response_sender(self) -> TritonRequest:
        return self

    def is_cancelled(self) -> bool:
        return False

    def send(self, response: Any = None, flags: int = 0) -> None:
        if response is not None:
            self.responses.append(response)
        if flags:
            self.is_done.set()


def test_triton_model_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    config = (DEPLOY / "triton" / "quire" / "config.pbtxt").read_text()
    source = (DEPLOY / "triton" / "quire" / "1" / "model.py").read_text()
    names = set(re.findall(r'name: "(\w+)" data_type', config))
    assert names == {"text_input", "sampling_parameters", "text_output"}
    assert all(f'"{name}"' in source for name in names)
    assert 'name: "quire"' in config and "decoupled: True" in config
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", FakeTriton())
    spec = importlib.util.spec_from_file_location("quire_triton_model", DEPLOY / "triton/quire/1/model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    model.initialize({"model_config": json.dumps({"parameters": {"model": {"string_value": "tiny"}}})})
    try:
        good = TritonRequest(
            text_input="San Francisco", sampling_parameters='{"max_tokens": 5, "temperature": 0}'
        )
        bad = TritonRequest(text_input="San Francisco", sampling_parameters='{"temperature": -1}')
        model.execute([good, bad])
        assert good.is_done.wait(30) and bad.is_done.wait(30)
    finally:
        model.finalize()
    assert len(good.responses) > 1 and all(response.error is None for response in good.responses)
    assert [response.tensors for response in bad.responses] == [[]]
    assert "temperature" in bad.responses[0].error
