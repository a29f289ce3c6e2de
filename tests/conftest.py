"""Fixtures of all tests: an isolated home and model cache, and no network."""

import gc
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from tests.hub_server import hub  # noqa: F401  (a fixture)
from tests.jobs import changed, make_job
from tests.tiny_base import tiny_base  # noqa: F401  (a fixture)
from unziplora_cli import files
from unziplora_cli.job import SourceImage
from unziplora_cli.projects import manifest
from unziplora_cli.projects.manifest import Artifact, Manifest
from unziplora_cli.projects.store import Project, ProjectStore

# Libraries read these when they are imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Shells start background jobs with SIGINT ignored; some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")


@pytest.fixture(scope="module", autouse=True)
def imported_modules_are_no_garbage() -> None:
    """Keep collections short: trainings collect garbage, among a million objects of imported libraries."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def isolated_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder, and an empty model cache beside it."""
    root = tmp_path_factory.mktemp("machine")
    home = root / "home"
    models = root / "huggingface"
    monkeypatch.setenv("UNZIPLORA_HOME", str(home))
    monkeypatch.setenv("HF_HOME", str(models))
    monkeypatch.setenv("HF_HUB_CACHE", str(models / "hub"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(root / "config"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    if "huggingface_hub.constants" in sys.modules:
        constants = sys.modules["huggingface_hub.constants"]
        monkeypatch.setattr(constants, "HF_HOME", str(models))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(models / "hub"))
    return home


@pytest.fixture(autouse=True)
def no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail on connections to other machines, unless the test has the marker `network`."""
    if "network" in request.keywords:
        return
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: object) -> None:
        here = isinstance(address, tuple) and address[0] in ("127.0.0.1", "::1", "localhost")
        if self.family in (socket.AF_INET, socket.AF_INET6) and not here:
            raise AssertionError(f"a test tried to reach {address}")
        connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def make_project(isolated_home: Path, sample_manifest: Callable[[Path], Manifest]) -> Callable[..., Project]:
    """Creates a small complete project in the test's home, with files that match its manifest."""

    def make(name: str = "fox", *, force: bool = False, **changes: object) -> Project:
        store = ProjectStore(isolated_home)
        with store.create(name, force=force) as folder:
            for file in ("source.png", "content.safetensors", "style.safetensors", "merge.safetensors"):
                (folder / file).write_bytes(f"the bytes of {name}'s {file}".encode())
            manifest.write(folder, changed(sample_manifest(folder), name=name, **changes))
        return store.open(name)

    return make


@pytest.fixture(scope="session")
def sample_manifest() -> Callable[[Path], Manifest]:
    """Creates the manifest of a project folder with four files."""
    return _sample_manifest


def _sample_manifest(folder: Path) -> Manifest:
    source = folder / "source.png"
    return Manifest(
        job=make_job(
            images=(SourceImage("source.png", files.sha256(source), 640, 480, "PNG"),), device="cpu"
        ),
        versions={"torch": "2.13.0"},
        seconds=90.5,
        steps_done=600,
        state="complete",
        artifacts=tuple(
            Artifact(
                role=role,
                path=f"{role}.safetensors",
                sha256=files.sha256(folder / f"{role}.safetensors"),
                bytes=(folder / f"{role}.safetensors").stat().st_size,
                format="kohya" if role != "merge" else "merge",
                rank=64 if role != "merge" else None,
            )
            for role in ("content", "style", "merge")
        ),
        metrics={"loss": 0.1},
    )
