"""Fixtures that run command lines in this process, as the console script does."""

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.cli import envelopes
from unziplora_cli.__main__ import run


@dataclass(frozen=True)
class Completed:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str

    @property
    def envelope(self) -> dict[str, Any]:
        """The JSON envelope; fails if stdout holds anything else or the schema does not allow it."""
        envelope: dict[str, Any] = json.loads(self.out)
        envelopes.check(envelope)
        return envelope

    @property
    def message(self) -> str:
        """stderr without the line breaks of the terminal width."""
        return " ".join(self.err.split())


@pytest.fixture
def unziplora(capsys: pytest.CaptureFixture[str]) -> Callable[..., Completed]:
    """Runs a command line in this process."""

    def invoke(*arguments: object) -> Completed:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return Completed(code, *capsys.readouterr())

    return invoke


SETTINGS = {
    "preset": "mini",
    "destyle-images": 0,  # generating them would take longer than the training
    "resolution": 64,
    "rank": 4,
    "steps": 6,
    "recalibrations": 2,
    "importance-steps": 1,
    "device": "cpu",
}


@pytest.fixture(scope="session")
def settings(tiny_base: Path) -> list[str]:
    """The options of a training of six steps on the tiny base."""
    return [*(f"--{name}={value}" for name, value in {"base": tiny_base, **SETTINGS}.items()), "--no-sheet"]


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two images, fox.png and rose.jpg."""
    folder = tmp_path_factory.mktemp("photos")
    image = Image.linear_gradient("L").resize((96, 80)).convert("RGB")
    image.save(folder / "fox.png")
    image.rotate(180).save(folder / "rose.jpg")
    return folder


@dataclass(frozen=True)
class TrainedHome:
    """A home with two complete projects, and the result of the command that trained them."""

    home: Path
    completed: Completed


@pytest.fixture(scope="session")
def trained_home(photos: Path, settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> TrainedHome:
    """The projects fox (watercolor) and rose (sketch), trained by one command; read-only."""
    home = tmp_path_factory.mktemp("trained_home")
    words = ["--subject=fox", "--subject=rose", "--style=watercolor", "--style=sketch"]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        files = [str(photos / "fox.png"), str(photos / "rose.jpg")]
        code = run(["train", *files, *words, *settings, f"--home={home}", "--json"])
    return TrainedHome(home, Completed(code, out.getvalue(), err.getvalue()))


@pytest.fixture
def two_projects(trained_home: TrainedHome, isolated_home: Path) -> Path:
    """The test's home, with copies of the projects fox and rose."""
    shutil.copytree(trained_home.home, isolated_home)
    return isolated_home


@pytest.fixture
def home_files(isolated_home: Path) -> Callable[[], list[str]]:
    """Lists the files in the test's home, without locks."""

    def list_files() -> list[str]:
        files = (
            path.relative_to(isolated_home) for path in isolated_home.rglob("*") if isolated_home.is_dir()
        )
        return sorted(str(path) for path in files if path.parts[0] != "locks" and path != Path("projects"))

    return list_files


@pytest.fixture
def assert_fails(unziplora, home_files) -> Callable[..., str]:
    """Runs a command that must exit with `code` and not change the home; returns its message."""

    def check(code: int, *arguments: object) -> str:
        before = home_files()
        completed = unziplora(*arguments)
        assert (completed.code, completed.out) == (code, "")
        assert completed.err.count("Error: ") == 1
        assert "Traceback" not in completed.err
        assert home_files() == before
        return completed.message

    return check
