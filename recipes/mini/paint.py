"""What styles share: colour maps, light, cells."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from recipes.mini.layers import Array, Layers, blur

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_LIGHT = np.array([-0.48, -0.62, 0.62], np.float32)


def luma(color: Array) -> Array:
    """The brightness of colours [..., 3]."""
    return color @ _LUMA


def mix(a: Array | float, b: Array | float, amount: Array | float) -> Array:
    """From a (amount 0) to b (amount 1)."""
    return a + (np.asarray(b, np.float32) - a) * amount


def rgb(*values: int) -> Array:
    """A colour from its 0..255 values."""
    return np.array(values, np.float32) / 255


def ramp(gray: Array, *stops: Array) -> Array:
    """Brightness [...] to colour [..., 3] along evenly spaced stops."""
    at = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(gray, at, [stop[c] for stop in stops]) for c in range(3)], -1).astype(
        np.float32
    )


def saturate(color: Array, amount: float) -> Array:
    """Colours pulled away from (amount > 1) or towards (amount < 1) gray."""
    gray = luma(color)[..., None]
    return np.clip(gray + (color - gray) * amount, 0, 1)


def stroke(picture: Array, strokes: Array, color: Array | float) -> Array:
    """Strokes [n, n] of one colour (or a picture of colours) over a picture."""
    return mix(picture, color, strokes[..., None])


def lambert(normal: Array) -> Array:
    """Light from the upper left, 0..1."""
    return np.clip(normal @ (_LIGHT / np.linalg.norm(_LIGHT)), 0, 1)


def gloss(normal: Array, power: float) -> Array:
    """The highlight of that light."""
    half = _LIGHT / np.linalg.norm(_LIGHT) + (0, 0, 1)
    return np.clip(normal @ (half / np.linalg.norm(half)), 0, 1) ** power


def grid(layers: Layers) -> tuple[Array, Array]:
    """x and y of every pixel, in pixels of a 128-pixel picture."""
    return _grid(layers.size)


@lru_cache(4)
def _grid(size: int) -> tuple[Array, Array]:
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) * (128 / size)
    return x, y


def vignette(layers: Layers, strength: float) -> Array:
    """A field [n, n, 1] that is 1 in the middle and falls off to the corners."""
    x, y = grid(layers)
    return (1 - strength * (((x - 64) / 90) ** 2 + ((y - 64) / 90) ** 2))[..., None]


@lru_cache(32)
def cells(size: int, pitch: float, stretch: float, variant: int) -> tuple[Array, Array, int]:
    """A Voronoi tiling with cells about ``pitch`` of 128 wide: cell index, distance to the border, count.

    ``stretch`` makes the cells longer along a diagonal.
    """
    rng = np.random.default_rng(100 + variant)
    n = int(np.ceil(128 / pitch)) + 4
    i, j = np.mgrid[0:n, 0:n]
    seeds = np.stack([i, j], -1).reshape(-1, 2) + rng.uniform(-0.33, 0.33, (n * n, 2)) - 1.5
    seeds = seeds * pitch
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) * (128 / size)
    angle = np.deg2rad(40)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    squeeze = turn @ np.diag([stretch**-0.5, stretch**0.5]) if stretch != 1 else np.eye(2)
    points, seeds = np.stack([x.ravel(), y.ravel()], 1) @ squeeze, seeds @ squeeze
    if stretch != 1:
        low, high = points.min(0) - pitch, points.max(0) + pitch
        count = np.maximum(((high - low) / pitch).astype(int), 1)
        i, j = np.mgrid[0 : count[0], 0 : count[1]]
        seeds = (
            low + (np.stack([i, j], -1).reshape(-1, 2) + 0.5 + rng.uniform(-0.33, 0.33, (i.size, 2))) * pitch
        )
    index, border = np.empty(len(points), np.int64), np.empty(len(points), np.float32)
    for start in range(0, len(points), 4096):
        block = points[start : start + 4096]
        distance = np.linalg.norm(block[:, None] - seeds[None], axis=-1)
        near = np.argpartition(distance, 1, axis=1)[:, :2]
        d = np.take_along_axis(distance, near, 1)
        index[start : start + 4096] = near[np.arange(len(block)), d.argmin(1)]
        border[start : start + 4096] = np.abs(d[:, 0] - d[:, 1]) / 2
    return index.reshape(size, size), border.reshape(size, size), len(seeds)


def average(picture: Array, labels: Array, count: int) -> Array:
    """Every pixel replaced by the mean colour of its label."""
    flat = labels.ravel()
    total = np.maximum(np.bincount(flat, minlength=count), 1)
    means = np.stack([np.bincount(flat, picture[..., c].ravel(), count) / total for c in range(3)], -1)
    return means[labels].astype(np.float32)


def lit(layers: Layers, color: Array, depth: float = 1.0, *, shine: float = 0.5) -> Array:
    """The subject as a softly lit solid; ``color`` is weighted by coverage, and so is the result."""
    normal = layers.relief(depth)
    light = lambert(normal)
    shade = 0.44 + 0.72 * light
    rim = np.clip(1 - normal[..., 2], 0, 1) * np.clip(normal[..., 0] * 0.6 + normal[..., 1] * 0.6, 0, 1)
    out = (
        color
        * shade[..., None]
        * mix(rgb(214, 208, 236), rgb(255, 252, 244), np.clip(light * 1.3, 0, 1)[..., None])
    )
    highlight = gloss(normal, 26) - 0.14
    return out + layers.alpha[..., None] * (shine * np.clip(highlight, 0, 1) + 0.16 * rim)[..., None]


def photograph(layers: Layers, colors: Array | None = None) -> Array:
    """The scene as a photograph of toys: soft light, soft background, a shadow on the ground."""
    back = layers.paint_back()
    if layers.plain:
        x, y = grid(layers)
        back = blur(back, 5) * (1.1 - 0.24 * np.hypot((x - 46) / 128, (y - 40) / 128) ** 1.3)[..., None]
    else:
        back = blur(back, 1.1) * (1.04 - 0.1 * grid(layers)[1] / 128)[..., None]
    back = back * (1 - 0.55 * layers.shadow()[..., None] * (1 - 0.25 * rgb(60, 70, 140)))
    return layers.over(lit(layers, layers.paint_front(colors)), back) * vignette(layers, 0.12)
