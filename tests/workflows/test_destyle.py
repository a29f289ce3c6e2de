"""Destyled images: made once, and kept in the project with the latents that were learned."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.cli.conftest import SETTINGS
from tests.cli.test_train import at_step
from unziplora_cli import resources
from unziplora_cli.__main__ import run
from unziplora_cli.cli import _output
from unziplora_cli.config import Prompts, TrainConfig, Words, resolve
from unziplora_cli.errors import ModelError, UsageError
from unziplora_cli.evaluation import reader
from unziplora_cli.evaluation.scorers import ImageScore
from unziplora_cli.events import Notice
from unziplora_cli.events import run as run_events
from unziplora_cli.projects.store import ProjectStore
from unziplora_cli.sdxl.base import BaseRef, resolve_base
from unziplora_cli.training.destyle import plain_prompt
from unziplora_cli.training.destyler import MiniDestyler
from unziplora_cli.training.request import TrainRequest
from unziplora_cli.workflows import destyle
from unziplora_cli.workflows.describe import outside
from unziplora_cli.workflows.train import make_request

PROMPTS = Prompts("a monadikos fox in ink style", "a monadikos fox", "a fox in ink style")
WORDS = ("--subject=fox", "--style=watercolor")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "fox.png"
    Image.linear_gradient("L").resize((80, 64)).convert("RGB").save(path)
    return path


@pytest.fixture(scope="module")
def train(tiny_base: Path, picture: Path):
    """Trains six steps on two destyled images; returns the exit code."""
    settings = {**SETTINGS, "base": tiny_base, "destyle-images": 2, "destyle-strength": 0.2}

    def invoke(home: Path, *more: str) -> int:
        options = [f"--{name}={value}" for name, value in settings.items()]
        return run(["train", str(picture), *WORDS, *options, f"--home={home}", "-q", *more])

    return invoke


@pytest.fixture(scope="module")
def trained(train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one project that was trained on destyled images."""
    home = tmp_path_factory.mktemp("home")
    assert train(home, "--features=red, white dots") == 0
    return home


def test_destyled_images_are_part_of_the_project(trained: Path) -> None:
    store = ProjectStore(trained)
    project = store.open("fox")
    files = [image.file for image in project.job.destyled]
    assert files == ["destyled/01.png", "destyled/02.png"]
    assert (project.job.settings or TrainConfig()).destyle == "inversion"
    assert store.verify("fox").problems == ()
    assert store.verify("fox").checked == 1 + 2 + 5
    with Image.open(project.folder / files[0]) as image:
        assert image.size == (64, 64)
        assert json.loads(image.info["unziplora"])["prompts"]["full"] == (
            "a monadikos red fox with white dots in photo style"
        )


def test_a_training_that_is_given_the_files_learns_nearly_the_same(
    train, trained: Path, tmp_path: Path
) -> None:
    """The files are the learned latents, decoded and rounded to 8 bits."""
    made = ProjectStore(trained).open("fox")
    assert train(tmp_path, f"--destyle={made.folder / 'destyled'}") == 0
    given = ProjectStore(tmp_path).open("fox")
    assert (given.job.settings or TrainConfig()).destyle == "folder"
    assert [i.sha256 for i in given.job.destyled] == [i.sha256 for i in made.job.destyled]
    assert given.manifest.artifact("destyled") is None
    assert given.manifest.metrics == pytest.approx(made.manifest.metrics, rel=0.02)
    assert given.manifest.metrics != made.manifest.metrics


