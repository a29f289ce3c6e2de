"""Editing pipelines of real classes, with random weights."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.training.tiny_editors import make_tiny_klein, make_tiny_pix2pix
from unziplora_cli.config import Words
from unziplora_cli.errors import ModelError
from unziplora_cli.training import edit
from unziplora_cli.training.edit import ImageEditor, find_editor, instruction

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pix2pix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_pix2pix(tmp_path_factory.mktemp("editors") / "pix2pix")


@pytest.fixture(scope="module")
def klein(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_klein(tmp_path_factory.mktemp("editors") / "klein")


@pytest.fixture(params=["pix2pix", "klein"])
def editor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ImageEditor:
    """Each pipeline, with two steps."""
    folder = request.getfixturevalue(request.param)
    loaded = ImageEditor.load(str(folder), device=CPU, dtype=torch.float32)
    loaded._arguments["num_inference_steps"] = 2
    return loaded


def test_an_edited_image_depends_on_image_instruction_and_seed(editor: ImageEditor) -> None:
    red, blue = (Image.new("RGB", (96, 64), color) for color in ("red", "blue"))
    first = editor.edit(red, "redraw this fox", 64, 0)
    assert (first.size, first.mode) == ((64, 64), "RGB")
    assert editor.edit(red, "redraw this fox", 64, 0).tobytes() == first.tobytes()
    others = [
        editor.edit(blue, "redraw this fox", 64, 0),
        editor.edit(red, "redraw this cat", 64, 0),
        editor.edit(red, "redraw this fox", 64, 1),
    ]
    assert all(other.tobytes() != first.tobytes() for other in others)


def test_a_distilled_pipeline_takes_few_steps(klein: Path) -> None:
    loaded = ImageEditor.load(str(klein), device=CPU, dtype=torch.float32)
    assert loaded._arguments == edit.DISTILLED


def test_the_instruction_names_the_subject_and_its_features() -> None:
    words = Words("{style} fox", "ink {subject}")
    text = instruction(words, ("orange", "white dots"))
    assert "of the same {style} fox." in text
    assert "Remove the ink {subject} style." in text
    assert text.endswith("exactly: orange, white dots.")
    assert instruction(Words("fox", "ink"), ()).endswith("exactly.")


@pytest.mark.parametrize(
    ("index", "match"),
    [
        ({"_class_name": "StableDiffusionXLPipeline"}, "a StableDiffusionXLPipeline"),
        ({"_class_name": ["custom", "Pipeline"]}, "not a pipeline"),
        ({}, "not a pipeline"),
    ],
)
def test_another_pipeline_is_refused(tmp_path: Path, index: dict, match: str) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=match):
        find_editor(str(tmp_path))


@pytest.mark.parametrize("spec", [None, "nobody/nothing", "*/*", "a/b/c"])
def test_a_missing_pipeline_is_named_with_the_line_that_fetches_it(spec: str | None) -> None:
    with pytest.raises(ModelError) as caught:
        find_editor(spec)
    assert caught.value.remedies[-1].program == "hf"


def test_weights_that_are_pickled_are_not_read(pix2pix: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(pix2pix, copy)
    weights = next((copy / "unet").glob("*.safetensors"))
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(ModelError, match="Cannot load the editing model"):
        ImageEditor.load(str(copy), device=CPU, dtype=torch.float32)
