"""What the tabs do, called as the page calls them: imports, cards and preferences."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from unziplora_cli import resources
from unziplora_cli.adapters.lora_file import write_lora
from unziplora_cli.cli._errors import describe
from unziplora_cli.job import Description
from unziplora_cli.method.inject import adapted_projections
from unziplora_cli.method.layer import BRANCHES
from unziplora_cli.method.lora import LoRAWeights
from unziplora_cli.projects.store import ProjectStore
from unziplora_cli.sdxl.meta import meta_unet
from unziplora_cli.ui.server import Context
from unziplora_cli.workflows.generate import images_folder

gr = pytest.importorskip("gradio")

Call = Callable[..., list[Any]]


@pytest.fixture
def context(isolated_home: Path, tmp_path: Path) -> Iterator[Context]:
    from unziplora_cli.ui.jobs import JobQueue

    queue = JobQueue(describe)
    yield Context(ProjectStore(isolated_home), queue, describe, tmp_path)
    queue.close()


@pytest.fixture
def call(context: Context) -> Call:
    """Calls a function of the page by its name, all in one session; returns its outputs."""
    from unziplora_cli.ui.page import build

    async def make() -> Any:
        return build(context)  # outside of an event loop, Gradio leaves one open

    page = asyncio.run(make())
    session = gr.blocks.SessionState(page)

    def call(name: str, *inputs: Any) -> list[Any]:
        function = next(function for function in page.fns.values() if function.name == name)
        request = page.process_api(function, list(inputs), session)
        outputs: list[Any] = asyncio.run(request)["data"]
        return outputs

    return call


@pytest.fixture
def pair(context: Context) -> list[dict[str, Any]]:
    """A content and a style LoRA for mini without any words in them, as files that were sent to the page."""
    from unziplora_cli.workflows.export_lora import lookup_base, unet_config

    unet = meta_unet(unet_config(lookup_base("mini")))
    name, layer = next(iter(adapted_projections(unet).items()))
    weights = LoRAWeights(torch.ones(1, layer.in_features), torch.ones(layer.out_features, 1))
    for role in BRANCHES:
        write_lora(context.uploads / f"owl-{role}.safetensors", {name: weights})
    return [sent(context.uploads / f"owl-{role}.safetensors") for role in BRANCHES]


def sent(path: Path) -> dict[str, Any]:
    """A file in a request, as the page's own program sends it."""
    return {"path": str(path), "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}


def card_captions(call: Call) -> list[str]:
    cards, _ = call("list_cards", None)
    return [card["caption"] for card in cards["value"]]


def test_an_import_says_what_the_command_says_and_its_project_has_a_card(
    call: Call, context: Context, pair: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(gr.Error, match="do not name the subject"):
        call("import_files", pair, None, "", "", "ink")
    assert context.store.names() == []
    *cleared, picker = call("import_files", pair, None, "", "owl", "ink")
    assert (cleared, picker["value"]) == ([None, None, "", "", ""], "owl")
    notes = unescape(capsys.readouterr().out).splitlines()
    assert notes == [
        f"There are no merge weights for the {role}: all are 1." for role in ("content", "style")
    ]
    assert context.store.open("owl").job.words.subject == "owl"
    assert card_captions(call) == ["owl: owl, ink"]


def test_words_that_the_files_do_not_name_are_seen_in_the_image(
    call: Call, context: Context, pair: list[dict[str, Any]]
) -> None:
    image = Path(shutil.copy(resources.samples()["fox"].image, context.uploads / "image.png"))
    call("import_files", pair, sent(image), "mine", "", "stained glass")
    project = context.store.open("mine")
    assert project.job.words.subject == "fox"
    assert [(image.width, image.height) for image in project.job.images] == [(256, 256)]
    assert card_captions(call) == ["mine: fox, stained glass"]


def test_the_page_takes_the_preferred_base_and_describer(
    call: Call, context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    automatic = ["automatic", "automatic", *[""] * 5]
    assert call("show_estimate", None, *automatic)[0].startswith("About ")
    monkeypatch.setenv("UNZIPLORA_BASE", str(tmp_path / "gone"))
    with pytest.raises(gr.Error, match="There is no base"):
        call("show_estimate", None, *automatic)
    image = Path(shutil.copy(resources.samples()["fox"].image, context.uploads / "image.png"))
    monkeypatch.setenv("UNZIPLORA_DESCRIBER", str(tmp_path / "missing"))
    with pytest.raises(gr.Error, match="missing"):
        call("receive", [sent(image)], "mini")


def test_proposed_words_go_with_their_image_and_typed_ones_stay(
    call: Call, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = [Description("mini's reader", "fox", "ink", ("orange",), "")]
    monkeypatch.setattr("unziplora_cli.ui.train.describe_images", lambda *_, **__: described)
    image = sent(Path(shutil.copy(resources.samples()["fox"].image, context.uploads / "a.png")))
    call("receive", [image], "mini")
    typed_meanwhile = call("fill", None, None, "", "oil paint", "")[1:]
    assert typed_meanwhile == ["fox", "oil paint", "orange"]
    call("receive", [image, image], "mini")
    assert call("fill", None, None, *typed_meanwhile)[1:] == ["", "oil paint", ""]


def test_a_number_that_is_none_is_said_in_place_of_the_estimate(call: Call) -> None:
    shown = call("show_estimate", None, "mini", "automatic", "", "many", *[""] * 3)
    assert shown == ["Rank must be a number, not 'many'."]


def test_the_estimate_counts_all_images_in_the_units_of_the_command(
    call: Call, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = SimpleNamespace(
        too_slow=False,
        fits=True,
        time=SimpleNamespace(total=90.0),
        required_bytes=586_700_000,
        free_bytes=23_200_000_000,
    )
    monkeypatch.setattr("unziplora_cli.training.estimate.estimate_training", lambda *_: needed)
    images = [
        sent(Path(shutil.copy(resources.samples()["fox"].image, context.uploads / f"{name}.png")))
        for name in "ab"
    ]
    assert call("show_estimate", images, "mini", "automatic", *[""] * 5) == [
        "About 3.0 min for 2 images of 500 steps, 586.7 MB of memory (23.2 GB are free).\n"
        + resources.MINI_DESCRIPTION
    ]
    assert call("show_estimate", images[:1], "mini", "automatic", *[""] * 5)[0].startswith(
        "About 1.5 min for 500 steps, "
    )


def test_a_word_that_is_missing_is_said_of_its_image_as_by_the_command(
    call: Call, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = [
        Description("mini's reader", "fox", "", ("orange",), ""),
        Description("mini's reader", "", "ink", (), ""),
    ]
    monkeypatch.setattr("unziplora_cli.ui.train.describe_images", lambda *_, **__: described)
    images = [
        sent(Path(shutil.copy(resources.samples()["fox"].image, context.uploads / f"{name}.png")))
        for name in "ab"
    ]
    with pytest.raises(gr.Error) as raised:
        call("train", images, *[""] * 4, "mini", "automatic", *[""] * 5)
    assert "The subject of b.png is not given, and mini's reader is not sure." in unescape(str(raised.value))
    assert context.queue.projects() == set()


def test_a_click_and_a_job_can_need_the_libraries_at_once() -> None:
    code = (
        "import sys, threading; from unziplora_cli.ui.components import import_libraries as load; "
        "sys.setswitchinterval(1e-5); threading.excepthook = lambda caught: print(caught.exc_value); "
        "threads = [threading.Thread(target=load) for _ in range(2)]; [one.start() for one in threads]; "
        "[one.join() for one in threads]"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout == ""


def test_what_is_said_about_a_project_is_in_words(make_project: Callable[..., Any]) -> None:
    from unziplora_cli.ui.projects import _facts

    project = make_project("owl")
    project.manifest.metrics["loss_last"] = 0.5
    store = SimpleNamespace(exists=lambda name: True, open=lambda name: project)
    lines = _facts(cast(Context, SimpleNamespace(store=store)), "owl").splitlines()
    assert "loss last: 0.5" in lines
    assert f"made {project.job.created[:10]}" in lines


def test_images_go_to_the_preferred_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    project: Any = type("Named", (), {"name": "fox", "images": tmp_path / "home/projects/fox/images"})
    assert images_folder(project) == project.images
    monkeypatch.setenv("UNZIPLORA_OUTPUT_FOLDER", str(tmp_path / "drawn"))
    assert images_folder(project) == tmp_path / "drawn/fox"
