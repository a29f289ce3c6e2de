"""Running a command line in this process, as the console script does."""

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
    """How a command completed."""

    code: int
    out: str
    err: str

    @property
    def envelope(self) -> dict[str, Any]:
        """What --json printed; fails when stdout carries anything else, or what the schema does not allow."""
        envelope: dict[str, Any] = json.loads(self.out)
        envelopes.check(envelope)
        return envelope

    @property
    def message(self) -> str:
        """stderr without the line breaks that fit it to the terminal."""
        return " ".join(self.err.split())


@pytest.fixture
def unziplora(capsys: pytest.CaptureFixture[str]) -> Callable[..., Completed]:
    """Runs a command line in this process."""

    def invoke(*arguments: object) -> Completed:
        capsys.readouterr()
        code = run([str(each) for each in arguments])
        return Completed(code, *capsys.readouterr())

    return invoke


SETTINGS = {
    "preset": "mini",
    "destyle-images": 0,  # drawing them would take longer than the training
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
    return [f"--{name}={value}" for name, value in {"base": tiny_base, **SETTINGS}.items()]


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two pictures, fox.png and rose.jpg."""
    folder = tmp_path_factory.mktemp("photos")
    image = Image.linear_gradient("L").resize((96, 80)).convert("RGB")
    image.save(folder / "fox.png")
    image.rotate(180).save(folder / "rose.jpg")
    return folder


@dataclass(frozen=True)
class TrainedHome:
    """A home with two finished projects, and what the command that trained them message."""

    home: Path
    completed: Completed


@pytest.fixture(scope="session")
def trained_home(photos: Path, settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> TrainedHome:
    """The projects fox (watercolor) and rose (sketch), made by one command; treat as read-only."""
    home = tmp_path_factory.mktemp("trained_home")
    words = ["--subject=fox", "--subject=rose", "--style=watercolor", "--style=sketch"]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        pictures = [str(photos / "fox.png"), str(photos / "rose.jpg")]
        code = run(["train", *pictures, *words, *settings, f"--home={home}", "--json"])
    return TrainedHome(home, Completed(code, out.getvalue(), err.getvalue()))


@pytest.fixture
def two_projects(trained_home: TrainedHome, isolated_home: Path) -> Path:
    """The test's home, with the projects fox and rose in it."""
    shutil.copytree(trained_home.home, isolated_home)
    return isolated_home


@pytest.fixture
def home_files(isolated_home: Path) -> Callable[[], list[str]]:
    """Tells which files the test's home holds, beside locks."""

    def look() -> list[str]:
        files = (
            path.relative_to(isolated_home) for path in isolated_home.rglob("*") if isolated_home.is_dir()
        )
        return sorted(str(path) for path in files if path.parts[0] != "locks" and path != Path("projects"))

    return look


@pytest.fixture
def assert_fails(unziplora, home_files) -> Callable[..., str]:
    """Runs a command that must fail with ``code`` and leave the home as it was; returns what it message."""

    def check(code: int, *arguments: object) -> str:
        before = home_files()
        completed = unziplora(*arguments)
        assert (completed.code, completed.out) == (code, "")
        assert completed.err.count("Error: ") == 1
        assert "Traceback" not in completed.err
        assert home_files() == before
        return completed.message

    return check
