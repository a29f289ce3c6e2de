"""Randomly made styles: what a training on the device needs of them."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from recipes.mini.random_styles import FAMILIES, TUNING, Planes, blur, paint_randomly, tile

SIZE = 32
HOST = ("aten::lift_fresh", "aten::_local_scalar_dense", "aten::nonzero")
"""Operations that send values to the device or wait for some of it; a captured graph may hold neither."""


class OnDevice(TorchDispatchMode):
    """Fails at an operation that a CUDA graph cannot hold."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not func.name().startswith(HOST), func.name()
        return func(*args, **(kwargs or {}))


def scenes(count):
    """A disc with dots before a plain background."""
    torch.manual_seed(0)
    at = torch.arange(SIZE) - SIZE / 2
    alpha = ((at[:, None] ** 2 + at**2) < 100).float().expand(count, 1, SIZE, SIZE)
    marks = alpha * ((torch.arange(SIZE) % 8 < 4).float() * (torch.arange(SIZE)[:, None] % 8 < 4))
    border = (alpha - blur(alpha, 4.0)).abs() * (alpha > 0)
    front = alpha * torch.tensor([0.9, 0.5, 0.1]).view(1, 3, 1, 1)
    tone = 0.6 * alpha - 0.3 * marks
    back = torch.full((count, 3, SIZE, SIZE), 0.8)
    return Planes(front, back, alpha, tone, border, border, border * 0, marks)


@pytest.mark.parametrize("family", [*FAMILIES.values(), *TUNING.values()])
def test_every_family_paints_each_scene_in_its_own_way_without_the_host(family):
    planes = scenes(3)
    with OnDevice():
        picture = family(planes)
    assert picture.shape == (3, 3, SIZE, SIZE)
    assert picture.isfinite().all()
    assert not torch.allclose(picture[0], picture[1], atol=0.02)


def test_a_batch_of_all_families_is_painted_in_range_without_the_host():
    planes = scenes(3 * len(FAMILIES))
    with OnDevice():
        picture = paint_randomly(planes)
    assert picture.shape == (len(planes), 3, SIZE, SIZE)
    assert picture.amin() >= 0
    assert picture.amax() <= 1


def test_blur_follows_the_width_of_each_picture():
    point = torch.zeros(2, 1, 128, 128)
    point[:, :, 64, 64] = 1
    narrow, wide = blur(point, torch.tensor([1.0, 3.0]).view(2, 1, 1, 1))[:, 0]
    for spread, sigma in ((narrow, 1.0), (wide, 3.0)):
        assert spread.sum() == pytest.approx(1, abs=1e-5)
        at = torch.arange(128) - 64
        assert (spread.sum(0) * at**2).sum().sqrt() == pytest.approx(sigma, rel=0.01)


def test_tiles_have_the_mean_colour_of_what_they_cover():
    planes = scenes(1)
    picture = torch.rand(1, 3, SIZE, SIZE)
    torch.manual_seed(0)
    tiles, border = tile(planes, picture, torch.full((1, 1, 1, 1), 24.0))
    assert border.amin() >= 0
    shades = tiles[0].flatten(1).T.unique(dim=0)
    for shade in shades:
        inside = (tiles[0] == shade.view(3, 1, 1)).all(0)
        mean = picture[0, :, inside].mean(1)
        ratio = shade / mean
        torch.testing.assert_close(ratio, ratio.mean().expand(3), rtol=1e-4, atol=1e-4)
