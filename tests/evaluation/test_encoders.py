"""DINOv2 and CLIP from the cache, against transformers' own models; and the scorer that uses them."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tests.evaluation.tiny_encoders import put_encoders_in_cache
from unziplora_cli import paths
from unziplora_cli.cli._errors import hint
from unziplora_cli.config import Words
from unziplora_cli.errors import ModelError
from unziplora_cli.evaluation.prompts import CONTEXTS, SUBJECTS
from unziplora_cli.evaluation.scorers import CLIP, DINO, ClipScorer, Encoders, missing_encoders


@pytest.fixture
def encoders(tmp_path, isolated_home):
    put_encoders_in_cache(tmp_path)
    return Encoders.load()


@pytest.fixture
def images():
    up = Image.linear_gradient("L").resize((64, 48)).convert("RGB")
    return [up, up.rotate(90), Image.radial_gradient("L").convert("RGB")]


def test_missing_models_are_named_with_the_option_that_downloads_them():
    assert missing_encoders() == (DINO, CLIP)
    with pytest.raises(ModelError, match=DINO) as caught:
        Encoders.load()
    assert "--pull" in hint(caught.value)


def test_model_without_all_files_is_missing(tmp_path):
    put_encoders_in_cache(tmp_path)
    assert missing_encoders() == ()
    next(paths.hub_cache().glob("models--openai*/snapshots/*/merges.txt")).unlink()
    assert missing_encoders() == (CLIP,)


def test_damaged_weights_are_reported(tmp_path):
    put_encoders_in_cache(tmp_path)
    next(paths.hub_cache().glob("models--facebook*/snapshots/*/model.safetensors")).write_bytes(b"no")
    with pytest.raises(ModelError, match="Cannot load DINOv2 or CLIP"):
        Encoders.load()


def test_embeddings_are_those_of_transformers_models(encoders, images, tmp_path):
    from transformers import CLIPModel, CLIPTokenizer, Dinov2Model

    texts = ["a fox", "a house in watercolor style"]
    clip = CLIPModel.from_pretrained(tmp_path / "clip")
    tokens = CLIPTokenizer.from_pretrained(tmp_path / "clip")(texts, padding=True, return_tensors="pt")
    pixels = encoders.clip_processor(images, return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = clip(**tokens, pixel_values=pixels)
        dino = Dinov2Model.from_pretrained(tmp_path / "dino")
        states = dino(encoders.dino_processor(images, return_tensors="pt").pixel_values).last_hidden_state
    torch.testing.assert_close(encoders.embed_clip(images), expected.image_embeds)
    torch.testing.assert_close(encoders.embed_texts(texts), expected.text_embeds)
    torch.testing.assert_close(encoders.embed_dino(images), F.normalize(states[:, 0], dim=1))


def test_similarities_compare_with_the_training_image_and_the_prompt(encoders, images):
    scorer = ClipScorer(encoders, images[:1], Words("fox", "watercolor"))
    scores = scorer.score(images, ["a monadikos fox", "a fox in watercolor style", "a fox"])
    assert scores[0].identity == pytest.approx(1.0, abs=1e-5)
    assert scores[0].style_similarity == pytest.approx(1.0, abs=1e-5)
    embeddings = encoders.embed_dino(images)
    assert scores[2].identity == pytest.approx(float(embeddings[2] @ embeddings[0]))
    # CLIP does not know the trigger, so the scorer removes it.
    expected = float(encoders.embed_clip(images)[0] @ encoders.embed_texts(["a fox"])[0])
    assert scores[0].prompt_similarity == pytest.approx(expected)


class FakeEncoders:
    """Embeds an image as the sum of the texts that it is labeled with."""

    def __init__(self):
        self.indices = {}

    def embed_texts(self, texts):
        rows = torch.zeros(len(texts), 100)
        for row, text in zip(rows, texts, strict=True):
            row[self.indices.setdefault(text, len(self.indices))] = 1.0
        return rows

    def embed_dino(self, images):
        return torch.ones(len(images), 1)

    def embed_clip(self, images):
        return torch.stack([self.embed_texts(image.info["texts"]).sum(dim=0) for image in images])


def labeled(*texts):
    image = Image.new("RGB", (8, 8))
    image.info["texts"] = texts
    return image


def test_clip_names_the_nearest_description():
    scorer = ClipScorer(FakeEncoders(), [labeled()], Words("rose", "ink"))
    scores = scorer.score(
        [
            labeled("a picture of a rose", "a picture in ink style", "a picture taken in the snow"),
            labeled("a picture of a house", "a photo", "a picture on a plain background"),
            labeled("a picture of a house", "a digital illustration", "a picture taken at night"),
        ],
        ["", "", ""],
    )
    assert [(score.subject, score.style, score.context) for score in scores] == [
        ("rose", "ink", "in the snow"),
        ("house", "photo", ""),
        ("house", "illustration", "at night"),
    ]
    assert {"in the snow", "at night"} <= set(CONTEXTS)
    assert "house" in SUBJECTS
