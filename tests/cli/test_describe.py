"""describe, destyle, and trainings whose words a model proposes."""

import json
import shlex
import sys

import pytest
from PIL import Image

from tests.cli.test_train import Terminal
from tests.evaluation.tiny_describer import make_tiny_describer
from unziplora_cli import resources
from unziplora_cli.evaluation import describe as describers
from unziplora_cli.job import Description
from unziplora_cli.projects.store import ProjectStore
from unziplora_cli.training import engine
from unziplora_cli.workflows import describe as workflow

FOX = Description("a model", "fox", "watercolor", ("orange", "white dots"), "on a beach")


class FakeDescriber:
    """Says the same of every image."""

    name = "a model"

    def __init__(self, description: Description) -> None:
        self.description = description

    def describe(self, image: Image.Image) -> Description:
        return self.description

    def close(self) -> None:
        pass


@pytest.fixture
def described_as(monkeypatch: pytest.MonkeyPatch):
    """Puts a describer on this disk that says the given of every image."""

    def use(description: Description = FOX) -> None:
        monkeypatch.setattr(workflow, "can_describe", lambda **options: True)
        monkeypatch.setattr(workflow, "_load", lambda *arguments: FakeDescriber(description))

    return use


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> list:
    """Collects the requests of trainings instead of running them."""
    requests: list = []

    def train(request, input_cache=None):
        requests.append(request)
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(engine, "train", train)
    return requests


def test_describe_prints_a_table_and_json(unziplora, photos, described_as, tiny_base):
    described_as()
    completed = unziplora(
        "describe", photos / "fox.png", photos / "rose.jpg", f"--base={tiny_base}", "--json"
    )
    first, second = completed.envelope["result"]["images"]
    assert first == {
        "image": str(photos / "fox.png"),
        "by": "a model",
        "subject": "fox",
        "style": "watercolor",
        "features": ["orange", "white dots"],
        "surroundings": "on a beach",
    }
    assert second["image"].endswith("rose.jpg")
    printed = unziplora("describe", photos / "fox.png", f"--base={tiny_base}")
    assert "orange, white dots" in printed.out
    assert "Described by a model." in printed.out


def test_describe_reads_with_a_model_of_a_real_class(
    unziplora, photos, tiny_base, tmp_path_factory, monkeypatch
):
    monkeypatch.setattr(describers, "MAX_NEW_TOKENS", 4)
    folder = make_tiny_describer(tmp_path_factory.mktemp("describer") / "model")
    completed = unziplora("describe", photos / "fox.png", f"--base={tiny_base}", f"--describer={folder}")
    assert (completed.code, "Described by" in completed.out) == (0, True)


def test_without_a_describer_the_line_that_fetches_it_is_shown(assert_fails, photos, tiny_base):
    message = assert_fails(4, "describe", photos / "fox.png", f"--base={tiny_base}")
    assert "unziplora models pull describer" in message
    message = assert_fails(2, "train", photos / "fox.png", f"--base={tiny_base}")
    assert "The subject of fox.png is not given" in message
    assert "unziplora models pull describer" in message


def test_proposals_are_taken_without_a_terminal(
    unziplora, photos, settings, described_as, no_training, isolated_home
):
    described_as()
    completed = unziplora("train", photos / "rose.jpg", *settings)
    assert "rose.jpg: a fox in watercolor style, orange, white dots, says a model." in completed.message
    (request,) = no_training
    assert (request.job.words.subject, request.job.words.style) == ("fox", "watercolor")
    assert request.job.features == ("orange", "white dots")
    assert request.job.description == FOX


def test_given_words_win_and_count_as_changed(unziplora, photos, settings, described_as, no_training):
    described_as()
    unziplora("train", photos / "fox.png", *settings, "--subject=cat", "--features=grey")
    (request,) = no_training
    assert (request.job.words.subject, request.job.words.style) == ("cat", "watercolor")
    assert request.job.features == ("grey",)
    assert request.job.description.changed == ("subject", "features")


def test_a_person_accepts_with_enter_or_types_over_it(
    unziplora, photos, settings, described_as, no_training, monkeypatch
):
    described_as()
    monkeypatch.setattr(sys, "stdin", Terminal("", "pencil", "none"))
    destyled = [option for option in settings if not option.startswith("--destyle-images")]
    completed = unziplora("train", photos / "fox.png", *destyled, "--destyle=inversion")
    assert "[fox]" in completed.err
    (request,) = no_training
    assert (request.job.words.subject, request.job.words.style) == ("fox", "pencil")
    assert request.job.features == ()
    assert request.job.description.changed == ("style", "features")


