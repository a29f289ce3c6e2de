"""Trainings that were cut off, as a user goes on with them."""

import contextlib
import io
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.test_train import WORDS, Terminal, at_step
from unziplora_cli.__main__ import run
from unziplora_cli.cli import _output
from unziplora_cli.cli import train as train_command
from unziplora_cli.projects.store import ProjectStore
from unziplora_cli.workflows.train import read_sources


def no_more() -> None:
    """The process is gone."""
    raise MemoryError


@pytest.fixture
def train(photos: Path, settings: list[str]) -> tuple[str, ...]:
    """The command that is cut off."""
    return ("train", str(photos / "fox.png"), *WORDS, *settings, "--checkpoint-every=2")


@pytest.fixture(scope="module")
def cut_home(photos: Path, settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a training of fox, stopped after step 5 of 6 by something that cannot be helped."""
    home = tmp_path_factory.mktemp("cut")
    command = ["train", str(photos / "fox.png"), *WORDS, *settings, "--checkpoint-every=2", f"--home={home}"]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()):
        patch.setattr(_output.ProgressDisplay, "event", at_step(5, no_more))
        assert run(command) == 5
    return home


@pytest.fixture
def cut_off(cut_home: Path, isolated_home: Path) -> None:
    """The test's home holds that training."""
    shutil.copytree(cut_home, isolated_home, dirs_exist_ok=True)


def weights(home: Path, name: str = "fox") -> list[bytes]:
    project = ProjectStore(home).open(name)
    tensors = [project.path(role).read_bytes() for role in ("content", "style", "merge")]
    return [data[8 + int.from_bytes(data[:8], "little") :] for data in tensors]


def test_it_goes_on_to_the_very_same_files(unziplora, train, cut_off, isolated_home):
    listed = unziplora("list")
    assert "unfinished, 4 of 6" in listed.out
    shown = unziplora("show", "fox")
    assert shown.code == 3
    assert "unziplora train --resume fox" in shown.message
    completed = unziplora("train", "--resume", "fox")
    assert completed.code == 0
    assert "Resuming after step 4." in completed.err
    assert unziplora("verify", "fox").code == 0
    assert unziplora(*train, "--name=whole").code == 0
    assert weights(isolated_home) == weights(isolated_home, "whole")
    assert "unfinished" not in unziplora("list").out
    assert unziplora("list", "--json").envelope["result"]["unfinished"] == []


def test_the_same_command_without_a_terminal_says_what_to_type(unziplora, train, cut_off, isolated_home):
    completed = unziplora(*train)
    assert completed.code == 3
    assert "stopped after step 4 of 6." in completed.message
    assert "unziplora train --resume fox" in completed.message
    assert "--force" in completed.message


def test_the_same_command_on_a_terminal_offers_to_go_on(
    unziplora, train, cut_off, isolated_home, monkeypatch
):
    monkeypatch.setattr(sys, "stdin", Terminal("y"))
    completed = unziplora(*train)
    assert completed.code == 0
    assert "stopped after step 4 of 6. Resume it?" in completed.message
    assert "Resuming after step 4." in completed.err


def test_of_several_pictures_those_that_are_done_stay(
    unziplora, train, photos, cut_off, make_project, monkeypatch
):
    rose = make_project("rose", images=read_sources([photos / "rose.jpg"]))
    before = rose.path("style").read_bytes()
    monkeypatch.setattr(sys, "stdin", Terminal("y"))
    command, picture, *options = train
    completed = unziplora(command, photos / "rose.jpg", picture, *options)
    assert completed.code == 0
    assert "rose: already trained, unchanged." in completed.message
    assert "Resuming after step 4." in completed.err
    assert rose.path("style").read_bytes() == before


def test_whoever_declines_leaves_it(unziplora, train, cut_off, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Terminal("n", "n"))
    completed = unziplora(*train)
    assert completed.code == 3
    assert "Discard the training of 'fox' after step 4 of 6 and start again?" in completed.message
    assert unziplora("list", "--json").envelope["result"]["unfinished"][0]["steps_kept"] == 4


def test_force_replaces_another(unziplora, train, cut_off, isolated_home):
    completed = unziplora(*train, "--force", "--seed=7")
    assert completed.code == 0
    assert "Going on" not in completed.err
    assert ProjectStore(isolated_home).open("fox").job.config.seed == 7


def test_force_goes_on_with_the_same(unziplora, train, cut_off):
    completed = unziplora(*train, "--force")
    assert completed.code == 0
    assert "the same training stopped after step 4 of 6; resuming it." in completed.message


def test_another_command_is_told_where_it_differs(unziplora, train, cut_off):
    completed = unziplora(*train, "--seed=7", "--rank=2")
    assert completed.code == 3
    assert "seed is 7, was 0" in completed.message
    assert "rank is 2, was 4" in completed.message


@pytest.mark.parametrize(
    ("more", "name"),
    [
        (["--rank=8"], "rank"),
        (["--steps=9"], "steps"),
        (["--no-capture"], "capture"),
        (["--name=x"], "name"),
        (["--preset=fast"], "preset"),
        (["--subject=cat"], "subject"),
        (["--style=ink"], "style"),
        (["--trigger=zwx"], "trigger"),
        (["--together"], "together"),
        (["--validation-prompt=on a beach"], "validation-prompt"),
        (["--full-prompt=a cat"], "full-prompt"),
        (["--base=mini"], "base"),
        (["--vae=other"], "vae"),
        (["--plan"], "plan"),
        (["--force"], "force"),
        (["fox.png"], "image"),
    ],
)
def test_resume_refuses_everything_but_its_own_settings(unziplora, cut_off, more, name):
    completed = unziplora("train", "--resume", "fox", *more)
    assert completed.code == 2
    assert f"accepts no {name}." in completed.message
    assert "These may change: checkpoint-every, content-lr, device, " in completed.message


def test_learning_rates_may_change(unziplora, cut_off, isolated_home):
    assert unziplora("train", "--resume", "fox", "--content-lr=1e-4").code == 0
    assert ProjectStore(isolated_home).open("fox").job.config.content_lr == 1e-4


def test_another_version_is_refused_with_the_difference(unziplora, cut_off, monkeypatch):
    monkeypatch.setattr("unziplora_cli.__version__", "99.0")
    completed = unziplora("train", "--resume", "fox")
    assert completed.code == 3
    assert "version of unziplora is 99.0, was " in completed.message


def test_another_base_is_refused_with_the_difference(
    unziplora, cut_off, tiny_base, isolated_home, monkeypatch
):
    from tests.tiny_base import make_tiny_base

    plan = isolated_home / "projects/.fox.unfinished/training.json"
    other = make_tiny_base(isolated_home / "other", seed=1)
    plan.write_text(plan.read_text().replace(str(tiny_base), str(other)))
    completed = unziplora("train", "--resume", "fox")
    assert completed.code == 3
    assert "base is sha256:" in completed.message


def test_there_may_be_nothing_to_go_on_with(unziplora, two_projects):
    unknown = unziplora("train", "--resume", "lantern")
    assert (unknown.code, "no unfinished training 'lantern'" in unknown.message) == (3, True)
    complete = unziplora("train", "--resume", "fox")
    assert (complete.code, "is finished" in complete.message) == (3, True)
    assert unziplora("train").code == 2


def test_ctrl_c_keeps_a_project_that_can_go_on(unziplora, train, isolated_home, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            _output.ProgressDisplay, "event", at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        )
        completed = unziplora(*train)
    assert completed.code == 130
    assert (
        "Resume: unziplora train --resume fox -> Generate images with it: unziplora combine fox"
        in completed.message
    )
    project = ProjectStore(isolated_home).open("fox")
    assert (project.manifest.state, project.manifest.steps_done) == ("interrupted", 3)
    (project.folder / "images").mkdir()
    (project.folder / "images/one.png").write_bytes(b"drawn on the way")
    assert unziplora("train", "--resume", "fox").code == 0
    assert project.job.created == ProjectStore(isolated_home).open("fox").job.created
    assert (project.folder / "images/one.png").exists()
    assert not (project.folder / "checkpoints").exists()


def test_an_older_project_stays_until_the_new_one_is_complete(
    unziplora, train, two_projects, monkeypatch, home_files
):
    before = home_files()
    old = weights(two_projects)
    with monkeypatch.context() as patch:
        patch.setattr(
            _output.ProgressDisplay, "event", at_step(3, lambda: os.kill(os.getpid(), signal.SIGINT))
        )
        completed = unziplora(*train, "--force", "--seed=5")
    assert completed.code == 130
    assert "the older project 'fox' is still in place" in completed.message
    assert weights(two_projects) == old
    assert unziplora("verify", "fox").code == 0
    assert unziplora("remove", "fox", "--yes", "--unfinished").code == 0
    assert home_files() == before
    assert unziplora("remove", "fox", "--yes", "--unfinished").code == 3


@pytest.mark.slow
def test_a_terminal_that_is_closed_costs_nothing(photos, settings, isolated_home):
    pty = pytest.importorskip("pty")
    words = ["train", f"{photos}/fox.png", *WORDS, *settings, "--steps=100000"]
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
        os.execv(sys.executable, [sys.executable, "-m", "unziplora_cli", *words])
    text = b""
    while b"columns chosen" not in text:
        text += os.read(terminal, 4096)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.WIFEXITED(status)
    project = ProjectStore(isolated_home).open("fox")
    assert project.manifest.state == "interrupted"
    assert ProjectStore(isolated_home).verify("fox").problems == ()
    assert ProjectStore(isolated_home).unfinished("fox").step == project.manifest.steps_done


def test_removing_takes_both(unziplora, cut_off, home_files):
    assert unziplora("remove", "fox", "--yes").code == 0
    assert home_files() == []


def test_a_training_that_another_process_begins_meanwhile_is_not_called_stopped(
    unziplora, train, cut_off, isolated_home, monkeypatch
):
    ask = train_command.ask_words
    with contextlib.ExitStack() as other:

        def ask_meanwhile(*arguments, **options):
            other.enter_context(ProjectStore(isolated_home).lock("fox"))
            return ask(*arguments, **options)

        monkeypatch.setattr(train_command, "ask_words", ask_meanwhile)
        completed = unziplora(*train)
    assert completed.code == 3
    assert "is in use by process" in completed.message


def test_a_name_of_an_unfinished_training_is_taken(unziplora, cut_off, two_projects_renamed):
    completed = unziplora("rename", "rose", "fox")
    assert completed.code == 3
    assert "is not finished" in completed.message


@pytest.fixture
def two_projects_renamed(make_project: Callable) -> None:
    """A project rose beside the unfinished fox."""
    make_project("rose")


@pytest.mark.parametrize(("more", "sheets"), [((), 0), (("--sheet",), 1)])
def test_it_goes_on_without_the_sheet_that_was_not_wanted(
    unziplora, cut_off, isolated_home, monkeypatch, more, sheets
):
    drawn = []
    monkeypatch.setattr(train_command, "sheets_of", lambda *arguments: drawn.append(arguments) or {})
    assert unziplora("train", "--resume=fox", *more).code == 0
    assert len(drawn) == sheets
