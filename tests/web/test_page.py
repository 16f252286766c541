"""The page in a real browser, against canned answers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from canned_server import HOSTILE, Canned, LiveServer, create
from cdp_browser import Browser, find_browser
from server_process import ServerProcess

BROWSER = find_browser()
pytestmark = [
    pytest.mark.web,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on the path"),
]
LAST = "document.querySelector('.message:last-of-type')"
IS_DONE = f"{LAST} && !document.querySelector('.is-streaming')"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(BROWSER or "", tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def canned(tab: Browser) -> Iterator[Canned]:
    yield Canned()
    assert not tab.complaints, "errors in the page or refusals of its policy"


@pytest.fixture
def url(canned: Canned) -> Iterator[str]:
    server = LiveServer(create(canned))
    yield server.url
    server.close()


def shoot(tab: Browser, name: str) -> None:
    """Keep a picture where PAGE_SCREENSHOTS names a folder."""
    if folder := os.environ.get("PAGE_SCREENSHOTS"):
        tab.screenshot(Path(folder) / f"page_{name}.png")


def ask(tab: Browser, text: str) -> None:
    tab.evaluate("document.getElementById('input').focus()")
    tab.type(text)
    tab.enter()


def start(tab: Browser, url: str, **view: object) -> None:
    tab.open("about:blank")
    tab.requests.clear()
    tab.open(url, **view)  # type: ignore[arg-type]  # the view's keywords as they are
    tab.wait_for("document.getElementById('model').options.length === 2")


def test_an_answer_streams_with_its_figures(tab: Browser, canned: Canned, url: str) -> None:
    canned.gap_s, canned.reasoning = 0.01, "two and three"
    start(tab, url)
    tab.evaluate("document.querySelector('[data-field=temperature]').value = '0.5'")
    tab.evaluate("document.getElementById('system').value = 'Be brief.'")
    ask(tab, "What is 2 + 3?")
    tab.wait_for(IS_DONE)
    assert tab.evaluate(f"{LAST}.querySelector(':scope > .text').textContent").strip() == canned.text
    assert tab.evaluate(f"{LAST}.querySelector('details').open") is False
    assert tab.evaluate(f"{LAST}.querySelector('details .text').textContent").strip() == canned.reasoning
    stats = tab.evaluate(f"{LAST}.querySelector('.stats').textContent")
    assert "first token after" in stats and "11 tokens" in stats and "tokens/s" in stats
    kind, body = canned.asked[0]
    assert kind == "chat"
    assert body == {
        "model": "tiny",
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What is 2 + 3?"},
        ],
    }
    assert all(request.startswith((url, "data:")) for request in tab.requests)
    shoot(tab, "light")


def test_text_is_never_markup(tab: Browser, canned: Canned, url: str) -> None:
    canned.text = HOSTILE
    start(tab, url)
    ask(tab, HOSTILE)
    tab.wait_for(IS_DONE)
    assert tab.evaluate("document.querySelectorAll('#log img, #log b').length") == 0
    assert tab.evaluate(f"{LAST}.querySelector('.text').textContent").strip() == HOSTILE
    assert tab.evaluate("document.title") == "Quire"


def test_escape_stops_and_regenerate_asks_again(tab: Browser, canned: Canned, url: str) -> None:
    canned.gap_s, canned.text = 0.05, "word " * 100
    start(tab, url, scheme="dark")
    ask(tab, "Go on")
    tab.wait_for(f"{LAST}.textContent.length > 30")
    shoot(tab, "streaming")
    tab.press("Escape", code=27)
    tab.wait_for(IS_DONE)
    assert "stopped" in tab.evaluate(f"{LAST}.querySelector('.stats').textContent")
    canned.gap_s, canned.text = 0.0, "Short."
    tab.evaluate("document.getElementById('regenerate').click()")
    tab.wait_for(f"{IS_DONE} && {LAST}.textContent.includes('Short.')")
    assert tab.evaluate("document.querySelectorAll('.message').length") == 2
    assert canned.asked[0] == canned.asked[1]
    assert canned.num_left == 1, "the server saw the client go"
    tab.evaluate("document.getElementById('clear').click()")
    assert tab.evaluate("document.querySelectorAll('.message').length") == 0


def test_shift_enter_breaks_the_line(tab: Browser, canned: Canned, url: str) -> None:
    start(tab, url)
    tab.evaluate("document.getElementById('input').focus()")
    tab.type("one")
    tab.enter(shift=True)
    tab.type("two")
    assert tab.evaluate("document.getElementById('input').value") == "one\ntwo"
    assert not canned.asked


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (
            (429, {"message": "256 requests wait", "code": "queue_full"}),
            "busy: its queue is full. It said: 256 requests",
        ),
        ((400, {"message": "top_p is 3", "code": "invalid_sampling_params"}), "top_p is 3"),
        ((500, {}), "The server answered with status 500."),
    ],
)
def test_errors_are_said(
    tab: Browser, canned: Canned, url: str, failure: tuple[int, dict[str, str]], expected: str
) -> None:
    canned.failure = failure
    start(tab, url)
    ask(tab, "hello")
    tab.wait_for(IS_DONE)
    said = tab.evaluate(f"{LAST}.querySelector('.error').textContent")
    assert expected in said
    assert ("Try again in 7 s." in said) == (failure[0] > 400)
    shoot(tab, f"error_{failure[0]}")


def test_a_cut_stream_is_no_whole_answer(tab: Browser, canned: Canned, url: str) -> None:
    canned.is_cut = True
    start(tab, url)
    ask(tab, "hello")
    tab.wait_for(IS_DONE)
    assert "before the answer was complete" in tab.evaluate(f"{LAST}.querySelector('.error').textContent")


def test_a_key_opens_the_server(tab: Browser, canned: Canned, url: str) -> None:
    canned.key = "secret"
    tab.open(url)
    tab.wait_for("!document.getElementById('engine-note').hidden")
    assert "enter it at the top" in tab.evaluate("document.getElementById('engine-note').textContent")
    assert tab.evaluate("document.getElementById('key').getBoundingClientRect().right") > 1200
    shoot(tab, "no_key")
    tab.evaluate("document.getElementById('key').focus()")
    tab.type("secret")
    tab.enter()
    tab.wait_for("document.getElementById('model').options.length === 2")
    tab.wait_for("document.getElementById('engine-note').hidden")
    ask(tab, "hello")
    tab.wait_for(IS_DONE)
    assert tab.evaluate(f"{LAST}.querySelector('.error')") is None
    assert tab.evaluate("Object.keys(localStorage).length") == 0
    assert tab.evaluate("sessionStorage.getItem('quire.key')") == "secret"
    tab.evaluate("sessionStorage.clear()")


def test_without_a_template_it_completes_text(tab: Browser, canned: Canned, url: str) -> None:
    canned.has_template = False
    start(tab, url)
    ask(tab, "San Francisco is a")
    tab.wait_for(IS_DONE)
    assert tab.evaluate("document.getElementById('mode').value") == "completion"
    tab.evaluate("document.getElementById('regenerate').click()")
    tab.wait_for(f"{IS_DONE} && {LAST}.textContent.includes('five')")
    kind, body = canned.asked[-1]
    assert (kind, body["prompt"]) == ("completion", "San Francisco is a")


@pytest.mark.parametrize("prefix", ["quire", "vllm"])
def test_the_engine_is_shown_live(tab: Browser, canned: Canned, url: str, prefix: str) -> None:
    canned.prefix, canned.drafts = prefix, True
    start(tab, url, scheme="dark" if prefix == "vllm" else "light")
    tab.wait_for("(document.getElementById('spark-line').getAttribute('d') || '').split('L').length > 2")

    def shown(name: str) -> str:
        return str(tab.evaluate(f"document.getElementById('{name}').textContent"))

    assert float(shown("rate")) > 20
    assert (shown("running"), shown("waiting"), shown("hits"), shown("acceptance")) == (
        "3",
        "2",
        "64 %",
        "75 %",
    )
    legend = (shown("legend-used"), shown("legend-cached"), shown("legend-free"))
    assert legend == ("128 in use", "192 cached", "192 free")
    assert tab.evaluate("document.getElementById('blocks-used').getAttribute('width')") == "25"
    assert tab.evaluate("document.getElementById('blocks-cached').getAttribute('x')") == "25"
    assert shown("plugins-count") == "2 on, 1 off"
    tab.evaluate("document.getElementById('plugins-box').open = true")
    assert tab.evaluate("document.querySelector('#plugins .is-off').textContent") == "triton-kernelsno GPU"
    shoot(tab, f"live_{prefix}")


def test_an_engine_that_is_not_ready_says_why(tab: Browser, canned: Canned, url: str) -> None:
    canned.is_ready = False
    start(tab, url)
    tab.wait_for("document.getElementById('ready-text').textContent === 'not ready: the engine is starting'")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(tab: Browser, canned: Canned, url: str, scheme: str) -> None:
    start(tab, url, width=380, height=740, scheme=scheme)
    ask(tab, "What is 2 + 3? " + "x" * 120)
    tab.wait_for(IS_DONE)
    shoot(tab, f"narrow_{scheme}")
    assert tab.evaluate("document.documentElement.scrollWidth") == 380
    tab.evaluate("document.getElementById('panel-toggle').click()")
    assert tab.evaluate("document.getElementById('panel').getBoundingClientRect().width") == 380
    shoot(tab, f"narrow_panel_{scheme}")
    assert tab.evaluate("document.documentElement.scrollWidth") == 380


def test_every_control_has_a_name(tab: Browser, url: str) -> None:
    start(tab, url)
    tree = tab.call("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "textbox", "combobox", "spinbutton", "log"}
    controls = [node for node in tree if not node["ignored"] and node["role"]["value"] in roles]
    assert len(controls) > 15
    assert [node for node in controls if not node.get("name", {}).get("value")] == []


def test_it_works_with_the_real_server(tab: Browser) -> None:
    with ServerProcess("--api-key", "secret") as server:
        tab.open("about:blank")
        tab.open(f"{server.url}/")
        tab.evaluate("document.getElementById('key').focus()")
        tab.type("secret")
        tab.enter()
        tab.wait_for("document.getElementById('model').options.length === 1")
        ask(tab, "What is 2 + 3?")
        tab.wait_for(IS_DONE)
        assert tab.evaluate(f"{LAST}.querySelector('.error')?.textContent ?? ''") == ""
        assert tab.evaluate(f"{LAST}.querySelector('.text').textContent").strip()
        assert "tokens" in tab.evaluate(f"{LAST}.querySelector('.stats').textContent")
        tab.wait_for("/^[1-9]/.test(document.getElementById('legend-free').textContent)")
        tab.wait_for("document.getElementById('ready-text').textContent === 'ready'")
        tab.wait_for("document.querySelectorAll('#plugins .name').length > 5")
        tab.evaluate("document.getElementById('plugins-box').open = true")
        tab.wait_for("document.getElementById('spark-line').getAttribute('d').split('L').length > 3")
        shoot(tab, "real")
        with ThreadPoolExecutor() as pool:
            headers = {"Authorization": "Bearer secret"}
            body = {"model": "tiny", "prompt": "San", "max_tokens": 1000, "ignore_eos": True, "n": 4}
            pool.submit(httpx.post, f"{server.url}/v1/completions", json=body, headers=headers, timeout=60)
            tab.wait_for("document.getElementById('running').textContent === '4'")
            tab.wait_for("parseFloat(document.getElementById('rate').textContent) > 10")
            tab.wait_for("parseInt(document.getElementById('legend-used').textContent) > 4")
            shoot(tab, "real_busy")
            tab.wait_for("document.getElementById('running').textContent === '0'", 30)
        tab.evaluate("sessionStorage.clear()")
