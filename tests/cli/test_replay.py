"""Training again from the manifest alone."""

import json
import shutil

import pytest
from PIL import Image

from unziplora_cli import __version__
from unziplora_cli.adapters.lora_file import read_lora
from unziplora_cli.projects.store import ProjectStore


@pytest.fixture
def change(isolated_home):
    """Changes values of a project's manifest in place."""

    def edit(name, **values):
        path = isolated_home / "projects" / name / "manifest.json"
        content = json.loads(path.read_text())
        for key, value in values.items():
            record = content["job"] if key in content["job"] else content
            record[key] = {**record[key], **value} if isinstance(record[key], dict) else value
        path.write_text(json.dumps(content))

    return edit


def test_a_replay_on_the_cpu_is_the_same_byte_for_byte_and_leaves_nothing(
    unziplora, two_projects, home_files
):
    before = home_files()
    completed = unziplora("replay", "rose", "--json")
    assert completed.code == 0, completed.err
    result = completed.envelope["result"]
    assert result["identical"] is True
    assert [(file["role"], file["identical"]) for file in result["files"]] == [
        ("content", True),
        ("style", True),
        ("merge", True),
    ]
    assert result["losses"].keys() == {"loss_first", "loss_last"}
    assert all(was == now for was, now in result["losses"].values())
    assert (result["changed"], result["unrecorded"], result["kept"]) == ([], [], None)
    assert home_files() == before


def test_a_replay_can_be_kept_as_a_project_of_its_own(unziplora, two_projects):
    completed = unziplora("replay", "fox", "--name", "fox-again")
    assert completed.code == 0, completed.err
    assert completed.out.count("the same numbers") == 3
    store = ProjectStore(two_projects)
    old, new = store.open("fox"), store.open("fox-again")
    assert store.verify("fox-again").problems == ()
    assert (new.job.words, new.job.prompts) == (old.job.words, old.job.prompts)
    assert new.job.images == old.job.images
    assert read_lora(new.path("style")).metadata["ss_output_name"] == "fox-again-style"
    refused = unziplora("replay", "fox", "--name", "rose")
    assert (refused.code, "already" in refused.message) == (3, True)


def test_another_seed_shows_as_a_distance(unziplora, two_projects, change):
    change("fox", settings={"seed": 7}, versions={"torch": "2.0.0"}, tool_version="0.0.1")
    completed = unziplora("replay", "fox", "--json")
    assert completed.code == 0, completed.err
    result = completed.envelope["result"]
    content, style, merge = result["files"]
    assert result["identical"] is False
    for lora in (content, style):
        assert 0.1 < lora["relative"] < 2
        assert 0 < lora["columns"] < 1
    assert 0 < merge["largest"] <= 1
    assert result["changed"][0] == f"unziplora was 0.0.1, is {__version__}"
    assert any(change.startswith("torch was 2.0.0, is 2.") for change in result["changed"])
    text = unziplora("replay", "fox")
    assert "relative difference" in text.out
    assert "Changed since: torch was 2.0.0" in text.out


def test_a_project_with_a_validation_prompt_replays_to_the_same_files(
    unziplora, photos, settings, isolated_home
):
    """The validation prompt is in the manifest, and does not change what is learned."""
    words = ("--subject=fox", "--style=watercolor")
    image = photos / "fox.png"
    assert unziplora("train", image, *words, *settings, "--validation-prompt=on a beach").code == 0
    project = ProjectStore(isolated_home).open("fox")
    assert project.job.validation.content == "a monadikos fox on a beach"
    assert unziplora("replay", "fox", "--json").envelope["result"]["identical"] is True
    assert unziplora("train", image, *words, *settings, "--name=plain").code == 0
    plain = read_lora(ProjectStore(isolated_home).open("plain").path("content")).lora
    for layer, weights in read_lora(project.path("content")).lora.items():
        assert weights.up.equal(plain[layer].up)
        assert weights.down.equal(plain[layer].down)


def test_class_images_are_named_as_not_recorded(unziplora, photos, settings, isolated_home, tmp_path):
    classes = tmp_path / "classes"
    classes.mkdir()
    Image.new("RGB", (64, 64), "red").save(classes / "a.png")
    prior = (f"--prior-content={classes}", "--prior-content-prompt=a fox", "--prior-images=1")
    words = ("--subject=fox", "--style=watercolor")
    assert unziplora("train", photos / "fox.png", *words, *settings, *prior).code == 0
    result = unziplora("replay", "fox", "--json").envelope["result"]
    assert result["unrecorded"] == [f"the class images in {classes}"]


def test_another_picture_is_refused(assert_fails, two_projects):
    Image.new("RGB", (80, 80), "red").save(two_projects / "projects/fox/source.png")
    message = assert_fails(3, "replay", "fox")
    assert "is damaged: source.png was changed: its SHA-256 differs" in message


def test_another_base_is_refused(assert_fails, two_projects, tiny_base, tmp_path, change):
    other = shutil.copytree(tiny_base, tmp_path / "base")
    config = other / "unet/config.json"
    config.write_text(config.read_text() + " ")
    change("fox", base={"spec": str(other), "id": str(other)})
    message = assert_fails(3, "replay", "fox")
    assert f"The base {other} is not the one that 'fox' was trained on: it is sha256:" in message
    change("fox", base={"spec": "gone", "id": str(tmp_path / "gone")})
    assert "There is no base" in assert_fails(4, "replay", "fox")
    change("fox", base={"spec": "a/b", "id": "a/b", "kind": "hub", "revision": "0123"})
    assert "a/b is not on this disk" in assert_fails(4, "replay", "fox")


def test_what_was_not_wholly_trained_here_is_refused(assert_fails, two_projects, change):
    change("fox", state="interrupted", steps_done=3)
    assert "was stopped after step 3" in assert_fails(3, "replay", "fox")
    change("rose", images=[])
    manifest = two_projects / "projects/rose/manifest.json"
    content = json.loads(manifest.read_text())
    content["job"]["settings"] = None
    manifest.write_text(json.dumps(content))
    assert "'rose' was imported" in assert_fails(3, "replay", "rose")
    assert "There is no project 'elk'" in assert_fails(3, "replay", "elk")


def test_settings_that_this_version_does_not_know_are_refused(assert_fails, two_projects, change):
    change("fox", settings={"flux": 4})
    assert "manifest.job.settings.flux: Unexpected" in assert_fails(3, "replay", "fox")
    change("rose", settings={"rank": 0})
    assert "rank is 0" in assert_fails(3, "replay", "rose")


def test_a_project_in_use_is_refused(assert_fails, two_projects):
    with ProjectStore(two_projects).lock("fox"):
        assert "is in use" in assert_fails(3, "replay", "fox")


def test_a_device_that_is_not_here_is_refused(assert_fails, two_projects, change):
    change("fox", device="cuda:7")
    assert "no device 'cuda:7'" in assert_fails(2, "replay", "fox")


def test_a_replay_that_is_stopped_leaves_nothing(assert_fails, two_projects, monkeypatch):
    from unziplora_cli.training import engine

    def stop(self, *arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine.TrainingStep, "__call__", stop)
    message = assert_fails(130, "replay", "fox")
    assert "The replay of 'fox' was stopped; nothing of it is kept." in message
