"""The page in a real browser: it renders, fetches nothing, resists what was typed, prints, fits a phone."""

import io
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from tests import browser
from tests.full_project import GREEN, HOSTILE, ORANGE, fill
from unziplora_cli.projects.store import Project
from unziplora_cli.workflows.report import report

pytestmark = pytest.mark.skipif(browser.PROGRAM is None, reason="there is no Chromium on this machine")

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


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    with browser.browser(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture
def file(make_project: Callable[..., Project], tmp_path: Path) -> Path:
    return report(fill(make_project("fox")), tmp_path / "page.html").file


class Tracker(ThreadingHTTPServer):
    """Somebody who would like to know who reads the page: writes down everything that is fetched."""

    def __init__(self) -> None:
        self.fetched: list[str] = []
        super().__init__(("127.0.0.1", 0), _Answer)

    @property
    def address(self) -> str:
        """Where to fetch from."""
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


def test_it_renders_with_its_style_and_all_its_pictures(page, file):
    page.look(1200, 900)
    page.open(file)
    assert page.complaints() == []
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(251, 250, 247)"
    shown = page.evaluate("document.body.innerText")
    for text in (HOSTILE.subject, HOSTILE.style, HOSTILE.trigger):
        assert text in shown
    screenshot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    colors = {color for _, color in screenshot.getcolors(1 << 24)}
    assert {ORANGE, (251, 250, 247)} <= colors
    assert any(max(abs(a - b) for a, b in zip(color, GREEN, strict=True)) < 4 for color in colors)


def test_it_asks_for_nothing_but_itself(page, file):
    page.open(file)
    elsewhere = [address for address in page.requested if not address.startswith("data:")]
    assert elsewhere == [file.as_uri()]
    assert page.evaluate("performance.getEntriesByType('resource').length") == 0


ATTACK = """
<script>document.title = 'run'</script><style>body {{ color: red }}</style>
<img src="{0}/a.png" onerror="document.title = 'run'"><link rel="stylesheet" href="{0}/b.css">
<iframe src="{0}/c"></iframe><object data="{0}/d"></object><video src="{0}/e.mp4"></video>
<p style="background: url({0}/f.png)">x</p><svg><image href="{0}/g.png"/></svg>
<link rel="icon" href="{0}/h.ico"><link rel="preload" as="image" href="{0}/i.png">
"""


def test_a_page_without_the_policy_would_fetch_and_be_seen(page, tracker, tmp_path):
    fetching = tmp_path / "fetching.html"
    fetching.write_text(f"<!doctype html>{ATTACK.format(tracker.address)}", encoding="utf-8")
    tracker.fetched.clear()
    page.open(fetching)
    assert {"/a.png", "/b.css", "/c", "/d", "/f.png", "/g.png"} <= set(tracker.fetched)
    assert f"{tracker.address}/a.png" in page.requested
    assert page.evaluate("document.title") == "run"


def test_even_markup_that_got_into_the_page_could_neither_run_nor_fetch(page, tracker, file):
    html = file.read_text(encoding="utf-8")
    file.write_text(html.replace("<main>", "<main>" + ATTACK.format(tracker.address)), encoding="utf-8")
    tracker.fetched.clear()
    page.open(file)
    assert page.evaluate("document.querySelectorAll('script, iframe, object').length") == 3
    assert tracker.fetched == []
    assert page.evaluate("document.title").startswith("fox: <script>")
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(35, 33, 30)"
    assert len(page.complaints()) >= 8


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200], ids=["phone", "desk"])
def test_it_fits_its_window_and_can_be_read(page, file, width, dark):
    page.look(width, 800, dark=dark)
    page.open(file)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    parts = "[...document.querySelectorAll('main > section > *, figure')]"
    assert max(page.evaluate(f"{parts}.map(part => part.getBoundingClientRect().right)")) <= width
    bright = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(251, 250, 247)"
    assert bright is not dark
    faint = [(round(ratio, 2), where) for ratio, where in page.evaluate(CONTRASTS) if ratio < 4.5]
    assert faint == []


def test_it_prints_on_white_paper_whatever_the_screen(page, file):
    page.look(1200, 900, dark=True)
    page.open(file)
    pdf = page.pdf()
    pages = len(re.findall(rb"/Type\s*/Page\b", pdf))
    assert pdf.startswith(b"%PDF-")
    assert 3 <= pages <= 15
    page.call("Emulation.setEmulatedMedia", media="print")
    try:
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgba(0, 0, 0, 0)"
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(35, 33, 30)"
        assert page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
        uncut = (
            "[...document.querySelectorAll('figure')].every(e => getComputedStyle(e).breakInside === 'avoid')"
        )
        assert page.evaluate(uncut)
    finally:
        page.call("Emulation.setEmulatedMedia", media="")
