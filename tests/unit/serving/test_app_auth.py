"""Keys, hosts and origins: who is answered at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_engine import FakeEngine
from serving_app import state_of
from starlette.testclient import TestClient

from quire.api.errors import ConfigError
from quire_serving.app import create_app, create_routes
from quire_serving.middleware.auth import read_keys
from quire_serving.middleware.hosts import allowed_hosts
from quire_serving.settings import ServeSettings

KEY = "correct-horse-battery"
PUBLIC = {("GET", "/"), ("GET", "/health"), ("GET", "/ready")}


def client_of(**settings: object) -> TestClient:
    return TestClient(create_app(state_of(FakeEngine(), **settings)), raise_server_exceptions=False)


def operations() -> list[tuple[str, str]]:
    routes = create_routes(state_of(FakeEngine())).openapi()["paths"]
    found = [
        (method.upper(), path.replace("{model}", "fake").replace("{name}", "llama"))
        for path, methods in routes.items()
        for method in methods
    ]
    assert len(found) >= 15
    return [*found, ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/nope"), ("POST", "/")]


def spellings(path: str) -> list[str]:
    return [
        path,
        path + "/",
        "/" + path,
        path + "?key=" + KEY,
        path.replace("/", "//"),
        path.upper(),
        "/health/.." + path,
        "/health%2f.." + path,
        "/health;" + path,
        path + "%00",
        path + "/%2e%2e/health",
    ]


@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", f"Bearer {KEY[:-1]}", f"Bearer {KEY}x", f"Basic {KEY}", KEY]
)
def test_nothing_but_probes_and_page_is_reached_without_a_key(header: str | None) -> None:
    client = client_of(api_key=(KEY, "other"))
    headers = {} if header is None else {"Authorization": header}
    num_refused = 0
    for method, path in operations():
        for place, spelling in enumerate(spellings(path)):
            if place == 0 and (method, path) in PUBLIC:
                continue
            answer = client.request(method, "http://testserver" + spelling, headers=headers)
            if path in ("/", "/health", "/ready") and answer.status_code in (200, 404, 405):
                assert (method, answer.request.url.path) in PUBLIC, spelling
                continue
            assert answer.status_code == 401, (method, spelling)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["code"] == "invalid_api_key"
            num_refused += 1
    assert num_refused > 150


def test_public_paths_and_each_key_are_let_in() -> None:
    client = client_of(api_key=(KEY, "other"))
    assert [client.get(path).status_code for path in ("/health", "/ready", "/")] == [200, 200, 200]
    for key in (KEY, "other"):
        assert client.get("/v1/models", headers={"Authorization": f"bearer {key}"}).status_code == 200
    two = [("Authorization", f"Bearer {KEY}"), ("Authorization", "Bearer x")]
    assert client.get("/v1/models", headers=two).status_code == 401  # type: ignore[arg-type]  # httpx takes pairs


def test_keys_come_from_flags_a_file_and_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the team\nfrom-file\n\n")
    settings = ServeSettings(api_key=("flag",), api_key_file=str(file))
    assert read_keys(settings, {"QUIRE_API_KEY": "env"}) == ("flag", "from-file", "env")
    assert read_keys(ServeSettings(), {}) == ()
    file.write_text("# nothing\n")
    with pytest.raises(ConfigError, match="holds no key"):
        read_keys(settings, {})
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(ServeSettings(api_key_file=str(tmp_path / "none")), {})
    with pytest.raises(ConfigError, match="printable ASCII") as caught:
        read_keys(ServeSettings(api_key=("sécret",)), {})
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]:9", "LOCALHOST"])
def test_names_of_loopback_are_answered(host: str) -> None:
    assert client_of(allowed_hosts=()).get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "", "[::2]"]
)
def test_other_names_are_not(host: str) -> None:
    answer = client_of(allowed_hosts=()).get("/health", headers={"Host": host})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "host_not_allowed")


def test_hosts_follow_the_settings() -> None:
    assert allowed_hosts(ServeSettings(host="0.0.0.0")) is None
    assert allowed_hosts(ServeSettings(allowed_hosts=("Api.Example:443",))) == {"api.example"}
    assert allowed_hosts(ServeSettings(allowed_hosts=("*",))) is None


def test_origins_are_answered_only_where_they_are_allowed() -> None:
    ask = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    plain = client_of(api_key=(KEY,)).options("/v1/completions", headers=ask)
    assert plain.status_code == 401 and "access-control-allow-origin" not in plain.headers
    client = client_of(api_key=(KEY,), allowed_origins=("https://app.example",))
    preflight = client.options("/v1/completions", headers=ask)
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, ask["Origin"])
    refused = client.get("/v1/models", headers={"Origin": "https://app.example"})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, ask["Origin"])
    other = client.get("/health", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


def test_probes_answer_head_without_a_key() -> None:
    client = client_of(api_key=(KEY,))
    for path in ("/health", "/ready"):
        answer = client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-length"] == client.get(path).headers["content-length"]
    assert client.head("/v1/models").status_code == 401


@pytest.mark.parametrize(
    ("origin", "is_refused"),
    [
        ("http://testserver", False),
        ("https://TestServer", False),
        ("https://app.example", False),
        ("https://evil.example", True),
        ("http://testserver:81", True),
        ("http://testserver.evil.example", True),
        ("null", True),
        ("", True),
    ],
)
def test_pages_of_other_origins_change_nothing(origin: str, is_refused: bool) -> None:
    client = client_of(allowed_origins=("https://app.example",))
    headers = {"Origin": origin}
    for method, path in (("POST", "/reset_prefix_cache"), ("PUT", "/health"), ("DELETE", "/health")):
        answer = client.request(method, path, headers=headers)
        expected = 403 if is_refused else 204 if method == "POST" else 405
        assert answer.status_code == expected
        if is_refused:
            assert answer.json()["error"]["code"] == "origin_not_allowed"
    as_json = client.post("/v1/completions", json={"prompt": "a"}, headers=headers)
    assert as_json.status_code == 200  # browsers ask before they send it, and are told no
    assert client.get("/health", headers=headers).status_code == 200


def test_any_origin_may_be_allowed() -> None:
    client = client_of(allowed_origins=("*",))
    assert client.post("/reset_prefix_cache", headers={"Origin": "https://any.example"}).status_code == 204


@pytest.mark.parametrize(("flags", "is_told"), [((), True), (("second",), False)])
def test_cached_tokens_are_told_to_the_only_key(
    monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], is_told: bool
) -> None:
    """What is cached would tell one client of the others' prompts, wherever its key was given."""
    monkeypatch.setenv("QUIRE_API_KEY", KEY)
    headers = {"Authorization": f"Bearer {KEY}"}
    answer = client_of(api_key=flags).post("/v1/completions", json={"prompt": "a"}, headers=headers)
    assert ("cached_tokens" in answer.text) == is_told


def test_a_file_of_one_key_is_one_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(KEY, encoding="ascii")
    headers = {"Authorization": f"Bearer {KEY}"}
    client = client_of(api_key_file=str(file))
    assert "cached_tokens" in client.post("/v1/completions", json={"prompt": "a"}, headers=headers).text
