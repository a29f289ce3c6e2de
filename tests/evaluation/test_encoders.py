"""DINOv2 and CLIP from the cache, against transformers' own models."""

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tests.evaluation.tiny_encoders import put_encoders_in_cache
from unziplora_cli import paths
from unziplora_cli.cli._errors import hint
from unziplora_cli.config import Words
from unziplora_cli.errors import ModelError
from unziplora_cli.evaluation import scorers
from unziplora_cli.evaluation.prompts import CONTEXTS, SUBJECTS
from unziplora_cli.evaluation.scorers import CLIP, DINO, ClipScorer, Encoders


@pytest.fixture
def loaded(tmp_path, isolated_home):
    put_encoders_in_cache(tmp_path)
    return Encoders.load()


@pytest.fixture
def pictures():
    up = Image.linear_gradient("L").resize((64, 48)).convert("RGB")
    return [up, up.rotate(90), Image.radial_gradient("L").convert("RGB")]


def test_an_empty_cache_lacks_both_and_says_how_to_get_them():
    assert scorers.missing() == (DINO, CLIP)
    with pytest.raises(ModelError, match=DINO) as caught:
        Encoders.load()
    assert "--pull" in hint(caught.value)


def test_a_model_that_lacks_a_file_is_missing(tmp_path):
    put_encoders_in_cache(tmp_path)
    assert scorers.missing() == ()
    next(paths.hub_cache().glob("models--openai*/snapshots/*/merges.txt")).unlink()
    assert scorers.missing() == (CLIP,)


def test_damaged_weights_are_a_clear_error(tmp_path):
    put_encoders_in_cache(tmp_path)
    next(paths.hub_cache().glob("models--facebook*/snapshots/*/model.safetensors")).write_bytes(b"no")
    with pytest.raises(ModelError, match="Cannot load DINOv2 or CLIP"):
        Encoders.load()


def test_vectors_are_those_of_transformers_own_models(loaded, pictures, tmp_path):
    from transformers import CLIPModel, CLIPTokenizer, Dinov2Model

    texts = ["a fox", "a house in watercolor style"]
    clip = CLIPModel.from_pretrained(tmp_path / "clip")
    ids = CLIPTokenizer.from_pretrained(tmp_path / "clip")(texts, padding=True, return_tensors="pt")
    pixels = loaded.clip_pictures(pictures, return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = clip(**ids, pixel_values=pixels)
        dino = Dinov2Model.from_pretrained(tmp_path / "dino")
        who = dino(loaded.dino_pictures(pictures, return_tensors="pt").pixel_values).last_hidden_state[:, 0]
    torch.testing.assert_close(loaded.how(pictures), expected.image_embeds)
    torch.testing.assert_close(loaded.words(texts), expected.text_embeds)
    torch.testing.assert_close(loaded.who(pictures), F.normalize(who, dim=1))


def test_a_view_compares_with_the_training_picture_and_the_prompt(loaded, pictures):
    scorer = ClipScorer(loaded, pictures[:1], Words("fox", "watercolor"))
    texts = ["a monadikos fox", "a fox in watercolor style", "a fox"]
    image_scores = scorer.look(pictures, texts)
    assert image_scores[0].identity == pytest.approx(1.0, abs=1e-5)
    assert image_scores[0].style_likeness == pytest.approx(1.0, abs=1e-5)
    assert image_scores[2].identity == pytest.approx(float(loaded.who(pictures)[2] @ loaded.who(pictures)[0]))
    # The trigger means nothing to CLIP and is left out.
    assert image_scores[0].prompt_likeness == pytest.approx(
        float(loaded.how(pictures)[0] @ loaded.words(["a fox"])[0])
    )


class Oracle:
    """Sees a text where a picture should be: each picture carries the descriptions that fit it."""

    def __init__(self):
        self.known = {}

    def words(self, texts):
        rows = torch.zeros(len(texts), 100)
        for row, text in zip(rows, texts, strict=True):
            row[self.known.setdefault(text, len(self.known))] = 1.0
        return rows

    def who(self, pictures):
        return torch.ones(len(pictures), 1)

    def how(self, pictures):
        return torch.stack([self.words(picture.info["shows"]).sum(dim=0) for picture in pictures])


def showing(*texts):
    picture = Image.new("RGB", (8, 8))
    picture.info["shows"] = texts
    return picture


def test_clip_names_the_nearest_of_a_few_descriptions():
    scorer = ClipScorer(Oracle(), [showing()], Words("rose", "ink"))
    image_scores = scorer.look(
        [
            showing("a picture of a rose", "a picture in ink style", "a picture taken in the snow"),
            showing("a picture of a house", "a photo", "a picture on a plain background"),
            showing("a picture of a house", "a digital illustration", "a picture taken at night"),
        ],
        ["", "", ""],
    )
    assert [(view.subject, view.style, view.context) for view in image_scores] == [
        ("rose", "ink", "in the snow"),
        ("house", "photo", ""),
        ("house", "illustration", "at night"),
    ]
    assert {"in the snow", "at night"} <= set(CONTEXTS)
    assert "house" in SUBJECTS
