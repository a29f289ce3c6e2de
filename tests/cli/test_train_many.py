"""Many images in one command, as a user starts them."""

import os
import shutil
import signal

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.cli.test_train import at_step
from unziplora_cli.cli import _output
from unziplora_cli.projects.store import ProjectStore
from unziplora_cli.training import inputs

LIST = """file,subject,style,name,rank
fox.png,fox,watercolor,,
missing.png,fox,watercolor,,
rose.jpg,rose,,,2
broken.png,fox,ink,,
other.png,cat,ink,katze,
"""


@pytest.fixture
def pictures(photos, tmp_path):
    """A folder with a list of five images, three of which can be trained once the style of all is given."""
    folder = tmp_path / "pictures"
    shutil.copytree(photos, folder)
    (folder / "broken.png").write_bytes(b"no image")
    Image.new("RGB", (64, 64), "gray").save(folder / "other.png")
    (folder / "list.csv").write_text(LIST, encoding="utf-8")
    return folder


def test_a_list_trains_what_it_can_skips_what_is_done_and_names_what_failed(
    unziplora, pictures, settings, isolated_home, monkeypatch
):
    loaded = []
    load = inputs.load_unet
    monkeypatch.setattr(inputs, "load_unet", lambda *a, **k: loaded.append(1) or load(*a, **k))
    command = ("train", "--list", pictures / "list.csv", *settings, "--no-describe")
    first = unziplora(*command)
    assert first.code == 2
    assert loaded == [1]
    assert "Traceback" not in first.err
    text = " ".join(first.out.split())
    assert "5 images: 2 trained, 0 already trained, 3 failed." in text
    for place in ("line 3: There is no file", "line 4: The style of rose.jpg is not given", "line 5:"):
        assert f"list.csv, {place}" in text
    assert f"Name it in the column style of a list, or train it alone: unziplora train {pictures}" in text
    store = ProjectStore(isolated_home)
    assert store.names() == ["fox", "katze"]
    assert (pictures / "fox.png").read_bytes() == (store.open("fox").folder / "source.png").read_bytes()
    written = store.open("fox").manifest

    second = unziplora(*command, "--style=sketch", "--json")
    result = second.envelope["result"]
    assert second.code == 2
    assert [project["name"] for project in result["projects"]] == ["rose"]
    assert [project["name"] for project in result["unchanged"]] == ["fox", "katze"]
    assert [failure["name"] for failure in result["failed"]] == ["missing", "broken"]
    assert {failure["exit_code"] for failure in result["failed"]} == {2}
    assert store.open("fox").manifest == written
    rose = store.open("rose").job
    assert (rose.words.style, rose.config.rank) == ("sketch", 2)
    assert store.open("fox").job.config.rank == 4
    assert all(not store.verify(name).problems for name in store.names())


def test_an_interrupted_list_continues_where_it_stopped(
    unziplora, photos, settings, isolated_home, monkeypatch
):
    with monkeypatch.context() as patch:
        stop = at_step(4, lambda: os.kill(os.getpid(), signal.SIGINT))
        patch.setattr(_output.ProgressDisplay, "event", stop)
        stopped = unziplora("train", photos, "--subject=fox", "--style=ink", *settings)
    assert stopped.code == 130
    assert "Stopped: 0 of 2 images are complete. -> Run the same command again" in stopped.message
    completed = unziplora("train", photos, "--subject=fox", "--style=ink", *settings)
    assert completed.code == 0
    assert "2 trained" in completed.out
    store = ProjectStore(isolated_home)
    manifests = [store.open(name).manifest for name in ("fox", "rose")]
    assert [(content.state, content.steps_done) for content in manifests] == [("complete", 6)] * 2


def test_a_bug_in_one_training_does_not_stop_the_others(
    unziplora, photos, settings, isolated_home, monkeypatch
):
    from unziplora_cli.workflows import train_many

    train = train_many.train

    def fail_for_fox(request, *rest):
        if request.job.name == "fox":
            raise RuntimeError("the roof came down")
        return (yield from train(request, *rest))

    monkeypatch.setattr(train_many, "train", fail_for_fox)
    completed = unziplora("train", photos, "--subject=fox", "--style=ink", *settings)
    assert completed.code == 1
    assert "the roof came down" in completed.out
    assert ProjectStore(isolated_home).names() == ["rose"]


def test_a_name_of_another_image_is_never_replaced(unziplora, make_project, photos, settings):
    make_project("fox")
    make_project("rose")
    completed = unziplora("train", photos, "--subject=fox", "--style=ink", *settings)
    assert completed.code == 3
    assert completed.out.count("There is a project 'fox' already, of another image.") == 2
    assert "for example fox-2" in completed.out
    assert "--force" not in completed.out


