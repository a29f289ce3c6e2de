"""What the reader and the destyler are trained on."""

import pytest
import torch

from recipes.mini.pairs import NAMES, NOTHING, PLANES
from recipes.mini.scene import STYLES
from recipes.mini.train_destyler import vary_looks
from tests.recipes.test_random_styles import OnDevice, scenes
from unziplora_cli.evaluation.reader import UNKNOWN

COUNT = 64
STYLED, PHOTO = PLANES["styled"], PLANES["photo"]


def pairs(style, color):
    """Pairs of discs with that label, and the labels."""
    torch.manual_seed(0)
    parts = scenes(COUNT)
    planes = torch.rand(COUNT, PLANES["marks"].stop, *parts.alpha.shape[2:])
    for name in parts.__dataclass_fields__:
        planes[:, PLANES[name]] = getattr(parts, name)
    labels = torch.zeros(COUNT, len(NAMES) + 1, dtype=torch.long)
    labels[:, list(NAMES).index("style")] = NAMES["style"].index(style)
    labels[:, list(NAMES).index("color")] = color
    return planes, labels


def changed(before, after):
    """Of which pairs the channels differ."""
    return (before != after).flatten(1).any(1)


@pytest.mark.parametrize("style", [STYLES[0], UNKNOWN])
def test_artists_colours_are_toned_alike_in_image_and_photo(style):
    planes, labels = pairs(style, NOTHING)
    planes[:, PLANES["outline"]] = 1.0  # so many parts that none gets outlines
    planes[:, PHOTO] = planes[:, STYLED]
    before = planes.clone()
    with OnDevice():
        vary_looks(planes, labels)
    toned = changed(before[:, PHOTO], planes[:, PHOTO])
    assert 0.25 < toned.float().mean() < 0.75
    torch.testing.assert_close(planes[:, STYLED], planes[:, PHOTO])
    outside = before[:, PLANES["alpha"]] == 0
    kept = torch.where(outside, planes[:, PHOTO], before[:, PHOTO])
    torch.testing.assert_close(kept, before[:, PHOTO])


def test_outlines_are_drawn_on_images_and_never_on_photos():
    planes, labels = pairs(UNKNOWN, 0)
    before = planes.clone()
    vary_looks(planes, labels)
    assert torch.equal(before[:, PHOTO], planes[:, PHOTO])
    outlined = changed(before[:, STYLED], planes[:, STYLED])
    assert 0.25 < outlined.float().mean() < 0.75
    border = before[:, PLANES["outline"]]
    line = (border > 0.5 * border.amax())[outlined].expand(-1, 3, -1, -1)
    assert planes[outlined, STYLED][line].mean() < 0.5 * before[outlined, STYLED][line].mean()


def test_painted_styles_are_as_they_were():
    planes, labels = pairs("mosaic", NOTHING)
    before = planes.clone()
    vary_looks(planes, labels)
    assert torch.equal(before, planes)
