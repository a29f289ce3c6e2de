"""Projects and trainings of the former version open, verify, generate, replay and resume."""

import importlib.metadata
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

import unziplora_cli
from unziplora_cli.images import read_parameters
from unziplora_cli.job import SETTINGS_OF_SCHEMA_1
from unziplora_cli.projects.store import ProjectStore
from unziplora_cli.projects.unfinished import FORMER_FILE_NAME

ARCHIVE = Path(__file__).parents[1] / "data/former/projects.tar.xz"
BASE = "/tmp/former2/base"

same_base = pytest.mark.skipif(
    importlib.metadata.version("diffusers") < "0.42",
    reason="older libraries make another tiny base of a seed",
)


@pytest.fixture
def store(isolated_home: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> ProjectStore:
    """The projects of the former version, as if they had been trained on this test's tiny base.

    No other version resumes a training, so this one has the number that stands in them.
    """
    monkeypatch.setattr(unziplora_cli, "__version__", "0.1.0.dev0")
    store = ProjectStore(isolated_home)
    store.folder.mkdir(parents=True)
    with tarfile.open(ARCHIVE) as archive:
        safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since Python 3.11.4
        archive.extractall(store.folder, **safe)
    for record in [*store.folder.glob("*/*.json"), *store.folder.glob(".*/*.json")]:
        record.write_text(record.read_text().replace(BASE, str(tiny_base)))
    return store


def test_every_project_opens(store: ProjectStore) -> None:
    projects, damaged = store.list()
    assert damaged == ()
    assert [project.name for project in projects] == ["class-images", "complete", "imported", "stopped"]
    assert [project.manifest.state for project in projects] == [*["complete"] * 3, "interrupted"]


def test_settings_have_their_new_names(store: ProjectStore) -> None:
    config = store.open("complete").job.config
    assert (config.destyle_images, config.destyle_strength, config.destyled_only) == (1, 0.3, True)
    assert (config.rank, config.steps, config.seed) == (1, 6, 0)
    prior = store.open("class-images").job.config
    assert (prior.prior_content_prompt, prior.prior_images, prior.column_separation) == ("a fox", 1, False)


def test_the_rest_of_a_manifest_is_kept(store: ProjectStore) -> None:
    project = store.open("complete")
    assert (project.job.words.subject, project.job.prompts.content) == ("fox", "a monadikos fox")
    assert (project.job.device, project.manifest.steps_done) == ("cpu", 6)
    assert project.job.images[0].file == "source.png"
    evaluation = project.manifest.evaluation
    assert evaluation is not None
    assert evaluation.diagnosis
    assert {score.name for score in evaluation.scores}
    assert evaluation.columns
    assert store.open("imported").job.settings is None


@pytest.mark.parametrize("name", ["complete", "imported", "stopped"])
def test_its_files_are_valid(store: ProjectStore, name: str) -> None:
    assert store.verify(name).problems == ()


def test_parameters_of_generated_images_are_read(store: ProjectStore) -> None:
    (image,) = store.open("complete").images.glob("*.png")
    parameters = read_parameters(image)
    assert parameters["command"] == "content"
    assert parameters["prompts"]["content"] == "a monadikos fox on a beach"


def test_it_generates_and_is_shown(store: ProjectStore, unziplora: Callable) -> None:
    options = ("--steps=1", "--width=64", "--height=64", "--device=cpu")
    assert unziplora("combine", "complete", "imported", *options).code == 0
    assert "a monadikos fox in watercolor style" in unziplora("show", "complete").out
    assert "imported" in unziplora("show", "imported").out
    (unfinished,) = unziplora("list", "--json").envelope["result"]["unfinished"]
    assert (unfinished["name"], unfinished["steps_kept"], unfinished["steps"]) == ("cut-off", 3, 6)


def test_it_is_renamed_in_the_new_schema(store: ProjectStore) -> None:
    store.rename("complete", "renamed")
    text = (store.folder / "renamed/manifest.json").read_text()
    assert '"schema": 2' in text
    assert '"destyle_strength": 0.3' in text
    assert not [name for name in SETTINGS_OF_SCHEMA_1 if f'"{name}"' in text]
    assert store.open("renamed").job.name == "renamed"


@same_base
def test_a_replay_begins_with_the_same_loss(store: ProjectStore, unziplora: Callable) -> None:
    """Image, texts, noise, start values and settings all enter the first loss.

    Later losses depend on the processor: Adam normalises the tiny gradients of this random base, so the last
    bits decide their signs (the sixth loss differs by 3 % between two processors).
    """
    result = unziplora("replay", "complete", "--json").envelope["result"]
    first = result["losses"]["loss_first"]
    assert first[1] == pytest.approx(first[0], rel=1e-6)
    for file in result["files"]:
        if file["role"] == "merge":
            assert file["largest"] < 0.05
        else:
            assert file["columns"] > 0.9


@same_base
def test_a_training_that_was_cut_off_is_resumed(store: ProjectStore, unziplora: Callable) -> None:
    completed = unziplora("train", "--resume", "cut-off", "--content-lr=1e-4")
    assert completed.code == 0
    assert "after step 3" in completed.err
    project = store.open("cut-off")
    assert (project.manifest.state, project.manifest.steps_done) == ("complete", 6)
    assert project.job.config.content_lr == 1e-4
    assert not (project.folder / FORMER_FILE_NAME).exists()
    assert store.verify("cut-off").problems == ()


@same_base
def test_a_stopped_training_is_resumed(store: ProjectStore, unziplora: Callable) -> None:
    assert unziplora("train", "--resume", "stopped").code == 0
    assert store.open("stopped").manifest.state == "complete"