def test_a_replay_learns_the_recorded_latents(trained: Path, monkeypatch, capsys) -> None:
    from unziplora_cli.training import engine

    monkeypatch.setattr(engine, "generate_destyled", None)
    assert run(["replay", "fox", f"--home={trained}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["result"]["identical"] is True


def test_a_resumed_training_learns_the_latents_of_its_folder(
    train, trained: Path, tmp_path: Path, monkeypatch
) -> None:
    """Stopped after a step, it goes on to the same files without making the images again."""
    from unziplora_cli.training import engine

    with monkeypatch.context() as patch:
        patch.setattr(
            _output.ProgressDisplay, "event", at_step(3, lambda: signal.raise_signal(signal.SIGINT))
        )
        assert train(tmp_path, "--features=red, white dots") == 130
    store = ProjectStore(tmp_path)
    before = store.open("fox").job.destyled
    assert len(before) == 2
    monkeypatch.setattr(engine, "generate_destyled", None)
    assert run(["train", "--resume", "fox", f"--home={tmp_path}", "-q"]) == 0
    assert store.open("fox").job.destyled == before
    assert store.verify("fox").problems == ()
    undisturbed = ProjectStore(trained).open("fox")
    assert store.open("fox").path("merge").read_bytes() == undisturbed.path("merge").read_bytes()


def test_the_report_and_show_have_the_destyled_images(trained: Path, tmp_path: Path, capsys) -> None:
    from unziplora_cli.workflows.report import report

    result = report(ProjectStore(trained).open("fox"), tmp_path / "report.html")
    assert (result.images, result.notes) == (3, ())
    page = (tmp_path / "report.html").read_text()
    assert "What the content LoRA learned" in page
    assert page.count('alt="Destyled image: ') == 2
    assert run(["show", "fox", f"--home={trained}"]) == 0
    shown = capsys.readouterr().out
    assert "red, white dots" in shown
    assert "2, by inversion" in shown


def test_a_changed_destyled_image_is_a_problem_of_the_project(trained: Path, tmp_path: Path) -> None:
    import shutil

    home = tmp_path / "home"
    shutil.copytree(trained, home)
    Image.new("RGB", (64, 64)).save(home / "projects/fox/destyled/02.png")
    (problem,) = ProjectStore(home).verify("fox").problems
    assert problem.path == "destyled/02.png"


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ((), "a monadikos fox in photo style"),
        (("orange",), "a monadikos orange fox in photo style"),
        (("white dots", "orange"), "a monadikos orange fox with white dots in photo style"),
        (("white dots", "a red collar"), "a monadikos fox with white dots and a red collar in photo style"),
        (("{content}",), "a monadikos {content} fox in photo style"),
        ((r"\g<0>",), r"a monadikos \g<0> fox in photo style"),
    ],
)
def test_features_stand_where_english_puts_them(features: tuple[str, ...], expected: str) -> None:
    config = TrainConfig(destyle_images=1, destyle_prompt="{content} in photo style")
    assert plain_prompt(config, PROMPTS, "fox", features) == expected


def test_features_follow_a_content_prompt_without_the_subject() -> None:
    config = TrainConfig(destyle_images=1, destyle_prompt="a photo of {content}")
    prompts = replace(PROMPTS, content="monadikos")
    assert plain_prompt(config, prompts, "fox", ("orange", "white dots")) == (
        "a photo of monadikos, orange, white dots"
    )


@pytest.fixture
def mini() -> BaseRef:
    return resolve_base("mini", offline=True)[0]


@pytest.fixture
def other(tiny_base: Path) -> BaseRef:
    return resolve_base(str(tiny_base), offline=True)[0]


@pytest.fixture
def destyler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A random destyler in the place of mini's own, sure that every body is red."""
    folder = tmp_path / "destyler"
    colors = {"red": (220, 40, 40), "orange": (250, 130, 30), "white": (250, 250, 250)}
    model = MiniDestyler(colors, widths=(8, 8), size=128)
    torch.nn.init.zeros_(model.guess.weight)
    model.guess.bias.data = torch.tensor([5.0, *[0.0] * 7])
    model.save(folder)
    monkeypatch.setattr(resources, "destyler", lambda: folder)
    return folder


def test_mini_uses_its_destyler_if_it_has_one(mini: BaseRef, destyler: Path) -> None:
    config = resolve("mini", {})
    assert destyle.choose_way(config, mini, "watercolor")[0].destyle == "model"
    assert destyle.choose_way(config, mini, "photo")[0].destyle == "inversion"
    (destyler / "destyler.json").unlink()
    assert destyle.choose_way(config, mini)[0].destyle == "inversion"


def test_another_base_cannot_use_the_destyler_of_mini(other: BaseRef, destyler: Path) -> None:
    with pytest.raises(UsageError, match="built-in base"):
        destyle.choose_way(resolve("destyle", {"destyle": "model"}), other)
    assert destyle.choose_way(resolve("destyle", {}), other)[0].destyle == "inversion"
    assert destyle.choose_way(resolve("paper", {}), other)[0] == resolve("paper", {})


