"""--json of every command follows the shipped schema, on success and on failure."""

import json
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.cli.envelopes import schema
from tests.cli.test_completion import commands
from tests.cli.test_describe import FOX, FakeDescriber
from tests.doctor.machines import CPU_MACHINE
from tests.hub_server import TOKEN, Hub, Repository
from tests.test_model_cache import sdxl_files
from unziplora_cli.cli import app, projects
from unziplora_cli.cli._output import Output
from unziplora_cli.doctor import environment
from unziplora_cli.ui import server
from unziplora_cli.workflows import demo, describe

PROGRAM = {" ".join(path): node for path, node in commands(typer.main.get_command(app.app))}
QUICK = "--steps=1 --device=cpu"

# A command line per command, which succeeds with two projects, fox and rose, and a hub that has owner/name.
# {base} is their base, {out} an empty folder, {fox} and {rose} the folders of the projects.
EXAMPLES = {
    "train": "train {photos}/fox.png --name=cat --subject=cat --style=ink {settings}",
    "describe": "describe {photos}/fox.png --base={base}",
    "destyle": "destyle {photos}/fox.png --out={out}/plain --subject=fox --style=ink --destyle={photos} "
    "--base={base}",
    "content": f"content fox {QUICK}",
    "style": f"style fox {QUICK}",
    "combine": f"combine fox rose {QUICK}",
    "cross": f"cross fox rose {QUICK}",
    "demo": "demo --out={out}",
    "ui": "ui --port=0 --no-open",
    "list": "list",
    "show": "show fox",
    "verify": "verify fox",
    "rename": "rename fox vixen",
    "remove": "remove fox --yes",
    "report": "report fox",
    "export": "export fox --out={out}",
    "import": "import {fox} --name=again --subject=fox --style=ink --base={base}",
    "check": "check {fox}/content.safetensors --base={base}",
    "eval": "eval fox --device=cpu --noise-samples=1",
    "doctor": "doctor",
    "replay": "replay fox",
    "push": "push fox me/fox --plan --out={out}/fox",
    "open": "open fox --what=folder",
    "help": "help train",
    "config list": "config list",
    "config set": "config set base mini",
    "config unset": "config unset base",
    "config path": "config path",
    "presets list": "presets list",
    "presets show": "presets show paper",
    "models list": "models list",
    "models show": "models show mini",
    "models pull": "models pull owner/name",
    "models verify": "models verify mini",
    "models remove": "models remove owner/name --yes",
    "models path": "models path mini",
}


@pytest.fixture
def fill(
    two_projects: Path,
    tiny_base: Path,
    photos: Path,
    settings: list[str],
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str], list[str]]:
    """Fills in the paths of a command line and prepares what it needs."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.repositories["owner/name"] = Repository(sdxl_files())
    places = {
        "base": tiny_base,
        "photos": photos,
        "settings": " ".join(settings),
        "out": tmp_path,
        "fox": two_projects / "projects/fox",
    }
    return lambda line: line.format(**places).split()


def test_every_command_has_an_example_and_a_schema() -> None:
    """A new command needs a line here and an entry in the $defs of the schema, by its name."""
    assert EXAMPLES.keys() == PROGRAM.keys()
    assert PROGRAM.keys() <= schema()["$defs"].keys()


def finished_demo() -> Generator[None, None, demo.DemoResult]:
    """A demo that yields nothing and returns a result."""
    yield from ()
    return demo.DemoResult(Path("x.png"), ("a", "b"), 4, 1.0)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_successful_command_prints_an_envelope(
    name: str,
    fill: Callable[[str], list[str]],
    unziplora: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name == "demo":  # its trainings take long and are tested elsewhere
        monkeypatch.setattr(demo, "demo", lambda *_, **__: finished_demo())
    if name == "doctor":  # tested elsewhere
        monkeypatch.setattr(environment, "collect_environment", lambda *_, **__: CPU_MACHINE)
    if name == "describe":  # with a model of a real class: tests/cli/test_describe.py
        monkeypatch.setattr(describe, "_load", lambda *arguments: FakeDescriber(FOX))
    if name == "ui":  # the server itself is tested in tests/ui
        monkeypatch.setattr(server, "serve", lambda *_, ready, **__: ready("http://127.0.0.1:7860"))
    if name == "open":
        monkeypatch.setattr(projects, "open_path", lambda path: True)
    if name == "models remove":
        unziplora("models", "pull", "owner/name")
    completed = unziplora("--json", *fill(EXAMPLES[name]))
    envelope = completed.envelope
    assert (envelope["command"], envelope["ok"]) == (name, True)
    assert list(envelope)[:2] == ["schema", "command"]
    assert envelope["result"]
    assert completed.err == ""


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_failing_command_prints_an_envelope(name: str, unziplora: Callable[..., Any]) -> None:
    completed = unziplora(*name.split(), "--no-such-option", "--json")
    envelope = completed.envelope
    assert (completed.code, envelope["ok"], envelope["error"]["exit_code"]) == (2, False, 2)
    assert envelope["command"] == name
    assert completed.err == ""


def test_warnings_are_part_of_the_envelope(unziplora, two_projects, tiny_base, tmp_path):
    """The base of the project has changed since the training."""
    changed = two_projects / "projects/fox/manifest.json"
    text = changed.read_text()
    fingerprint = text.split('"hash": "')[1].split('"')[0]
    changed.write_text(text.replace(fingerprint, "sha256:" + "0" * 64))
    completed = unziplora("content", "fox", *QUICK.split(), "--json")
    (warning,) = completed.envelope["warnings"]
    assert "has changed since fox was trained on it" in warning
    assert completed.err == ""


def test_numbers_that_are_not_finite_are_null(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    output.json = True
    output.result({"loss": float("nan"), "rates": [float("inf"), 1.0], "path": Path("x")})
    assert json.loads(capsys.readouterr().out)["result"] == {"loss": None, "rates": [None, 1.0], "path": "x"}
