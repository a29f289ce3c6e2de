"""A person walks through the page in a real browser, on the built-in base."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from unziplora_cli import resources
from unziplora_cli.projects.store import ProjectStore

pytest.importorskip("gradio")
axe_playwright = pytest.importorskip("axe_playwright_python.sync_playwright")

from playwright.sync_api import Browser, Locator, Page, sync_playwright  # noqa: E402

from tests.workflows.test_report_in_a_browser import CHROMIUM, OFFLINE  # noqa: E402

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")

SLOW = 240_000
"""Milliseconds that a training may take on a busy machine."""

TABS = ("Train", "Draw", "Cross", "Projects")


class Server:
    """The page, served by a process of its own; images go to the folder ``drawn`` beside the home."""

    def __init__(self, home: Path) -> None:
        command = ["-m", "unziplora_cli", "--home", str(home), "ui", "--port", "0", "--no-open"]
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "UNZIPLORA_OUTPUT_FOLDER": str(home.parent / "drawn")},
        )
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        match = re.search(r"http://\S+", line)
        assert match, line + self.process.stderr.read()
        self.address = match[0]

    def end(self, how: signal.Signals) -> int:
        """Send a signal and wait; the exit code."""
        self.process.send_signal(how)
        _, rest = self.process.communicate(timeout=60)
        assert "Traceback" not in rest, rest
        return self.process.returncode


class Visitor:
    """A page in the browser, with what it requested and what went wrong in it."""

    def __init__(self, browser: Browser) -> None:
        self.page = browser.new_page(viewport={"width": 1280, "height": 900}, accept_downloads=True)
        self.page.set_default_timeout(SLOW)
        self.hosts: set[str] = set()
        self.problems: list[str] = []
        self.page.on("request", self._note)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))

    def _note(self, request: "object") -> None:
        scheme, _, rest = request.url.partition(":")  # type: ignore[attr-defined]
        if scheme not in ("data", "blob"):
            self.hosts.add(rest.lstrip("/").partition("/")[0])

    def open(self, address: str) -> None:
        self.page.goto(address)
        self.page.get_by_role("tab", name="Train").wait_for()

    def tab(self, name: str) -> Locator:
        """The panel of a tab, which is shown."""
        self.page.get_by_role("tab", name=name).click()
        panel = self.page.locator("[role=tabpanel]:visible")
        panel.wait_for()
        return panel

    def job(self, title: str, state: str) -> None:
        """Wait until the job of this title is shown in this state."""
        self.page.locator("#jobs h2", has_text=re.compile(rf"{title}: {state}")).wait_for()

    def train(self, image: Path, name: str, steps: int, interval: int) -> None:
        """Drop an image, type words while it is being described, wait for the estimate, and start."""
        panel = self.tab("Train")
        words = {"Subject, one or two words": "fox", "Style, one or two words": "stained glass"}
        panel.locator("input[type=file]").set_input_files(image)
        for label, text in words.items():
            panel.get_by_label(label).fill(text)
        self.page.wait_for_function(
            "[...document.querySelectorAll('textarea')].some(box => box.value.startsWith('About '))"
        )
        assert {label: panel.get_by_label(label).input_value() for label in words} == words
        panel.get_by_label("Name of the project").fill(name)
        if not panel.get_by_label("Steps", exact=True).is_visible():
            panel.get_by_text("More settings").click()
        panel.get_by_label("Steps", exact=True).fill(str(steps))
        panel.get_by_label("Steps between validation images").fill(str(interval))
        panel.get_by_label("Destyled images").fill("0")
        panel.get_by_role("button", name="Train", exact=True).click()


def run(home: Path, *arguments: str) -> int:
    """The exit code of a command in this process."""
    from typer.testing import CliRunner

    from unziplora_cli.cli.app import app

    result = CliRunner().invoke(app, ["--home", str(home), *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", OFFLINE])
        yield browser
        browser.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Server]]:
    """Starts servers on one home; those that still run are killed at the end."""
    servers: list[Server] = []

    def start() -> Server:
        servers.append(Server(tmp_path / "home"))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.end(signal.SIGKILL)


@contextmanager
def pictured(page: Page, folder: Path) -> Iterator[None]:
    """Keep what the page showed when something fails."""
    try:
        yield
    except BaseException:
        page.screenshot(path=folder / "failed.png", full_page=True)
        raise


@pytest.mark.slow
def test_trainings_go_on_without_the_page(
    browser: Browser, start: Callable[[], Server], tmp_path: Path
) -> None:
    home, image = tmp_path / "home", resources.samples()["fox"].image
    store, server, visitor = ProjectStore(home), start(), Visitor(browser)
    page = visitor.page
    with pictured(page, tmp_path):
        visitor.open(server.address)
        assert serious_violations(page) == []

        # The groups have names, and an error can be read and closed with the keyboard.
        cross = visitor.tab("Cross")
        for group in ("Contents (rows)", "Styles (columns)"):
            cross.get_by_role("group", name=group).wait_for()
        cross.get_by_role("button", name="Generate the sheet").click()
        page.get_by_text("Choose at least one content").wait_for()
        page.wait_for_function(
            "getComputedStyle(document.querySelector('[data-testid=toast-body]')).opacity === '1'"
        )  # it fades in
        assert serious_violations(page) == []
        page.get_by_role("button", name="Close").press("Enter")
        page.get_by_text("Choose at least one content").wait_for(state="detached")
        draw = visitor.tab("Draw")
        draw.get_by_label("Combine").press("ArrowLeft")
        assert draw.get_by_label("Style", exact=True).is_checked()

        # A training goes on while the page is reloaded, and a second tab shows it.
        visitor.train(image, "fox", 20, 20)
        page.locator("#jobs progress").wait_for()
        page.reload()
        second = Visitor(browser)
        second.open(server.address)
        second.page.locator("#jobs h2", has_text="train fox").wait_for()
        second.page.close()
        visitor.job("train fox", "done")
        assert store.open("fox").manifest.steps_done == 20
        assert list((home / "projects/fox/validation").rglob("*.png"))

        # One is stopped and resumed; its server is killed, and the next one resumes it.
        visitor.train(image, "other", 40, 0)
        page.locator("#jobs p", has_text=re.compile("step [0-9]+ of 40")).wait_for()
        page.get_by_role("button", name="Stop the running job").click()
        visitor.job("train other", "stopped")
        visitor.tab("Train").get_by_role("button", name="Resume").click()
        page.locator("#jobs p", has_text=re.compile("step [0-9]+ of 40")).wait_for()
        server.end(signal.SIGKILL)
        server = start()
        visitor.open(server.address)
        visitor.tab("Train").get_by_role("button", name="Resume").click()
        visitor.job("train other", "done")
        assert store.open("other").manifest.steps_done == 40

    assert server.end(signal.SIGINT) == 130
    assert all(host.startswith("127.0.0.1:") for host in visitor.hosts), visitor.hosts
    assert not visitor.problems


@pytest.mark.slow
def test_a_project_is_generated_from_crossed_exported_imported_renamed_and_removed(
    browser: Browser, start: Callable[[], Server], tmp_path: Path
) -> None:
    home, image = tmp_path / "home", resources.samples()["fox"].image
    words = ["--subject", "fox", "--style", "stained glass"]
    few = ["--steps", "21", "--destyle-images", "0", "--no-sheet"]
    assert run(home, "train", str(image), *words, *few, "--base", "mini") == 0
    store, server, visitor = ProjectStore(home), start(), Visitor(browser)
    page = visitor.page
    with pictured(page, tmp_path):
        visitor.open(server.address)
        # Generate, look at the parameters, and generate the same image again.
        draw = visitor.tab("Draw")
        draw.get_by_label("Content", exact=True).check()
        page.wait_for_function(
            "[...document.querySelectorAll('textarea')].some(box => box.value.includes('monadikos'))"
        )
        draw.get_by_label("Steps of the sampler").fill("2")
        draw.get_by_role("button", name="Generate").click()
        visitor.job("content fox", "done")
        images = sorted((tmp_path / "drawn/fox").glob("*.png"))
        assert len(images) == 2
        draw.locator("[class*=thumbnail]").first.click()
        page.wait_for_function(
            "[...document.querySelectorAll('textarea')].some(box => box.value.includes('Sampler:'))"
        )
        draw.get_by_role("button", name="Same again").click()
        page.wait_for_function(
            "[...document.querySelectorAll('input[type=number]')].some(box => box.value === '1')"
        )
        draw.get_by_role("button", name="Generate").click()
        page.locator("#jobs progress").wait_for()
        visitor.job("content fox", "done")
        again = sorted(set((tmp_path / "drawn/fox").glob("*.png")) - set(images))
        assert [path.read_bytes() in [image.read_bytes() for image in images] for path in again] == [True]

        # Cross.
        cross = visitor.tab("Cross")
        for group in ("contents", "styles"):
            cross.locator(f"#{group}").get_by_label("fox").check()
        cross.get_by_role("button", name="Generate the sheet").click()
        visitor.job("cross 1 x 1", "done")

        # Export, check, import, rename, remove.
        projects = visitor.tab("Projects")

        def chosen(name: str) -> None:
            """Wait until the picker shows this project."""
            page.wait_for_function(
                "name => document.querySelector('#project input').value === name", arg=name
            )

        projects.get_by_role("button", name="Export").click()
        files = []
        for role in ("content", "style"):
            with page.expect_download() as download:
                projects.locator(f"a[download*={role}]").first.click()
            files.append(tmp_path / download.value.suggested_filename)
            download.value.save_as(files[-1])
            assert run(home, "check", str(files[-1])) == 0
        projects.get_by_role("button", name="Import: a content LoRA").locator("input").set_input_files(files)
        projects.get_by_label("Name of the project").fill("imported")
        projects.get_by_role("button", name="Import", exact=True).click()
        chosen("imported")
        projects.get_by_label("New name").fill("renamed")
        projects.get_by_role("button", name="Rename").click()
        chosen("renamed")
        projects.get_by_label("Yes, delete it").check()
        projects.get_by_role("button", name="Remove", exact=True).click()
        chosen("fox")
        assert store.names() == ["fox"]
        for name in TABS:
            visitor.tab(name)
            assert serious_violations(page) == [], name
    assert server.end(signal.SIGINT) == 130
    assert all(host.startswith("127.0.0.1:") for host in visitor.hosts), visitor.hosts
    assert not visitor.problems


def serious_violations(page: Page) -> list[str]:
    """What axe-core calls a serious or critical violation."""
    results = axe_playwright.Axe().run(page).response["violations"]
    return [
        f"{rule['id']}: {node['html'][:200]}"
        for rule in results
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]
