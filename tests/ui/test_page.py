"""A person walks through the page in a real browser, on the built-in base."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from unziplora_cli import resources
from unziplora_cli.projects.store import ProjectStore

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")

from tests.workflows.test_report_in_a_browser import CHROMIUM  # noqa: E402

SLOW = 120_000
"""Milliseconds that a training or a generation may take on a busy machine."""


@dataclass
class Server:
    """A running page."""

    process: subprocess.Popen[str]
    address: str


def start(home: Path) -> Server:
    """Start the page in a process of its own and wait until it says its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "unziplora_cli", "--home", str(home), "ui", "--port", "0", "--no-open"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    found = re.search(r"http://\S+", line)
    assert found, line + process.stderr.read()
    return Server(process, found[0])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def shot(page: "playwright.Page", name: str) -> None:
    page.screenshot(path=f"/tmp/ui_{name}.png", full_page=True)


def settled(page: "playwright.Page", title: str, state: str) -> None:
    """Wait until the job of this title is in this state."""
    page.locator("#jobs h2", has_text=f"{title}: {state}").wait_for(timeout=SLOW)


def test_the_whole_page(home: Path, browser: "playwright.Browser", tmp_path: Path) -> None:
    server = start(home)
    store = ProjectStore(home)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    hosts: set[str] = set()
    page.on("request", lambda request: hosts.add(request.url.split("/")[2] if "//" in request.url else ""))
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    try:
        page.goto(server.address)
        # Train 20 steps with validation images, stop a second training, resume it.
        page.get_by_role("tab", name="Train").click()
        page.locator("input[type=file]").first.set_input_files(resources.samples()["fox"].image)
        page.get_by_label("Subject, one").fill("fox")
        page.get_by_label("Style, one").fill("stained glass")
        page.get_by_text("More settings").first.click()
        page.get_by_label("Steps", exact=True).first.fill("20")
        page.get_by_label("Steps between validation images").fill("10")
        page.get_by_role("button", name="Train", exact=True).click()
        page.locator("#jobs progress").wait_for(timeout=SLOW)
        page.reload()
        second = browser.new_page()
        second.goto(server.address)
        second.locator("#jobs h2", has_text="train fox").wait_for(timeout=SLOW)
        second.close()
        settled(page, "train fox", "done")
        assert store.open("fox").manifest.steps_done == 20
        shot(page, "trained")

        page.get_by_role("tab", name="Draw").click()
        page.get_by_text("Content: the subject").click()
        assert "a monadikos fox" in page.get_by_label("The prompts").input_value()
        page.get_by_role("button", name="Generate", exact=True).click()
        settled(page, "content fox", "done")
        shot(page, "drawn")
        assert len(list((home / "projects/fox/images").glob("content-fox-*.png"))) == 2
        page.get_by_label("Images").locator("button img").first.click()
        page.wait_for_function("document.body.innerText.includes('Same again')")
        shot(page, "chosen")

        page.get_by_role("tab", name="Cross").click()
        for group in ("Contents (rows)", "Styles (columns)"):
            page.get_by_role("group", name=group).get_by_label("fox").check()
        page.get_by_role("button", name="Generate the sheet").click()
        settled(page, "cross 1 x 1", "done")
        shot(page, "crossed")

        page.get_by_role("tab", name="Projects").click()
        page.get_by_role("button", name="Export", exact=True).click()
        with page.expect_download(timeout=SLOW) as download:
            page.get_by_role("link", name=re.compile("content")).first.click()
        download.value.save_as(tmp_path / "content.safetensors")
        shot(page, "exported")
    finally:
        page.screenshot(path="/tmp/ui_walk.png", full_page=True)
        server.process.send_signal(signal.SIGINT)
        server.process.wait(60)
    assert hosts <= {server.address.split("/")[2], ""}
    assert not problems