def test_a_finished_project_with_other_settings_is_kept_and_the_difference_named(
    unziplora, photos, settings, two_projects
):
    same = unziplora("train", photos, *settings, "--json").envelope["result"]
    assert [row["differs"] for row in same["unchanged"]] == ["", ""]
    other = unziplora("train", photos, *settings, "--style=ink", "--rank=8", "--json").envelope["result"]
    assert other["projects"] == other["failed"] == []
    assert other["unchanged"][0]["differs"] == "style is ink, was watercolor; rank is 8, was 4"


def test_each_shard_of_a_folder_trains_its_own_images(unziplora, photos, settings, two_projects):
    for shard, name in (("1/2", "fox"), ("2/2", "rose")):
        result = unziplora("train", photos, *settings, "--shard", shard, "--json").envelope["result"]
        assert [row["name"] for row in result["unchanged"]] == [name]
    assert unziplora("train", photos, *settings, "--shard=3/3").code == 0


WORDS = "file,subject,style\nfox.png,fox,watercolor\nrose.jpg,rose,sketch\n"


def test_images_trained_at_once_become_the_projects_that_they_become_alone(
    unziplora, pictures, settings, isolated_home, trained_home
):
    (pictures / "list.csv").write_text(WORDS + "missing.png,cat,ink\n", encoding="utf-8")
    completed = unziplora("train", "--list", pictures / "list.csv", "--at-once=2", *settings)
    assert completed.code == 2
    assert "2 trained, 0 already trained, 1 failed" in completed.out
    store, alone = ProjectStore(isolated_home), ProjectStore(trained_home.home)
    for name in ("fox", "rose"):
        assert not store.verify(name).problems
        mine, theirs = store.open(name), alone.open(name)
        assert mine.job.words == theirs.job.words
        assert mine.manifest.state == "complete"
        assert mine.manifest.metrics == pytest.approx(theirs.manifest.metrics, rel=1e-3)
        for part in ("content", "style"):
            tensors, expected = (load_file(project.path(part)) for project in (mine, theirs))
            assert tensors.keys() == expected.keys()
            for key, tensor in tensors.items():
                torch.testing.assert_close(tensor, expected[key], rtol=0, atol=2e-3)


def test_an_interruption_of_images_trained_at_once_keeps_all_of_them(
    unziplora, photos, settings, isolated_home, monkeypatch
):
    command = ("train", photos, "--subject=fox", "--style=ink", "--at-once=2", *settings)
    with monkeypatch.context() as patch:
        stop = at_step(4, lambda: os.kill(os.getpid(), signal.SIGINT))
        patch.setattr(_output.ProgressDisplay, "event", stop)
        stopped = unziplora(*command)
    assert stopped.code == 130
    store = ProjectStore(isolated_home)
    manifests = [store.open(name).manifest for name in ("fox", "rose")]
    assert [(content.state, content.steps_done) for content in manifests] == [("interrupted", 4)] * 2
    assert unziplora(*command).code == 0
    assert [store.open(name).manifest.steps_done for name in ("fox", "rose")] == [6, 6]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--list=list.csv", "--at-once=2"),
            "Images that are trained at once need the same",
        ),
        ((".", "--at-once=2", "--precision=fp16"), "cannot use precision fp16"),
        ((".", "--at-once=2", "--ray=local"), "A worker of a cluster trains one image at a time"),
        (("fox.png", "--at-once=2"), "--at-once needs a list of images"),
        (("fox.png", "--ray=local"), "--ray needs a list of images"),
        (("fox.png", "--shard=1/2"), "--shard needs a list of images"),
        ((".", "--shard=2/1"), "'2/1' is no shard"),
        ((".", "--name=fox"), "--name names one project"),
        ((".", "--subject=a", "--subject=b"), "--subject is given 2 times"),
        (("--list=list.csv", "fox.png"), "exclude each other"),
        (("--list=none.csv",), "Cannot read the list none.csv"),
        (("--list=list.csv", "--resume=fox"), "--resume accepts no list"),
        (("--list=list.csv", "--rank=0"), "rank is 0"),
    ],
)
def test_what_does_not_go_together_is_refused(assert_fails, pictures, monkeypatch, options, message):
    monkeypatch.chdir(pictures)
    assert message in assert_fails(2, "train", *options, "--base=mini")


def test_settings_that_contradict_each_other_are_refused_before_any_training(assert_fails, pictures):
    (pictures / "list.csv").write_text("file,steps\nfox.png,\nrose.jpg,2\n")
    options = ("--base=mini", "--subject=fox", "--style=ink", "--device=cpu")
    assert "list.csv, line 3: 2 steps" in assert_fails(2, "train", "--list", pictures / "list.csv", *options)
