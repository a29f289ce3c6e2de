"""The eval command on the tiny base, with and without models that score images."""

import errno
import json
import os
import re
import shlex
import stat
from html import unescape
from pathlib import Path

import pytest

from tests.cli import envelopes
from tests.evaluation.tiny_encoders import make_clip, make_dino, put_encoders_in_cache
from tests.hub_server import Hub, Repository
from unziplora_cli.cli import _opening
from unziplora_cli.evaluation import denoising
from unziplora_cli.evaluation.scorers import CLIP, DINO, missing_encoders
from unziplora_cli.projects import manifest
from unziplora_cli.workflows.evaluate import download_encoders


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two denoising steps at every place where eval takes twenty."""
    monkeypatch.setattr(denoising, "RECONSTRUCTION_STEPS", 3)


QUICK = ("--count=1", "--noise-samples=2", "--device=cpu")


def test_without_scorers_the_rest_is_measured_and_the_download_is_named(unziplora, two_projects):
    completed = unziplora("eval", "fox", *QUICK)
    assert completed.code == 0
    assert "No images were scored." in completed.out
    assert "mid_block.attentions.0" in completed.out
    assert "one-file gap" in completed.out
    assert f"{DINO} and {CLIP}" in completed.message
    assert "unziplora eval fox --pull" in completed.message
    folder = two_projects / "projects/fox"
    written = manifest.read(folder).evaluation
    assert written.images == 0
    assert not (folder / "evaluation.png").exists()
    shown = unziplora("show", "fox").out
    assert "diagnosis" in shown
    assert "reconstruction error" in shown
    assert unziplora("verify", "fox").code == 0


def test_json_result_is_the_evaluation_in_the_manifest(unziplora, two_projects):
    completed = unziplora("eval", "fox", "--json", *QUICK)
    envelopes.check(completed.envelope)
    assert completed.envelope["command"] == "eval"
    result = completed.envelope["result"]
    stored = json.loads((two_projects / "projects/fox/manifest.json").read_text())
    assert result["evaluation"] == stored["evaluation"]
    assert result["sheet"] is None


def test_with_scorers_images_are_generated_and_scored(unziplora, two_projects, tmp_path, monkeypatch):
    put_encoders_in_cache(tmp_path)
    opened: list[Path] = []
    monkeypatch.setattr(_opening, "open_path", lambda path: opened.append(path) or True)
    completed = unziplora("eval", "fox", *QUICK, "--verbose", "--open")
    assert completed.code == 0, completed.err
    written = manifest.read(two_projects / "projects/fox").evaluation
    assert (written.images, written.scorer) == (8, "DINOv2 and CLIP")
    names = {score.name for score in written.scores}
    assert {"content kept", "style leaked into content", "style similarity", "prompt similarity"} <= names
    assert "Images of the content LoRA" in " ".join(completed.out.split())  # --verbose explains
    assert opened == [two_projects / "projects/fox/evaluation.png"]
    assert opened[0].is_file()
    assert "evaluation.png" in completed.message


def test_pull_downloads_only_the_needed_files_of_both_models(unziplora, two_projects, tmp_path, hub: Hub):
    for id, make in ((DINO, make_dino), (CLIP, make_clip)):
        folder = make(tmp_path / id.replace("/", "-"))
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        hub.repositories[id] = Repository({**files, "pytorch_model.bin": b"pickled", "README.md": b"Hello"})
    completed = unziplora("eval", "fox", "--pull", *QUICK)
    assert completed.code == 0, completed.err
    assert missing_encoders() == ()
    assert f"download ({DINO})" in completed.message
    assert not hub.sent("pytorch_model.bin")
    requests = len(hub.requests)
    assert list(download_encoders()) == [], "both are already in the cache"
    assert len(hub.requests) == requests


def test_nothing_is_downloaded_offline(unziplora, two_projects):
    completed = unziplora("eval", "fox", "--pull", "--offline", *QUICK)
    assert completed.code == 4
    assert "needs the network" in completed.message


def test_advice_has_a_command_that_changes_only_what_it_names(unziplora, two_projects, photos, settings):
    words = ["--subject=fox", "--style=oil paint", "--features=red, white dots", "--trigger=zwx"]
    others = ["--style-lr=0.00012345", "--no-avoid-overlap", "--content-prompt=one zwx fox"]
    first = unziplora("train", photos / "fox.png", "--name=a-fox", *settings, *words, *others)
    assert first.code == 0, first.err
    advised = unziplora("eval", "a-fox", *QUICK).out
    command, *others = re.findall("^  (?:Train again|Or): (unziplora train .*)$", advised, re.MULTILINE)
    (sentence,) = re.findall("train again with steps 50 or .*", advised)
    assert len(others) == sentence.count(" or "), "each of the advised settings has a command"
    unziplora("report", "a-fox")
    page = unescape((two_projects / "projects/a-fox/report.html").read_text(encoding="utf-8"))
    shown = unziplora("show", "a-fox").out
    assert [line for line in (command, *others) if line not in page or line not in shown] == []
    again = unziplora(*shlex.split(command)[1:], "--no-sheet", "--device=cpu")
    assert again.code == 0, again.err
    new, old = (manifest.read(two_projects / f"projects/a-fox{number}").job for number in ("-2", ""))
    assert new.difference(old) == ("steps is 50, was 6",)
    assert (new.words, new.images[0].sha256) == (old.words, old.images[0].sha256)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nofox"], 3, "There is no project"),
        (["fox", "--count=0"], 2, "count is 0"),
        (["fox", "--noise-samples=many"], 2, "noise-samples"),
        (["fox", "--base=nowhere"], 4, "no base"),
        ([], 2, "PROJECT"),
    ],
)
def test_bad_input_is_one_clear_error(unziplora, two_projects, arguments, code, says):
    completed = unziplora("eval", *arguments)
    assert completed.code == code
    assert says in completed.message
    assert completed.out == ""


def test_help_lists_every_option(unziplora):
    shown = unziplora("eval", "--help").out
    for option in ("--count", "--noise-samples", "--seed", "--device", "--pull", "--base"):
        assert option in shown


def test_a_folder_that_cannot_be_flushed_does_not_deny_the_evaluation(unziplora, two_projects, monkeypatch):
    real = os.fsync

    def fail(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    completed = unziplora("eval", "fox", *QUICK)
    assert completed.code == 3
    assert manifest.read(two_projects / "projects/fox").evaluation is not None
    assert "manifest.json is written, but may be lost in a power failure" in completed.message
    assert "The LoRAs of 'fox' are unchanged." in completed.message
