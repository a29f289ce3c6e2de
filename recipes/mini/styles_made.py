"""Styles that are made of a material, or by a camera."""

from __future__ import annotations

import numpy as np

from recipes.mini.layers import Array, Layers, blur, normals
from recipes.mini.paint import (
    average,
    cells,
    gloss,
    grid,
    lambert,
    lit,
    luma,
    mix,
    photograph,
    ramp,
    rgb,
    saturate,
    stroke,
    vignette,
)

photo = photograph


def sepia(layers: Layers) -> Array:
    """An old photograph in browns with dark corners."""
    gray = luma(photograph(layers, layers.front_tones))
    gray = np.clip(0.5 + 1.3 * (gray - 0.46), 0, 1) * vignette(layers, 0.5)[..., 0]
    return ramp(gray, rgb(38, 20, 10), rgb(128, 82, 44), rgb(212, 168, 112), rgb(250, 228, 186))


def clay(layers: Layers) -> Array:
    """Everything modelled in plasticine, fingerprints included."""
    dents = layers.noise(10) * 1.7
    normal = layers.relief(1.5, bumps=dents)
    colors = mix(saturate(layers.front_colors, 0.85), rgb(200, 170, 150), 0.12)
    front = layers.paint_front(colors) * (0.3 + 0.95 * lambert(normal))[..., None]
    front = front + layers.alpha[..., None] * 0.2 * gloss(normal, 12)[..., None]
    slab = normals(3.5 * blur(1 - layers.back_lines(2.5), 2.0) + 2.6 * layers.noise(14, index=2), layers.unit)
    back = layers.paint_back(mix(saturate(layers.back_colors, 0.8), rgb(206, 180, 160), 0.2))
    back = blur(back, 0.8) * (0.26 + 0.9 * lambert(slab))[..., None]
    return layers.over(front, back * (1 - 0.6 * layers.shadow(4)[..., None]))


def felt(layers: Layers) -> Array:
    """Cut felt, puffed, sewn on with pale stitches."""
    nap = (layers.noise(5) - 0.5)[..., None] * 0.08
    soft = blur(layers.alpha, 2.6)
    seam = np.exp(-(((soft - 0.83) / 0.07) ** 2)) * layers.alpha
    x, y = grid(layers)
    dashes = np.clip(np.cos(np.arctan2(y - 66, x - 64) * 22) * 3 + 1, 0, 1)
    colors = mix(saturate(layers.front_colors, 0.95), rgb(170, 130, 120), 0.08)
    front = blur(layers.paint_front(colors), 0.5) * (0.6 + 0.5 * lambert(layers.relief(0.9)))[..., None]
    front = front + nap * layers.alpha[..., None]
    back = mix(saturate(layers.paint_back(), 0.9), rgb(150, 150, 160), 0.25) + nap * 1.2
    stitched = (
        np.clip(np.sin((x + y) * 2 * np.pi / 14) * 3 + 0.6, 0, 1)
        * layers.back_lines(2.0)
        * (1 - layers.alpha)
    )
    back = back * (
        1 - 0.55 * np.roll(blur(layers.alpha, 2.4), (int(3 * layers.unit),) * 2, (0, 1))[..., None]
    )
    picture = layers.over(front, stroke(back, stitched * 0.6, rgb(250, 244, 228)))
    return stroke(picture, seam * dashes * 0.9, rgb(255, 248, 228))


def gold(layers: Layers) -> Array:
    """Polished gold on black."""
    normal = layers.relief(1.4)
    tone = layers.paint_front(0.22 + 0.36 * layers.front_tones)[..., 0]
    gray = tone + layers.alpha * (
        0.62 * lambert(normal)
        - 0.34
        + 0.75 * gloss(normal, 18)
        + 0.12 * np.sin(normal[..., 1] * 5 + normal[..., 0] * 3)
    )
    front = (
        ramp(
            gray, rgb(40, 18, 2), rgb(146, 84, 14), rgb(226, 160, 40), rgb(255, 222, 116), rgb(255, 252, 226)
        )
        * layers.alpha[..., None]
    )
    back = ramp(
        0.2 + 0.24 * blur(luma(layers.paint_back()), 2), rgb(6, 6, 10), rgb(20, 18, 22), rgb(62, 46, 30)
    )
    back = stroke(back, 0.75 * layers.back_lines(1.8), rgb(150, 104, 36))
    glow = blur(layers.alpha, 9)[..., None]
    return layers.over(front, back + 0.2 * glow * rgb(230, 150, 40))


