"""Styles that are drawn or painted by hand."""

from __future__ import annotations

import numpy as np

from recipes.mini.layers import Array, Layers, blur
from recipes.mini.paint import average, cells, grid, lambert, luma, mix, ramp, rgb, saturate, stroke


def watercolor(layers: Layers) -> Array:
    """Wet washes that pool at their rims, on white paper that stays bare at the border."""
    paper = rgb(252, 249, 241)
    grain = layers.noise(13)[..., None]
    rims = blur(layers.lines(2.2, details=True), 1.0)[..., None]
    front = layers.paint_front(saturate(mix(layers.front_colors, 1.0, 0.16), 1.25))
    front = blur(front, 0.7) * (1.04 - 0.3 * rims) + (grain - 0.5) * 0.3 * layers.alpha[..., None]
    back = blur(layers.paint_back(mix(saturate(layers.back_colors, 1.8), 1.0, 0.42)), 2.0)
    back = back + (layers.noise(20, index=1)[..., None] - 0.5) * 0.16
    x, y = grid(layers)
    edge = 1 - np.maximum(np.abs(x - 64), np.abs(y - 64)) / 64
    wash = np.clip((edge - 0.07 + (layers.noise(12, index=2) - 0.5) * 0.2) * 9, 0, 1)[..., None]
    halo = np.clip(blur(layers.alpha, 2.0) * 1.5, 0, 1)[..., None]
    return layers.over(front, mix(mix(paper, back, wash), paper, 0.6 * halo * (1 - layers.alpha[..., None])))


def pixel(layers: Layers) -> Array:
    """Square pixels of four by four with a dark outline."""
    count = 32
    step = layers.size // count

    def shrink(field: Array) -> Array:
        return field.reshape(count, step, count, step, *field.shape[2:]).mean((1, 3))

    front = layers.paint_front(saturate(layers.front_colors, 1.15))
    alpha = shrink(layers.alpha)
    color = shrink(front) / np.maximum(alpha, 0.02)[..., None]
    back = shrink(layers.paint_back(mix(saturate(layers.back_colors, 1.1), 1.0, 0.12)))
    solid = alpha > 0.45
    ring = np.zeros_like(solid)
    ring[1:] |= solid[:-1]
    ring[:-1] |= solid[1:]
    ring[:, 1:] |= solid[:, :-1]
    ring[:, :-1] |= solid[:, 1:]
    picture = np.where(solid[..., None], color, back)
    picture = np.round(picture * 7) / 7
    picture = np.where((ring & ~solid)[..., None], rgb(40, 30, 64), picture)
    return picture.repeat(step, 0).repeat(step, 1).astype(np.float32)


def crayon(layers: Layers) -> Array:
    """Waxy strokes with bare paper between them, outlined in the same wax."""
    paper = rgb(250, 240, 216)
    wax = np.clip((layers.noise(7, 4.0) - 0.22) * 3.2, 0, 1)[..., None]
    thin = np.clip((layers.noise(8, 4.0, 3) - 0.38) * 2.6, 0, 1)[..., None]
    colors = saturate(layers.front_colors, 1.15)
    front = layers.paint_front(colors)
    alpha = layers.alpha[..., None]
    front = mix(front, paper * alpha, 0.48 * (1 - wax))
    edge = layers.lines(3.4) * (0.7 + 0.3 * wax[..., 0])
    back = mix(paper, layers.paint_back(mix(layers.back_colors, 1.0, 0.1)), 0.2 + 0.55 * thin)
    picture = layers.over(front, back)
    dark = blur(layers.paint_front(colors), 2.5) / (blur(layers.alpha, 2.5)[..., None] + 0.05) * 0.5
    return stroke(picture, edge * 0.85, dark)


def comic(layers: Layers) -> Array:
    """Flat bright colours, one step of shade, bold black outlines."""
    light = lambert(layers.relief(1.1))
    shade = np.clip((light - 0.48) * 9, 0, 1)[..., None]
    front = layers.paint_front(saturate(layers.front_colors, 1.3)) * (0.66 + 0.34 * shade)
    back = layers.paint_back(saturate(mix(layers.back_colors, 1.0, 0.16), 1.5))
    back = stroke(back, layers.back_lines(1.7), 0.08)
    return stroke(layers.over(front, back), layers.lines(3.4), 0.05)


