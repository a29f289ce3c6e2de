"""The built-in base's destyler: shapes, colours and files."""

import pytest
import torch

from unziplora_cli.training.destyler import MiniDestyler

COLORS = ("red", "green", "blue")


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
        destyler.guess.bias.copy_(torch.tensor([0.0, 0.0, 5.0, 0.0, 0.0, 0.0, 5.0]))  # blue, no marking
    blue, red = torch.tensor([[2, 4]] * 2), torch.tensor([[0, 1]] * 2)
    unknown = torch.full((2, 2), destyler.unknown)
    torch.testing.assert_close(destyler(images), destyler(images, blue))
    torch.testing.assert_close(destyler(images, unknown), destyler(images, blue))
    assert not torch.allclose(destyler(images, red), destyler(images, blue))


def test_saved_destyler_draws_the_same(destyler, images, tmp_path):
    destyler.save(tmp_path)
    loaded = MiniDestyler.load(tmp_path)
    assert loaded.colors == COLORS
    assert not loaded.training
    torch.testing.assert_close(loaded(images), destyler(images), rtol=0, atol=0.02)  # float16 weights