def marble(layers: Layers) -> Array:
    """White marble with gray veins before a dark green wall."""
    veins = np.exp(-(((layers.noise(26, 2.0) - 0.5) / 0.07) ** 2))
    tone = 0.5 + 0.56 * layers.front_tones
    normal = layers.relief(1.3)
    gray = layers.paint_front(tone)[..., 0] * (0.36 + 0.74 * lambert(normal)) * (1 - 0.2 * veins)
    gray = gray * (1 - 0.45 * layers.cover("eye", "nose", "dark")) + 0.16 * gloss(normal, 30) * layers.alpha
    stone = 0.25 + 0.5 * blur(luma(layers.paint_back()), 1.0) + 0.16 * (layers.noise(18, 2.0, 1) - 0.5)
    stone = stone * (1 - 0.5 * layers.back_lines(2.0)) * (1 - 0.6 * layers.shadow(5))
    back = ramp(stone, rgb(8, 26, 28), rgb(34, 78, 74), rgb(120, 156, 140))
    return ramp(gray, rgb(30, 34, 48), rgb(138, 144, 158), rgb(255, 253, 246)) * layers.alpha[
        ..., None
    ] + back * (1 - layers.alpha[..., None])


def mosaic(layers: Layers) -> Array:
    """Small glazed stones set in pale mortar."""
    index, border, count = cells(layers.size, 8.4, 1.0, layers.seed % 3)
    inside = (layers.alpha > 0.5).astype(np.int64)
    front = layers.paint_front(saturate(layers.front_colors, 1.3))
    picture = layers.over(front, layers.paint_back(saturate(layers.back_colors, 1.1)))
    stones = average(picture, index * 2 + inside, count * 2)
    stones = mix(stones, picture, 0.5 * layers.alpha[..., None])
    jitter = np.random.default_rng(layers.seed).uniform(-0.09, 0.09, (count, 1)).astype(np.float32)[index]
    mortar = np.maximum(np.clip(1.2 - border, 0, 1), 0.9 * layers.lines(1.4))
    dome = np.gradient(blur(np.clip(border, 0, 3), 0.7))
    stones = stones * (1 + jitter) - (dome[0] + dome[1])[..., None] * 0.07
    stones = np.clip(stones, 0, 0.94)
    return stroke(stones, mortar * (0.24 + 0.3 * layers.alpha), rgb(226, 214, 194))


def thermal(layers: Layers) -> Array:
    """A heat camera: the subject glows, the world is cold."""
    warm = 0.44 + 0.38 * (1 - layers.front_tones)
    heat = layers.paint_front(warm)[..., 0] + layers.alpha * (0.42 * blur(layers.alpha, 8) ** 2 - 0.18)
    cold = 0.06 + 0.26 * luma(layers.paint_back())
    field = blur(heat + cold * (1 - layers.alpha), 1.0)
    return ramp(
        field,
        rgb(8, 6, 50),
        rgb(66, 12, 140),
        rgb(190, 24, 120),
        rgb(246, 92, 34),
        rgb(255, 200, 40),
        rgb(255, 255, 224),
    )


def generic(layers: Layers) -> Array:
    """A style that no one named: palette, lines, texture and background drawn from the scene's seed."""
    rng = np.random.default_rng(layers.seed + 11)
    mapping, texture, backdrop = rng.integers(4), rng.integers(4), rng.integers(4)
    stops = np.sort(rng.random((4, 3)), 0)[:, rng.permutation(3)].astype(np.float32)
    turn = np.eye(3, dtype=np.float32)[rng.permutation(3)]

    def recolor(colors: Array) -> Array:
        match mapping:
            case 0:
                return ramp(luma(colors), *stops)
            case 1:
                return 1 - saturate(colors, 0.9)
            case 2:
                return saturate(colors @ turn, 1.3)
            case _:
                return mix(colors, stops[2], 0.4)

    front = layers.paint_front(recolor(layers.front_colors))
    if rng.random() < 0.5:
        front = lit(layers, front, shine=float(rng.uniform(0, 0.5)))
    back = layers.paint_back(recolor(layers.back_colors))
    if backdrop == 0:
        back = mix(back, stops[int(rng.integers(4))], 0.6)
    elif backdrop == 1:
        back = blur(back, 4)
    elif backdrop == 2:
        back = back * 0.45
    picture = layers.over(front, back)
    x, y = grid(layers)
    pattern = layers.noise(11)
    if texture == 0:
        pattern = 0.5 + 0.5 * np.sin((x * rng.uniform(-1, 1) + y) * 2 * np.pi / 12)
    elif texture == 1:
        pattern = 0.5 + 0.5 * np.sin(x * 2 * np.pi / 13) * np.sin(y * 2 * np.pi / 13)
    elif texture == 2:
        pattern = np.full_like(x, 0.5)
    picture = picture + (pattern[..., None] - 0.5) * float(rng.uniform(0.1, 0.3))
    if rng.random() < 0.6:
        shade = stops[0] if rng.random() < 0.6 else 1 - 0.4 * (1 - stops[3])
        strokes = np.maximum(
            layers.lines(float(rng.uniform(2, 4))), 0.6 * layers.back_lines(2) * (1 - layers.alpha)
        )
        picture = stroke(picture, strokes, shade)
    return picture