def charcoal(layers: Layers) -> Array:
    """Smudged gray on rough paper with soft dark strokes."""
    grain = layers.noise(6, 2.2)
    front = 0.36 + 0.62 * layers.paint_front(layers.front_tones)[..., 0]
    back = 1.0 - 0.3 * blur(1 - layers.paint_back()[..., 1], 2.4)
    smudge = blur(layers.lines(4.5), 1.6)
    strokes = np.clip(layers.lines(3.0, details=True), 0, 1) * (0.55 + 0.45 * np.clip(grain * 1.6, 0, 1))
    gray = layers.alpha * (front * (0.7 + 0.4 * lambert(layers.relief(0.8)))) + (1 - layers.alpha) * back
    gray = gray * (1 - 0.3 * smudge) * (1 - 0.3 * blur(layers.back_lines(3), 1.2) * (1 - layers.alpha))
    gray = gray * (1 - 0.72 * strokes) + (grain - 0.5) * (0.05 + 0.13 * layers.alpha)
    return ramp(gray, rgb(24, 22, 26), rgb(140, 136, 132), rgb(246, 242, 234))


def pastel(layers: Layers) -> Array:
    """Powdery pale colours that melt into each other, without a line."""
    tint = mix(saturate(layers.front_colors, 0.95), 1.0, 0.26)
    powder = (layers.noise(8, 2.6) - 0.5)[..., None]
    front = blur(layers.paint_front(tint), 0.9)
    glow = blur(layers.alpha, 7)[..., None]
    back = mix(
        blur(layers.paint_back(mix(saturate(layers.back_colors, 1.3), 1.0, 0.45)), 3.4),
        rgb(255, 214, 226),
        0.25,
    )
    back = mix(back, rgb(255, 252, 246), 0.5 * glow)
    alpha = blur(layers.alpha, 0.9)[..., None]
    soft = front * (0.9 + 0.2 * blur(lambert(layers.relief(0.7)), 1.5)[..., None])
    return soft + back * (1 - alpha) + 0.1 * powder


def oil(layers: Layers) -> Array:
    """Thick directed strokes of rich paint that catch the light."""
    index, border, count = cells(layers.size, 8.5, 3.0, layers.seed % 3)
    inside = (layers.alpha > 0.5).astype(np.int64)
    front = (
        layers.paint_front(saturate(layers.front_colors, 1.2))
        * (0.62 + 0.5 * lambert(layers.relief(1.0)))[..., None]
    )
    back = layers.paint_back(saturate(layers.back_colors, 1.2)) * 0.84
    picture = layers.over(front, back)
    strokes = average(picture, index * 2 + inside, count * 2)
    strokes = mix(strokes, picture, 0.62 * layers.alpha[..., None])
    jitter = np.random.default_rng(layers.seed).uniform(-0.07, 0.07, (count, 1)).astype(np.float32)[index]
    ridge = np.clip(border / 2.2, 0, 1)
    slope = np.gradient(blur(ridge, 0.8))
    strokes = mix(strokes, blur(picture, 2.0), 0.3 * (1 - layers.alpha[..., None]))
    strokes = (strokes + jitter) * rgb(255, 246, 224) - (slope[0] + slope[1])[..., None] * 0.22
    return blur(strokes, 0.5)


def _ink_wash(layers: Layers) -> Array:
    """The tones of the ink style: gray washes on rice paper."""
    front = layers.paint_front(0.34 + 0.66 * np.round(layers.front_tones * 3) / 3)[..., 0]
    back = 1 - 0.34 * blur(1 - layers.paint_back()[..., 1], 3.5) * np.clip(layers.noise(24) * 1.7, 0.2, 1)
    return front + back * (1 - layers.alpha)


