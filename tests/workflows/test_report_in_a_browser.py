"""The report in Chromium: it renders, fetches nothing, resists hostile text, prints, and fits a phone."""

import io
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from tests.full_project import GREEN, HOSTILE, ORANGE, fill
from unziplora_cli.projects.store import Project
from unziplora_cli.workflows.report import report


def _find_chromium() -> str | None:
    """The first Chromium that starts; on some systems the command only says how to install one."""
    for name in ("chromium", "google-chrome", "chrome"):
        program = shutil.which(name)
        if program and subprocess.run([program, "--version"], capture_output=True).returncode == 0:
            return program
    return None


CHROMIUM = _find_chromium()
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
"""Chromium's own update checks must not leave this machine."""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")

# Every element's own text against the nearest opaque background behind it (WCAG 2, relative luminance).
CONTRASTS = """(() => {
  const numbers = color => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (; element; element = element.parentElement) {
      const color = numbers(getComputedStyle(element).backgroundColor);
      if (color.length < 4 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll('body *')]
    .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()))
    .map(e => {
      const style = getComputedStyle(e);
      const ink = numbers(e.namespaceURI.endsWith('svg') ? style.fill : style.color);
      const [dim, bright] = [light(ink), light(behind(e))].sort((a, b) => a - b);
      return [(bright + 0.05) / (dim + 0.05), e.tagName + '.' + e.getAttribute('class')];
    });
})()"""


class Tab:
    """A page with the URLs that it requested and the errors that Chromium logged since it was opened."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.requested: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda request: self.requested.append(request.url))
        page.on("console", lambda message: self.errors.append(message.text))

    def open(self, file: Path, width: int = 1200, *, dark: bool = False) -> None:
        """Load a file, and wait until all of it is there."""
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.emulate_media(color_scheme="dark" if dark else "light")
        self.requested.clear()
        self.errors.clear()
        self.page.goto(file.as_uri(), wait_until="load")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression on the page."""
        return self.page.evaluate(expression)


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", OFFLINE]) as browser,
    ):
        yield Tab(browser.new_page())


@pytest.fixture
def file(make_project: Callable[..., Project], tmp_path: Path) -> Path:
    return report(fill(make_project("fox")), tmp_path / "page.html").file


class Tracker(ThreadingHTTPServer):
    """A server that records every path that is fetched."""

    def __init__(self) -> None:
        self.fetched: list[str] = []
        super().__init__(("127.0.0.1", 0), _Answer)

    @property
    def address(self) -> str:
        """The server's URL."""
        return f"http://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    server: Tracker

    def do_GET(self) -> None:
        self.server.fetched.append(self.path)
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def tracker() -> Iterator[Tracker]:
    with Tracker() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_page_renders_with_its_style_and_images(tab, file):
    tab.open(file)
    assert tab.errors == []
    assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(251, 250, 247)"
    shown = tab.evaluate("document.body.innerText")
    for text in (HOSTILE.subject, HOSTILE.style, HOSTILE.trigger):
        assert text in shown
    screenshot = Image.open(io.BytesIO(tab.page.screenshot(full_page=True))).convert("RGB")
    colors = {color for _, color in screenshot.getcolors(1 << 24)}
    assert {ORANGE, (251, 250, 247)} <= colors
    assert any(max(abs(a - b) for a, b in zip(color, GREEN, strict=True)) < 4 for color in colors)


def test_page_requests_only_itself(tab, file):
    tab.open(file)
    other = [url for url in tab.requested if not url.startswith("data:")]
    assert other == [file.as_uri()]
    assert tab.evaluate("performance.getEntriesByType('resource').length") == 0


ATTACK = """
<script>document.title = 'run'</script><style>body {{ color: red }}</style>
<img src="{0}/a.png" onerror="document.title = 'run'"><link rel="stylesheet" href="{0}/b.css">
<iframe src="{0}/c"></iframe><object data="{0}/d"></object><video src="{0}/e.mp4"></video>
<p style="background: url({0}/f.png)">x</p><svg><image href="{0}/g.png"/></svg>
<link rel="icon" href="{0}/h.ico"><link rel="preload" as="image" href="{0}/i.png">
"""


def test_attack_works_without_the_policy(tab, tracker, tmp_path):
    fetching = tmp_path / "fetching.html"
    fetching.write_text(f"<!doctype html>{ATTACK.format(tracker.address)}", encoding="utf-8")
    tracker.fetched.clear()
    tab.open(fetching)
    assert {"/a.png", "/b.css", "/c", "/d", "/f.png", "/g.png"} <= set(tracker.fetched)
    assert f"{tracker.address}/a.png" in tab.requested
    assert tab.evaluate("document.title") == "run"


def test_injected_markup_can_neither_run_nor_fetch(tab, tracker, file):
    html = file.read_text(encoding="utf-8")
    file.write_text(html.replace("<main>", "<main>" + ATTACK.format(tracker.address)), encoding="utf-8")
    tracker.fetched.clear()
    tab.open(file)
    assert tab.evaluate("document.querySelectorAll('script, iframe, object').length") == 3
    assert tracker.fetched == []
    assert tab.evaluate("document.title").startswith("fox: <script>")
    assert tab.evaluate("getComputedStyle(document.body).color") == "rgb(35, 33, 30)"
    assert len(tab.errors) >= 8


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200], ids=["phone", "desk"])
def test_page_fits_its_window_with_readable_contrast(tab, file, width, dark):
    tab.open(file, width, dark=dark)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    parts = "[...document.querySelectorAll('main > section > *, figure')]"
    assert max(tab.evaluate(f"{parts}.map(part => part.getBoundingClientRect().right)")) <= width
    bright = tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(251, 250, 247)"
    assert bright is not dark
    low_contrast = [(round(ratio, 2), where) for ratio, where in tab.evaluate(CONTRASTS) if ratio < 4.5]
    assert low_contrast == []


def test_page_prints_in_light_colors(tab, file):
    tab.open(file, dark=True)
    pdf = tab.page.pdf(prefer_css_page_size=True, print_background=True, width="8.27in", height="11.69in")
    pages = len(re.findall(rb"/Type\s*/Page\b", pdf))
    assert pdf.startswith(b"%PDF-")
    assert 3 <= pages <= 15
    tab.page.emulate_media(media="print")
    try:
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgba(0, 0, 0, 0)"
        assert tab.evaluate("getComputedStyle(document.body).color") == "rgb(35, 33, 30)"
        assert tab.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
        uncut = (
            "[...document.querySelectorAll('figure')].every(e => getComputedStyle(e).breakInside === 'avoid')"
        )
        assert tab.evaluate(uncut)
    finally:
        tab.page.emulate_media(media="screen")
