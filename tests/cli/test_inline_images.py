"""Images in the terminal: where it can show them, and nowhere else."""

import io
import sys
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from unziplora_cli.cli import _output
from unziplora_cli.cli._output import Output

renderable = pytest.importorskip("textual_image.renderable")

SIXELS = "\x1bP"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    Image.new("RGB", (64, 32), "orange").save(path)
    return path


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal with sixels, and what is printed on it."""
    printed = io.StringIO()
    console = Console(file=printed, force_terminal=True, width=80)
    monkeypatch.setattr(Output, "console", lambda self, *, stderr=True: console)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(renderable, "Image", renderable.SixelImage)
    return printed


def test_the_image_that_was_made_is_shown_after_its_path(image: Path, terminal: io.StringIO) -> None:
    Output().result({}, text=str(image), made=image)
    path, sixels, picture = terminal.getvalue().partition(SIXELS)
    assert str(image) in path.replace("\n", "")
    assert sixels
    assert picture.count("\x1b\\") == 1


def test_of_a_folder_the_first_images_are_shown(image: Path, terminal: io.StringIO) -> None:
    Output().result({}, links=[image] * (_output.MOST_SHOWN + 2), made=image.parent)
    assert terminal.getvalue().count(SIXELS) == _output.MOST_SHOWN


@pytest.mark.parametrize("kind", ["HalfcellImage", "UnicodeImage"])
def test_no_blocks_of_colors_stand_for_an_image(
    kind: str, image: Path, terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renderable, "Image", getattr(renderable, kind))
    Output().result({}, text="made", made=image)
    assert terminal.getvalue() == "made\n"


@pytest.mark.parametrize("why", ["quiet", "json", "pipe", "no stdin", "no extra", "no image", "not asked"])
def test_no_image_is_shown(
    why: str,
    image: Path,
    terminal: io.StringIO,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = Output()
    output.quiet, output.json = why == "quiet", why == "json"
    if why == "pipe":
        pipe = Console(file=terminal, force_terminal=False)
        monkeypatch.setattr(Output, "console", lambda self, *, stderr=True: pipe)
    if why == "no stdin":
        monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    if why == "no extra":
        monkeypatch.setitem(sys.modules, "textual_image", None)
    if why == "no image":
        image = Path(image).rename(image.with_suffix(".html"))
    output.result({}, text="made", made=None if why == "not asked" else image)
    assert SIXELS not in terminal.getvalue() + capsys.readouterr().out