def test_no_describe_demands_words(assert_fails, photos, settings, described_as):
    described_as()
    message = assert_fails(2, "train", photos / "fox.png", *settings, "--no-describe")
    assert "The subject of fox.png is not given" in message
    assert "describer" not in message


def test_a_style_that_nobody_can_name_gets_a_name(unziplora, photos, settings, described_as, no_training):
    described_as(Description("a model", "fox"))
    unziplora("train", photos / "fox.png", *settings)
    (request,) = no_training
    assert request.job.words.style == "unnamed"
    assert request.job.description.changed == ()


def test_a_subject_that_nobody_can_name_is_asked_for(assert_fails, photos, settings, described_as):
    described_as(Description("a model", style="watercolor"))
    assert "The subject of fox.png" in assert_fails(2, "train", photos / "fox.png", *settings)


def test_given_words_need_no_describer(unziplora, photos, settings, no_training, monkeypatch):
    monkeypatch.setattr(workflow, "_load", None)
    monkeypatch.setattr(workflow, "can_describe", lambda **options: True)
    unziplora("train", photos / "fox.png", *settings, "--subject=fox", "--style=ink")
    (request,) = no_training
    assert request.job.description is None


def test_destyle_writes_what_a_training_would_learn(unziplora, photos, settings, tmp_path, isolated_home):
    out = tmp_path / "plain photos"
    line = ("destyle", photos / "fox.png", f"--out={out}", "--subject=fox", "--style=sketch")
    options = [o for o in settings if o.split("=")[0] in ("--base", "--resolution", "--device")]
    options += ["--preset=mini", "--destyle-images=2", "--destyle-strength=0.1", "--destyle=inversion"]
    completed = unziplora(*line, *options, "--json")
    assert completed.envelope["result"] == {
        "way": "inversion",
        "images": [str(out / "01.png"), str(out / "02.png")],
    }
    again = unziplora(*line, *options)
    assert (again.code, "exists" in again.message) == (3, True)
    printed = unziplora(*line, *options, "--force").out
    words = ["train", str(photos / "fox.png"), "--subject", "fox", "--style", "sketch", "--destyle", str(out)]
    assert shlex.split(printed[printed.index("unziplora train") :]) == ["unziplora", *words]
    with Image.open(out / "01.png") as image:
        assert image.size == (64, 64)
        assert json.loads(image.info["unziplora"])["command"] == "destyle"
    assert ProjectStore(isolated_home).names() == []


def test_destyle_without_a_way_says_how(assert_fails, photos, settings, tmp_path):
    options = [o for o in settings if o.split("=")[0] in ("--base", "--device")]
    message = assert_fails(
        2, "destyle", photos / "fox.png", f"--out={tmp_path}", "--subject=fox", "--style=ink", *options,
        "--destyle=none",
    )  # fmt: skip
    assert "--destyle inversion" in message


def test_mini_proposes_only_with_its_reader(unziplora, photos, no_training, monkeypatch, tmp_path):
    monkeypatch.setattr(resources, "reader", lambda: tmp_path)
    completed = unziplora("train", photos / "fox.png", "--base=mini")
    assert completed.code == 2
    assert "models pull" not in completed.message


def test_mini_proposes_features_only_where_it_sees_colours_that_it_can_name(unziplora, monkeypatch, tmp_path):
    """The reader takes every subject for one of those that mini renders, in one of eleven colours."""
    monkeypatch.setattr(describers.MiniDescriber, "describe", lambda self, image: FOX)
    samples = resources.mini() / "samples"
    line = ("describe", samples / "fox.png", samples / "octopus.png", "--base=mini", "--json")
    for destyler, expected in ((resources.destyler(), []), (tmp_path / "missing", [*FOX.features])):
        monkeypatch.setattr(resources, "destyler", lambda folder=destyler: folder)
        described = unziplora(*line).envelope["result"]["images"]
        assert [image["features"] for image in described] == [[*FOX.features], expected]


@pytest.mark.parametrize(("style", "noted"), [("photo", False), ("ink", True)])
def test_a_strength_of_inversion_has_an_effect_on_photos(unziplora, photos, no_training, style, noted):
    line = ("train", photos / "fox.png", "--base=mini", "--subject=fox", "--destyle-strength=0.5")
    completed = unziplora(*line, f"--style={style}")
    assert ("destyle-strength has no effect" in completed.err) is noted
