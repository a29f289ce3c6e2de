"""Images in the terminal: where it can show them, and nowhere else."""

import contextlib
import io
import os
import re
import select
import subprocess
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
    monkeypatch.setattr(select, "select", lambda *_: ([], [], []))
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


@pytest.mark.parametrize(
    "why", ["quiet", "json", "pipe", "dumb", "no stdin", "no extra", "no image", "not asked", "typed ahead"]
)
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
    if why == "dumb":
        monkeypatch.setenv("TERM", "dumb")
    if why == "no stdin":
        monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    if why == "typed ahead":
        monkeypatch.setattr(select, "select", lambda *_: ([sys.stdin], [], []))
    if why == "no extra":
        monkeypatch.setitem(sys.modules, "textual_image", None)
    if why == "no image":
        image = Path(image).rename(image.with_suffix(".html"))
    output.result({}, text="made", made=None if why == "not asked" else image)
    assert SIXELS not in terminal.getvalue() + capsys.readouterr().out


REPLIES = {
    "kitty": lambda query: b"".join(
        b"\x1b_Gi=%b;OK\x1b\\" % number for number in re.findall(rb"_Gi=(\d+),s=1", query)
    ),
    "sixels": lambda query: b"\x1b[?62;4;22c",
    "nothing": lambda query: b"",
}


@pytest.mark.slow
@pytest.mark.parametrize("size", [(24, 80, 0, 0), (24, 80, 800, 480), (0, 0, 0, 0)])
@pytest.mark.parametrize("kind", REPLIES)
def test_a_terminal_of_any_kind_gets_no_traceback(kind: str, size: tuple[int, ...], image: Path) -> None:
    pty = pytest.importorskip("pty")
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", *size))
    code = (
        "import pathlib, sys; from unziplora_cli.cli._output import Output; "
        "Output().result({}, text='done', made=pathlib.Path(sys.argv[1])); print('the end')"
    )
    words = [sys.executable, "-c", code, str(image)]
    environment = {**os.environ, "TERM": "xterm-256color"}
    text = b""
    with subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        with contextlib.suppress(OSError):
            while part := os.read(ours, 4096):
                text += part
                if b"\x1b[c" in part and (reply := REPLIES[kind](part)):
                    os.write(ours, reply)
    os.close(ours)
    assert process.returncode == 0, text
    assert text.startswith(b"done")
    assert text.endswith(b"the end\r\n")
    assert b"Traceback" not in text
    assert b"Failed" not in text