@pytest.mark.parametrize(
    ("way", "error", "match"),
    [("nowhere", UsageError, "neither"), ("edit", ModelError, "No editing model")],
)
def test_a_way_that_cannot_work_is_refused_before_training(other: BaseRef, way, error, match) -> None:
    with pytest.raises(error, match=match):
        destyle.choose_way(resolve("destyle", {"destyle": way}), other)


def test_an_empty_folder_is_refused(other: BaseRef, tmp_path: Path) -> None:
    (tmp_path / ".hidden.png").write_bytes(b"")
    with pytest.raises(UsageError, match="no images"):
        destyle.choose_way(resolve("destyle", {"destyle": str(tmp_path)}), other)


def test_a_way_and_a_number_may_not_contradict() -> None:
    assert resolve("mini", {"destyle": "none"}).destyle_images == 0
    assert resolve("paper", {"destyle": "inversion"}).destyle_images == 8
    with pytest.raises(UsageError, match="destyle-images is 0"):
        resolve("mini", {"destyle": "edit", "destyle_images": 0})
    with pytest.raises(UsageError, match="destyle-images is 4"):
        resolve("mini", {"destyle": "none", "destyle_images": 4})


def test_the_destyler_gets_the_colours_of_the_features() -> None:
    colors = ("red", "orange", "white")
    assert destyle._colors(("Orange", "white dots"), colors).tolist() == [[1, 2]]
    assert destyle._colors(("striped",), colors).tolist() == [[3, 3]]


def test_the_destyler_redraws_each_crop_before_training(
    mini: BaseRef, destyler: Path, picture: Path, tmp_path: Path
) -> None:
    from unziplora_cli.images import load_image
    from unziplora_cli.sdxl.latents import crop_image

    words = Words("fox", "watercolor")
    request = make_request("fox", (picture,), words, mini, resolve("mini", {"crops": 2}), features=("red",))
    request = replace(request, other_subject=None)
    (done,) = run_events(destyle.destyle_requests([request], tmp_path / "scratch"), lambda event: None)
    assert [image.file for image in done.job.destyled] == ["destyled/01.png", "destyled/02.png"]
    assert done.config.destyle == "model"
    pixels = crop_image(load_image(picture).image, 128, 2)
    photos = MiniDestyler.load(destyler)(pixels, torch.tensor([[0, 3]] * 2))
    for path, photo in zip(done.destyled, photos, strict=True):
        written = crop_image(load_image(path).image, 128, 1)[0]
        assert (written - photo).abs().max() < 0.005  # half a level of 255


def events_of(operation) -> tuple[object, list[str]]:
    """The result of an operation and the texts of its notices."""
    events: list[object] = []
    result = run_events(operation, events.append)
    return result, [event.text for event in events if isinstance(event, Notice)]


def test_a_color_that_the_image_hides_is_called_a_guess(mini: BaseRef, tmp_path: Path) -> None:
    """Nobody sees in a blueprint that the balloon is orange; the fox in stained glass shows its colors."""
    from recipes.mini.draw import draw
    from recipes.mini.scene import Individual, Scene

    blueprint = tmp_path / "balloon.png"
    balloon = Individual("balloon", "orange", "brown", "patched", 1)
    Image.fromarray(draw(Scene(balloon, "blueprint", "", 1), 128)).save(blueprint)

    def notices(image: Path, words: Words, *features: str) -> list[Notice]:
        events: list[object] = []
        request = make_request("it", (image,), words, mini, resolve("mini", {}), features=features)
        run_events(destyle.destyle_requests([request], tmp_path / f"scratch{len(features)}"), events.append)
        return [event for event in events if isinstance(event, Notice)]

    (notice,) = notices(blueprint, Words("balloon", "blueprint"))
    assert notice.text.startswith("it: the image hardly shows which color the balloon has; ")
    assert notice.remedies[0].settings == {"features": "orange, white dots"}
    assert notices(blueprint, Words("balloon", "blueprint"), "orange", "brown patches") == []
    assert (
        notices(resources.samples()["fox"].image, Words("fox", "stained glass"), "dotted", "small", "old")
        == []
    )


