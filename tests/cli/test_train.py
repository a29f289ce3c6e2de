"""Trainings on the tiny base, as a user starts them."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
from PIL import Image

from unziplora_cli import resources
from unziplora_cli.adapters.lora_file import read_lora
from unziplora_cli.adapters.merge_weights import read_merge
from unziplora_cli.cli import _output
from unziplora_cli.errors import OutOfMemory
from unziplora_cli.projects.folders import SHEET_MARK
from unziplora_cli.projects.store import ProjectStore
from unziplora_cli.sdxl.base import BaseRef
from unziplora_cli.sdxl.generate import GeneratedImage
from unziplora_cli.training import callbacks, events, inputs

WORDS = ("--subject=fox", "--style=watercolor")


class Terminal:
    """A standard input where a person types lines."""

    def __init__(self, *lines: str) -> None:
        self.lines = list(lines)

    def isatty(self) -> bool:
        return True

    def readline(self) -> str:
        return f"{self.lines.pop(0)}\n" if self.lines else ""


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has a person at the terminal type lines."""
    return lambda *lines: monkeypatch.setattr(sys, "stdin", Terminal(*lines))


def at_step(step: int, action: Callable[[], None]) -> Callable[..., None]:
    """A display that does something when a step is done."""
    show = _output.ProgressDisplay.event

    def event(self: _output.ProgressDisplay, event: events.Event) -> None:
        show(self, event)
        if isinstance(event, events.StepDone) and event.step == step:
            action()

    return event


def test_one_command_makes_a_project_of_each_picture(trained_home, photos):
    assert trained_home.completed.code == 0
    projects = trained_home.completed.envelope["result"]["projects"]
    assert [project["name"] for project in projects] == ["fox", "rose"]
    assert all(Path(file).is_file() for project in projects for file in project["files"].values())
    assert set(projects[0]["files"]) == {"content", "style", "merge", "history"}
    store = ProjectStore(trained_home.home)
    words = [store.open(name).job.words for name in ("fox", "rose")]
    assert [(pair.subject, pair.style) for pair in words] == [("fox", "watercolor"), ("rose", "sketch")]
    assert (store.open("fox").folder / "source.png").read_bytes() == (photos / "fox.png").read_bytes()
    assert (store.open("rose").folder / "source.jpg").read_bytes() == (photos / "rose.jpg").read_bytes()
    assert store.open("rose").job.images[0].format == "JPEG"