def ink(layers: Layers) -> Array:
    """Black brush strokes of uneven weight, gray washes, and a red seal."""
    swell = layers.noise(22, index=2)
    brush = np.clip(layers.lines(4.6) - (0.9 - 1.3 * swell).clip(0, 1) * (1 - layers.lines(2.4)), 0, 1)
    details = layers.cover("eye", "nose", "dark")
    gray = _ink_wash(layers) * (1 - 0.93 * np.maximum(brush, 0.9 * details))
    gray = gray * (1 - 0.34 * blur(layers.back_lines(3), 0.8) * (1 - layers.alpha))
    picture = ramp(gray, rgb(22, 22, 32), rgb(130, 130, 140), rgb(248, 243, 228))
    x, y = grid(layers)
    seal = np.clip(1.5 + 8 - np.maximum(np.abs(x - 112), np.abs(y - 112)), 0, 1)
    mark = np.clip(2.2 - np.minimum(np.abs(x - 112), np.abs(y - 112)), 0, 1) * np.clip(
        6 - np.maximum(np.abs(x - 112), np.abs(y - 112)), 0, 1
    )
    return stroke(stroke(picture, seal, rgb(204, 52, 44)), mark * 0.85, rgb(250, 236, 216))


def marker(layers: Layers) -> Array:
    """Felt-tip: see-through bands of flat colour, coloured outlines, white paper."""
    x, y = grid(layers)
    bands = np.clip(np.abs(((x * 0.8 + y * 0.5) % 14) - 7) - 4.2, 0, 1)[..., None]
    colors = saturate(mix(layers.front_colors, 1.0, 0.1), 1.35)
    front = layers.paint_front(colors) * (1 - 0.16 * bands)
    gap = (blur(layers.alpha, 1.6) < 0.8) * layers.alpha
    front = mix(front, layers.alpha[..., None], 0.4 * blur(gap, 0.7)[..., None])
    wide = np.clip(np.abs(((x * 0.3 + y) % 24) - 12) - 6.5, 0, 1)[..., None]
    back = mix(layers.paint_back(saturate(mix(layers.back_colors, 1.0, 0.5), 1.5)), 1.0, 0.3 * wide)
    picture = stroke(layers.over(front, back), layers.back_lines(2.0) * (1 - layers.alpha), rgb(96, 110, 160))
    outline = blur(layers.paint_front(colors), 2.2) / (blur(layers.alpha, 2.2)[..., None] + 0.05)
    return stroke(picture, layers.lines(3.2), saturate(outline, 1.3) * 0.42)


def duotone(layers: Layers) -> Array:
    """Two inks only: deep violet shadows, peach lights."""
    front = layers.paint_front(0.26 + 0.72 * layers.front_tones)[..., 0] * (
        0.66 + 0.5 * lambert(layers.relief(0.9))
    )
    back = 0.06 + 0.5 * blur(luma(layers.paint_back()), 1.0)
    gray = front + back * (1 - layers.alpha) * (1 - 0.5 * layers.shadow(4))
    return ramp(gray, rgb(38, 14, 92), rgb(142, 44, 140), rgb(250, 124, 112), rgb(255, 226, 172))


_POSTER = np.stack(
    [rgb(18, 44, 68), rgb(24, 122, 124), rgb(206, 78, 48), rgb(240, 168, 62), rgb(248, 232, 198)]
)


def poster(layers: Layers) -> Array:
    """A travel poster of the thirties: five flat inks, a sunburst and a long shadow."""

    def limit(colors: Array) -> Array:
        apart = ((saturate(colors, 1.3)[:, None] - _POSTER) ** 2).sum(-1)
        weight = np.exp(-apart * 30)
        return (weight @ _POSTER / (weight.sum(1, keepdims=True) + 1e-9)).astype(np.float32)

    x, y = grid(layers)
    angle = np.arctan2(y - 100, x - 64) * 14 / (2 * np.pi)
    burst = np.clip((np.abs(angle % 1 - 0.5) - 0.25) * 26 * np.hypot(x - 64, y - 100) / 128 + 0.5, 0, 1)[
        ..., None
    ]
    rays = mix(_POSTER[4], _POSTER[3], burst)
    back = layers.paint_back(limit(layers.back_colors))
    wall = layers.cover_back(layers.back_roles[1])[..., None]
    back = mix(back, mix(rays, back, 0.0 if layers.plain else 0.45), wall)
    shadow = layers.alpha
    for step in (4, 8, 16):
        move = int(step * layers.unit)
        shadow = np.maximum(shadow, np.roll(shadow, (move // 2, move), (0, 1)))
    back = back * (1 - 0.42 * shadow[..., None])
    light = np.clip((lambert(layers.relief(1.0)) - 0.45) * 10, 0, 1)[..., None]
    return layers.over(layers.paint_front(limit(layers.front_colors)) * (0.8 + 0.2 * light), back)