def test_a_photo_of_another_subject_is_left_to_the_base(
    mini: BaseRef, destyler: Path, tmp_path: Path
) -> None:
    """A destyler whose photos are gray draws no fox, as the shipped reader sees."""
    blank = MiniDestyler.load(destyler)
    torch.nn.init.zeros_(blank.out[-1].weight)
    blank.save(destyler)
    picture = resources.samples()["fox"].image
    request = make_request("fox", (picture,), Words("fox", "watercolor"), mini, resolve("mini", {}))
    (done,), (notice,) = events_of(destyle.destyle_requests([request], tmp_path / "scratch"))
    assert done == replace(request, by_the_base=True)
    again, notices = events_of(destyle.destyle_requests([done], tmp_path / "scratch"))
    assert (again, notices) == ([done], [])
    assert notice.startswith("fox: the small destyler draws a")
    assert notice.endswith("instead of the fox, so the base destyles the image by inversion.")


def test_only_the_crops_that_show_the_subject_are_learned(
    mini: BaseRef, destyler: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = resolve("mini", {"crops": 3})
    monkeypatch.setattr(reader, "is_sure", lambda image, subject: True)
    request = make_request("fox", (picture,), Words("fox", "watercolor"), mini, config)
    seen = iter(("", "snail", "owl"))
    request = replace(request, other_subject=lambda image: next(seen))
    (done,), (notice,) = events_of(destyle.destyle_requests([request], tmp_path / "scratch"))
    assert [image.file for image in done.job.destyled] == ["destyled/01.png"]
    assert notice == "fox: 2 destyled images show a snail and an owl instead of the fox: omitted."


def test_a_photo_is_learned_if_the_reader_misreads_its_image(
    mini: BaseRef, destyler: Path, tmp_path: Path
) -> None:
    """It takes the shipped fox for no teapot, so it cannot say what a photo of that teapot shows."""
    picture = resources.samples()["fox"].image
    request = make_request("teapot", (picture,), Words("teapot", "watercolor"), mini, resolve("mini", {}))
    request = replace(request, other_subject=lambda image: "snail")
    (done,), notices = events_of(destyle.destyle_requests([request], tmp_path / "scratch"))
    assert [image.file for image in done.job.destyled] == ["destyled/01.png"]
    assert notices == []


def test_what_the_reader_takes_for_another_subject_already_in_the_training_image_is_no_reason(
    mini: BaseRef, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who takes the user's bear for a bison cannot tell whether its photo shows a bear."""
    training = Image.open(picture).tobytes()
    reads = {training: "bison", b"": "bison"}
    monkeypatch.setattr(
        reader, "other_subject", lambda image, subject: reads.get(image.tobytes(), reads[b""])
    )
    check = destyle.subject_check(mini, Words("bear", "ink"), (picture,))
    assert check is not None
    photo = Image.new("RGB", (8, 8))
    assert check(photo) == ""
    reads[b""] = "boar"
    assert check(photo) == "boar"
    reads[training] = ""
    reads[b""] = "bison"
    reader.other_subject_in.cache_clear()
    assert check(photo) == "bison"


def test_a_word_and_an_image_that_mini_does_not_know_are_named(
    mini: BaseRef, other: BaseRef, picture: Path
) -> None:
    shipped = resources.samples()["fox"].image
    assert outside([shipped], mini, Words("red fox", "ink")) is None
    assert outside([picture], other, Words("wombat", "ink")) is None
    unknown, misread = (outside([shipped], mini, Words(subject, "ink")) for subject in ("wombat", "teapot"))
    assert unknown is not None
    assert misread is not None
    assert unknown.text == "mini does not know 'wombat'; is it fox? It may draw something else."
    assert misread.text == "mini takes fox.png for a fox, not for a teapot. It may draw something else."
    assert {"base": "sdxl"} in [remedy.settings for remedy in misread.remedies]


class FakeScorer:
    """Sees what the test lists: subject, style and identity of each image in turn."""

    subject, style, name, notes = "fox", "ink", "a scorer", ()

    def __init__(self, *seen: tuple[str, str, float]) -> None:
        self.scores = [ImageScore(subject, style, "", identity) for subject, style, identity in seen]

    def score(self, images: list[Image.Image], prompts: list[str]) -> list[ImageScore]:
        assert prompts == ["a photo of a fox"] * len(images)
        return self.scores


def best_of(request: TrainRequest, monkeypatch: pytest.MonkeyPatch, *seen: tuple[str, str, float]):
    """Which of as many images are kept, and what is said about them."""
    scorer = FakeScorer(*seen) if seen else None
    monkeypatch.setattr(destyle, "find_scorer", lambda *_: scorer)
    images = [Image.new("RGB", (8, 8), (number, 0, 0)) for number in range(len(seen) or 5)]
    events: list[object] = []
    kept = run_events(destyle._best(request, images), events.append)
    notices = [event for event in events if isinstance(event, Notice)]
    return [image.getpixel((0, 0))[0] for image in kept], notices


@pytest.fixture
def edited(other: BaseRef, picture: Path, monkeypatch: pytest.MonkeyPatch) -> TrainRequest:
    from unziplora_cli.training import edit

    monkeypatch.setattr(edit, "find_editor", lambda spec: Path())
    config = resolve("destyle", {"destyle": "edit", "destyle_images": 5})
    return make_request("fox", (picture,), Words("fox", "ink"), other, config)


def test_the_best_quarter_of_edited_images_is_kept(edited, monkeypatch) -> None:
    seen = [("fox", "photo", 0.5), ("cat", "photo", 0.9), ("fox", "photo", 0.7)]
    seen += [("fox", "ink", 1.0), ("fox", "photo", 0.6)]
    assert best_of(edited, monkeypatch, *seen) == ([2, 4], [])


def test_it_says_when_no_edited_image_is_good(edited, monkeypatch) -> None:
    kept, (notice,) = best_of(edited, monkeypatch, *[("fox", "ink", 0.1), ("dog", "ink", 0.9)])
    assert kept == [0]
    assert "no edited image is a photo of the fox" in notice.text
    assert {"destyle": "inversion"} in [remedy.settings for remedy in notice.remedies]


def test_without_a_scorer_all_edited_images_are_kept(edited, monkeypatch) -> None:
    kept, (notice,) = best_of(edited, monkeypatch)
    assert kept == [0, 1, 2, 3, 4]
    assert "not scored" in notice.text


def test_one_editing_model_serves_all_trainings(edited, monkeypatch, tmp_path) -> None:
    """It is loaded once, freed before the next model, and its seeds follow that of each training."""
    from unziplora_cli.training import edit

    log: list[object] = []

    class FakeEditor:
        def edit(self, image: Image.Image, text: str, side: int, seed: int) -> Image.Image:
            log.append(seed)
            return Image.new("RGB", (side, side), (seed, 0, 0))

        def close(self) -> None:
            log.append("closed")

        @classmethod
        def load(cls, spec: str, **options: object) -> "FakeEditor":
            log.append("loaded")
            return cls()

    monkeypatch.setattr(edit, "ImageEditor", FakeEditor)
    monkeypatch.setattr(destyle, "find_scorer", lambda *_: None)
    config = replace(edited.config, destyle_images=2, resolution=64, seed=7)
    other = replace(edited, job=replace(edited.job, name="rose", settings=config))
    first = replace(edited, job=replace(edited.job, settings=replace(config, seed=0)))
    done = run_events(destyle.destyle_requests([first, other], tmp_path), lambda event: None)
    assert log == ["loaded", 0, 1, 7, 8, "closed"]
    assert [len(request.destyled) for request in done] == [2, 2]
    assert done[0].job.destyled != done[1].job.destyled


def test_a_training_image_is_read_once_for_all_destyled_ones(
    mini: BaseRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large photo would be decoded beside the loaded base for every suspicious image."""
    photo = tmp_path / "fox.png"
    Image.new("RGB", (64, 64)).save(photo)
    decoded: list[Path] = []
    load = reader.load_image
    monkeypatch.setattr(reader, "load_image", lambda path: decoded.append(path) or load(path))
    monkeypatch.setattr(reader, "other_subject", lambda image, subject: "cat")
    check = destyle.subject_check(mini, Words("fox", "ink"), [photo])
    assert check is not None
    assert [check(Image.new("RGB", (32, 32))) for _ in range(8)] == [""] * 8
    assert decoded == [photo]