def test_a_project_is_whole_and_as_its_manifest_says(two_projects, unziplora):
    assert unziplora("verify", "fox").code == 0
    project = ProjectStore(two_projects).open("fox")
    written = json.loads((project.folder / "manifest.json").read_text())
    schema = json.loads(resources.template("manifest.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(written, schema)
    assert written["job"]["prompts"] == {
        "full": "a monadikos fox in watercolor style",
        "content": "a monadikos fox",
        "style": "a fox in watercolor style",
    }
    assert (written["state"], written["steps_done"]) == ("complete", 6)
    assert written["job"]["settings"]["rank"] == written["artifacts"][0]["rank"] == 4
    assert written["job"]["settings"]["resolution"] == 64
    content, style = (read_lora(project.path(role)).lora for role in ("content", "style"))
    merge = read_merge(project.path("merge"))
    assert content.keys() == merge.content.keys()
    assert style.keys() == merge.style.keys()


def test_what_is_going_on_is_told_on_stderr_and_the_result_on_stdout(unziplora, photos, settings):
    completed = unziplora("train", photos / "fox.png", *WORDS, *settings)
    assert completed.code == 0
    assert "full     a monadikos fox in watercolor style" in completed.err
    assert "content  a monadikos fox\n" in completed.err
    assert "step 6/6" in completed.err
    assert completed.out.startswith("fox: 6 steps in")
    assert "unziplora combine fox" in completed.out


def test_a_training_ends_with_a_labelled_sheet(unziplora, photos, settings, isolated_home, monkeypatch):
    """Also of several images and after --resume; the base is loaded once for all sheets."""
    from unziplora_cli.workflows import generate

    requests = []

    def yield_at_once(given, base, compute):
        requests.append(given)
        for request in given:
            yield GeneratedImage(Image.new("RGB", (64, 64)), request, 0, {})

    monkeypatch.setattr(generate, "generate_requests", yield_at_once)
    images = (photos / "fox.png", photos / "rose.jpg")
    completed = unziplora("train", *images, *WORDS, *settings, "--sheet", "--json")
    paths = [Path(project["sheet"]) for project in completed.envelope["result"]["projects"]]
    assert paths == [isolated_home / "projects" / name / "sheet.png" for name in ("fox", "rose")]
    for path in paths:
        with Image.open(path) as image:
            assert image.width > 4 * 256
            assert image.info[SHEET_MARK[0]] == SHEET_MARK[1]
    (given,) = requests
    assert [request.texts[0] for request in given] == [
        "a monadikos fox",
        "a house in watercolor style",
        "a monadikos fox in watercolor style",
    ] * 2
    assert [request.branches.names for request in given[:3]] == [
        ("content",),
        ("style",),
        ("content", "style"),
    ]


def test_a_training_is_complete_although_its_sheet_fails(unziplora, photos, settings, monkeypatch):
    from unziplora_cli.workflows import generate

    def fail(*_: object) -> None:
        raise OutOfMemory("Not enough memory.")

    monkeypatch.setattr(generate, "generate_requests", fail)
    completed = unziplora("train", photos / "fox.png", *WORDS, *settings, "--sheet")
    assert completed.code == 0
    assert "there is no sheet: Not enough memory." in completed.message
    assert "merge.safetensors" in completed.out
    assert unziplora("verify", "fox").code == 0


def test_settings_without_effect_are_named(unziplora, photos, settings):
    options = (
        "--lr-warmup-steps=2",
        "--save-every=100",
        "--destyle-strength=0.5",
        "--validation-prompt=at night",
    )
    completed = unziplora("train", photos / "fox.png", *WORDS, *settings, *options)
    assert completed.code == 0
    for name in ("lr-warmup-steps", "save-every", "destyle-strength", "validation-prompt"):
        assert f"Note: {name} has no effect: " in completed.err
    assert completed.err.count("has no effect") == 4


def test_quiet_says_nothing_but_the_result(unziplora, photos, settings):
    completed = unziplora("train", photos / "fox.png", *WORDS, *settings, "-q")
    assert (completed.code, completed.err) == (0, "")
    assert "merge.safetensors" in completed.out


def test_pictures_together_make_one_project(unziplora, photos, settings, isolated_home):
    images = (photos / "fox.png", photos / "rose.jpg")
    completed = unziplora("train", *images, "--together", *WORDS, *settings, "--name=both", "--json")
    assert [project["name"] for project in completed.envelope["result"]["projects"]] == ["both"]
    job = ProjectStore(isolated_home).open("both").job
    assert [image.file for image in job.images] == ["source.png", "source-2.jpg"]
    assert unziplora("verify", "both").code == 0


@pytest.mark.parametrize(
    "switches",
    [
        ["--no-prompt-separation", "--no-column-separation"],
        ["--no-block-separation", "--no-avoid-overlap", "--finetune-mask"],
    ],
)
def test_every_separation_can_be_switched_off(unziplora, photos, settings, isolated_home, switches):
    assert unziplora("train", photos / "fox.png", *WORDS, *settings, *switches).code == 0
    project = ProjectStore(isolated_home).open("fox")
    trained = project.job.settings
    for switch in switches:
        name = switch.removeprefix("--no-").removeprefix("--").replace("-", "_")
        assert getattr(trained, name) is not switch.startswith("--no-")
    if "--no-column-separation" in switches:
        merge = read_merge(project.path("merge"))
        assert all(bool((m == 1).all()) for m in (*merge.content.values(), *merge.style.values()))


def test_validation_and_saved_models_lie_in_the_project(
    unziplora, photos, settings, isolated_home, monkeypatch
):
    monkeypatch.setattr(callbacks, "VALIDATION_STEPS", 2)
    every = (
        "--validate-every=3",
        "--validation-images=1",
        "--save-every=3",
        "--validation-prompt=on a beach",
    )
    completed = unziplora("train", photos / "fox.png", *WORDS, *settings, *every)
    assert completed.code == 0
    folder = isolated_home / "projects/fox"
    for step in (3, 6):
        saved = folder / f"saved/step-{step:06d}"
        assert {file.stem for file in saved.glob("*.safetensors")} == {"content", "style", "merge"}
    assert len(list((folder / "validation").rglob("*.png"))) >= 6
    assert "validation images after step 3" in completed.err
    assert "saved after step 6" in completed.err


def test_out_of_memory_ends_with_the_line_to_type(assert_fails, photos, settings, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(inputs, "load_unet", full)
    message = assert_fails(5, "train", photos / "fox.png", *WORDS, *settings, "--batch-size=2")
    assert "Use settings that need less memory: --gradient-checkpointing" in message


def test_an_existing_project_is_kept_without_force(unziplora, photos, settings, two_projects):
    before = (two_projects / "projects/fox/manifest.json").read_bytes()
    completed = unziplora("train", photos / "fox.png", *WORDS, *settings)
    assert completed.code == 3
    assert "--name" in completed.message
    assert "--force" in completed.message
    assert (two_projects / "projects/fox/manifest.json").read_bytes() == before
    again = unziplora("train", photos / "fox.png", *WORDS, *settings, "--name=fox-2")
    assert again.code == 0
    image = two_projects / "projects/fox/images/content-001.png"
    image.parent.mkdir()
    image.write_bytes(b"generated")
    forced = unziplora("train", photos / "fox.png", *WORDS, *settings, "--force", "--seed=5")
    assert forced.code == 0
    kept = two_projects / "projects/fox/former-001"
    assert (kept / "images/content-001.png").read_bytes() == b"generated"
    assert "1 file that was generated with the replaced project" in " ".join(forced.err.split())
    assert ProjectStore(two_projects).open("fox").job.config.seed == 5
    assert ProjectStore(two_projects).names() == ["fox", "fox-2", "rose"]


@pytest.mark.parametrize("name", ["fox.png", "Fox!.png"])
def test_no_hint_replaces_the_project_of_another_image(unziplora, make_project, tmp_path, name):
    make_project("fox")
    make_project("fox-2")
    Image.new("RGB", (64, 64), "gray").save(tmp_path / name)
    completed = unziplora("train", tmp_path / name, *WORDS)
    assert completed.code == 3
    assert "of another image" in completed.message
    assert "--name fox-3" in completed.message
    assert "--force" not in completed.message


def test_file_names_in_other_scripts_make_different_projects(assert_fails, make_project, tmp_path):
    make_project("狐")
    for name in ("狐.png", "猫.png"):
        Image.new("RGB", (64, 64), "gray").save(tmp_path / name)
    missing = ("--base", tmp_path / "missing")
    assert "--name '狐-2'" in assert_fails(3, "train", tmp_path / "狐.png", *WORDS, *missing)
    assert "missing" in assert_fails(4, "train", tmp_path / "猫.png", *WORDS, *missing)


def test_on_a_terminal_it_asks_before_it_replaces(unziplora, photos, settings, two_projects, on_terminal):
    on_terminal("n")
    completed = unziplora("train", photos / "fox.png", *WORDS, *settings, "--seed=5")
    assert completed.code == 3
    assert "Replace it?" in completed.err
    assert ProjectStore(two_projects).open("fox").job.config.seed == 0
    on_terminal("y")
    assert unziplora("train", photos / "fox.png", *WORDS, *settings, "--seed=5").code == 0
    assert ProjectStore(two_projects).open("fox").job.config.seed == 5


def test_a_project_that_appears_meanwhile_is_not_replaced(
    unziplora, photos, settings, isolated_home, monkeypatch
):
    from unziplora_cli.cli import train

    find_base = train.find_base

    def meanwhile(*arguments: object) -> BaseRef:
        (isolated_home / "projects/fox").mkdir(parents=True)
        return find_base(*arguments)

    monkeypatch.setattr(train, "find_base", meanwhile)
    completed = unziplora("train", photos / "fox.png", *WORDS, *settings)
    assert completed.code == 3
    assert "already exists" in completed.message


def test_words_are_asked_for_with_the_file_name_as_a_hint(
    unziplora, photos, settings, isolated_home, on_terminal
):
    on_terminal("", "", "{style}", "in pop art style")
    completed = unziplora("train", photos / "rose.jpg", *settings)
    assert completed.code == 0
    assert "Subject of rose.jpg, one or two words (for example: fox) [rose]:" in completed.err
    assert completed.err.count("Style of rose.jpg, one or two words (for example: watercolor):") == 3
    assert "The style is empty. It is how the image is made;" in completed.message
    assert "The style '{style}' contains '{'" in completed.message
    words = ProjectStore(isolated_home).open("rose").job.words
    assert (words.subject, words.style) == ("rose", "pop art")


def test_prompts_given_outright_are_used_and_a_comma_stays_a_comma(
    unziplora, photos, settings, isolated_home
):
    given = {
        "full": "a fox, sketched, at home",
        "content": "monadikos fox, alone",
        "style": "the house, in sketch",
    }
    options = [f"--{name}-prompt={text}" for name, text in given.items()]
    assert unziplora("train", photos / "fox.png", *WORDS, *settings, *options).code == 0
    prompts = ProjectStore(isolated_home).open("fox").job.prompts
    assert (prompts.full, prompts.content, prompts.style) == tuple(given.values())


def test_ctrl_c_keeps_what_was_learned(unziplora, photos, settings, isolated_home, monkeypatch):
    stop = at_step(4, lambda: os.kill(os.getpid(), signal.SIGINT))
    monkeypatch.setattr(_output.ProgressDisplay, "event", stop)
    completed = unziplora("train", photos / "fox.png", *WORDS, *settings)
    assert completed.code == 130
    assert "Stopped after step" in completed.message
    assert "Traceback" not in completed.err
    manifest = ProjectStore(isolated_home).open("fox").manifest
    assert manifest.state == "interrupted"
    assert manifest.steps_done in (4, 5)
    assert unziplora("verify", "fox").code == 0
    assert unziplora("combine", "fox", "--steps=1").code == 0
    assert f"{manifest.steps_done} of 6" in unziplora("list").out


def test_ctrl_c_before_the_first_step_leaves_nothing(unziplora, photos, settings, home_files, monkeypatch):
    def event(self: _output.ProgressDisplay, event: events.Event) -> None:
        if isinstance(event, events.Phase) and event.name == "load U-Net":
            raise KeyboardInterrupt

    monkeypatch.setattr(_output.ProgressDisplay, "event", event)
    completed = unziplora("train", photos / "fox.png", *WORDS, *settings)
    assert (completed.code, home_files()) == (130, [])
    assert "Interrupted." in completed.message


@pytest.mark.slow
def test_a_signal_to_the_process_ends_it_with_130(photos, settings, isolated_home):
    words = [sys.executable, "-m", "unziplora_cli", "train", str(photos / "fox.png"), *WORDS, *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*words, "--steps=100000"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.default_int_handler
        ),  # ignored in the background
    ) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "columns chosen" in line:
                process.send_signal(signal.SIGINT)
                break
        lines += process.stderr.readlines()
    assert process.returncode == 130
    assert "Traceback" not in "".join(lines)
    project = ProjectStore(isolated_home).open("fox")
    assert project.manifest.state == "interrupted"
    assert ProjectStore(isolated_home).verify("fox").problems == ()


def test_a_failure_leaves_nothing_and_an_older_project_as_it_was(
    unziplora, photos, settings, two_projects, home_files, monkeypatch
):
    before = home_files()
    manifest = (two_projects / "projects/fox/manifest.json").read_bytes()

    def fail() -> None:
        raise RuntimeError("the roof came down")

    monkeypatch.setattr(_output.ProgressDisplay, "event", at_step(3, fail))
    completed = unziplora("train", photos / "fox.png", *WORDS, *settings, "--force")
    assert completed.code == 1
    assert "the roof came down" in completed.message
    assert "Traceback" not in completed.err
    new = unziplora("train", photos / "fox.png", *WORDS, *settings, "--name=new")
    assert new.code == 1
    assert home_files() == before
    assert (two_projects / "projects/fox/manifest.json").read_bytes() == manifest


def test_a_project_that_is_done_stays_when_the_next_one_fails(
    unziplora, photos, settings, isolated_home, monkeypatch
):
    show = _output.ProgressDisplay.event

    def event(self: _output.ProgressDisplay, event: events.Event) -> None:
        show(self, event)
        if self.title == "rose":
            raise MemoryError

    monkeypatch.setattr(_output.ProgressDisplay, "event", event)
    completed = unziplora("train", photos / "fox.png", photos / "rose.jpg", *WORDS, *settings)
    assert completed.code == 5
    assert f"fox: done, {isolated_home / 'projects/fox'}" in completed.err
    assert ProjectStore(isolated_home).names() == ["fox"]
    assert unziplora("verify", "fox").code == 0


ANSI = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def on_screen(text: str) -> list[str]:
    """The lines that were ever on a terminal, without control sequences and trailing blanks."""
    return [line.rstrip() for line in re.split(r"[\r\n]+", ANSI.sub("", text))]


@pytest.mark.slow
def test_a_training_on_a_real_terminal(photos, settings, isolated_home):
    pty = pytest.importorskip("pty")
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    environment |= {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "unziplora_cli", "train", str(photos / "rose.jpg"), *settings]
    os.write(ours, b"\nsketch\n")
    with subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        text = b""
        with contextlib.suppress(OSError):
            while part := os.read(ours, 4096):
                text += part
    os.close(ours)
    lines = on_screen(text.decode())
    assert process.returncode == 0, lines
    assert any("Subject of rose.jpg, one or two words (for example: fox) [rose]:" in line for line in lines)
    assert any("Style of rose.jpg, one or two words (for example: watercolor):" in line for line in lines)
    assert any("6/6" in line and "s/step" in line for line in lines)
    assert "Traceback" not in text.decode()
    bar = [line for line in lines if "s/step" in line or "\u2501" in line]
    assert bar
    assert max(map(len, bar)) <= 80
    assert ProjectStore(isolated_home).open("rose").job.words.style == "sketch"
