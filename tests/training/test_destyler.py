"""The built-in base's destyler: shapes, colours and files."""

import pytest
import torch
from PIL import Image

from unziplora_cli import resources
from unziplora_cli.evaluation.scorers import Classifier
from unziplora_cli.sdxl.latents import crop_image
from unziplora_cli.training.destyler import MiniDestyler

COLORS = {"red": (220, 40, 40), "pink": (250, 60, 60), "blue": (40, 40, 220)}  # red and pink are too alike


@pytest.fixture
def destyler():
    torch.manual_seed(0)
    return MiniDestyler(COLORS, widths=(8, 16, 16), size=32).eval()


@pytest.fixture
def images():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_photos_have_the_shape_of_the_images_and_stay_in_range(destyler, images):
    with torch.no_grad():
        destyler.out[-1].bias.fill_(3.0)
    photos = destyler(images)
    assert photos.shape == images.shape
    assert photos.max() == 1.0
    assert photos.min() >= -1.0


def test_an_image_is_redrawn_the_same_alone_and_in_a_batch(destyler, images):
    torch.testing.assert_close(destyler(images)[1:], destyler(images[1:]), rtol=1e-4, atol=1e-5)


def test_given_colours_replace_the_guess_and_unknown_ones_do_not(destyler, images):
    with torch.no_grad():
        destyler.guess.weight.zero_()
        destyler.guess.bias.copy_(torch.tensor([0.0, 0.0, 5.0, 0.0, 0.0, 0.0, 0.0, 5.0]))  # blue, no marking
    blue, red = torch.tensor([[2, 4]] * 2), torch.tensor([[0, 1]] * 2)
    unknown = torch.full((2, 2), destyler.unknown)
    torch.testing.assert_close(destyler(images), destyler(images, blue))
    torch.testing.assert_close(destyler(images, unknown), destyler(images, blue))
    assert not torch.allclose(destyler(images, red), destyler(images, blue))


def test_saved_destyler_draws_the_same(destyler, images, tmp_path):
    destyler.save(tmp_path)
    loaded = MiniDestyler.load(tmp_path)
    assert loaded.colors == tuple(COLORS)
    assert not loaded.training
    torch.testing.assert_close(loaded(images), destyler(images), rtol=0, atol=0.02)  # float16 weights


@pytest.mark.parametrize(
    ("body", "marking", "given", "expected"),
    [
        (
            [5, 4, 0, 0],
            [0, 0, 0, 1],
            [3, 3],
            [0, 2],
        ),  # "none" is likelier than any colour, not than all
        ([5, 4, 0, 0], [0, 0, 0, 9], [3, 3], [0, 4]),  # surely no marking
        ([5, 4, 0, 0], [1, 2, 1.5, 0], [3, 3], [0, 2]),  # the likeliest colour is too near to the body's
        ([1, 0, 0, 0], [3, 0, 1, 0], [3, 3], [2, 0]),  # ... or the body's gives way
        ([5, 4, 0, 0], [9, 0, 1, 0], [0, 3], [0, 2]),  # a given colour stays
        ([5, 4, 0, 0], [0, 0, 0, 9], [3, 1], [2, 1]),  # a given marking is one
        ([5, 4, 0, 5], [0, 0, 0, 9], [3, 3], [0, 4]),  # "none" is not likelier than all colours
        ([5, 4, 0, 9], [9, 0, 1, 0], [3, 3], [4, 4]),  # the body has none of the colours: they stay as seen
        ([5, 4, 0, 9], [9, 0, 1, 0], [1, 3], [1, 2]),  # ... unless one is given
        ([5, 4, 0, 9], [0, 0, 0, 9], [3, 1], [4, 1]),
    ],
)
def test_a_marking_differs_from_the_body(destyler, body, marking, given, expected):
    with torch.no_grad():
        destyler.guess.weight.zero_()
        destyler.guess.bias.copy_(torch.tensor([*body, *marking], dtype=torch.float32))
    chosen = destyler.choose(torch.zeros(1, 16, 2, 2), torch.tensor([given]))
    assert chosen.tolist() == [expected]
    unknown = torch.full((1, 2), destyler.unknown)
    assert destyler.choose(torch.zeros(1, 16, 2, 2)).equal(destyler.choose(torch.zeros(1, 16, 2, 2), unknown))


def test_shipped_destyler_keeps_the_individual_of_a_sample_and_takes_hidden_colours_from_words():
    destyler, classifier = MiniDestyler.load(resources.destyler()), Classifier.load(resources.classifier())
    with Image.open(resources.samples()["fox"].image) as image:
        shades = [
            crop_image(image.convert(mode).convert("RGB"), destyler.size, 1) for mode in ("RGB", "L", "L")
        ]
    unknown = destyler.unknown
    white = destyler.colors.index("white")
    named = [[unknown, unknown], *([destyler.colors.index(name), white] for name in ("orange", "green"))]
    photos = destyler(torch.cat(shades), torch.tensor(named))
    scores = classifier.classify(((photos + 1) * 127.5).round().byte().permute(0, 2, 3, 1))
    fox = {"subject": "fox", "style": "photo", "context": ""}
    assert scores[:2] == [{**fox, "marking": "dotted", "color": "orange"}] * 2
    assert scores[2] | {**fox, "color": "green"} == scores[2]
    # On the body, the lowest channel is high in white dots alone; shifted by 4 pixels, it correlates by 0.6.
    orange, green = (photo.amin(0)[76:104, 32:72].flatten() for photo in photos[1:])
    assert torch.corrcoef(torch.stack([orange, green]))[0, 1] > 0.9
