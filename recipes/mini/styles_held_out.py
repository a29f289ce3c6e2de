"""Styles that the base's U-Net never sees: what a user's picture may look like."""

from __future__ import annotations

import numpy as np

from recipes.mini.layers import Array, Layers, blur
from recipes.mini.paint import average, cells, gloss, grid, lambert, luma, mix, ramp, rgb, saturate, stroke


def stained_glass(layers: Layers) -> Array:
    """Panes of coloured light held by black lead."""
    index, border, count = cells(layers.size, 25, 1.0, layers.seed % 5)
    tints = np.random.default_rng(layers.seed).uniform(0.72, 1.2, (count, 3)).astype(np.float32)
    tints = mix(tints, tints.mean(1, keepdims=True), 0.4)[index]
    jewels = saturate(layers.front_colors, 1.6) ** 1.1
    front = layers.paint_front(jewels) * 1.12
    back = average(layers.paint_back(saturate(layers.back_colors, 2.0)), index, count)
    back = mix(back, layers.paint_back(saturate(layers.back_colors, 1.9)), 0.55) * tints
    if layers.plain:
        back = mix(back, rgb(96, 150, 226) * tints, 0.62)
    lead_back = np.maximum(np.clip(2.0 - border, 0, 1), layers.back_lines(2.4)) * (1 - layers.alpha)
    lead = np.maximum(layers.lines(3.3), lead_back)
    lead = np.maximum(lead, 0.6 * layers.lines(2.0, details=True))
    sun = np.clip(1.3 - 0.75 * blur(lead, 3.6), 0, 1.4)[..., None]
    x, y = grid(layers)
    sun = sun * (1.1 - 0.3 * np.hypot(x - 44, y - 36) / 128)[..., None]
    picture = layers.over(front, back) * sun
    edge = np.clip(np.maximum(np.abs(x - 63.5), np.abs(y - 63.5)) - 59.5, 0, 1)
    return stroke(picture, np.maximum(lead, edge), rgb(22, 20, 28))


def blueprint(layers: Layers) -> Array:
    """White construction lines on blue, with a wide grid."""
    x, y = grid(layers)
    rules = np.clip(1.4 - np.minimum(np.abs(x % 16 - 8), np.abs(y % 16 - 8)), 0, 1)
    blue = mix(rgb(24, 74, 168), rgb(14, 50, 132), np.clip(np.hypot(x - 64, y - 64) / 90, 0, 1)[..., None])
    picture = stroke(blue, 0.22 * rules, rgb(160, 200, 255))
    picture = stroke(picture, 0.55 * layers.back_lines(1.8), rgb(150, 196, 255))
    fill = layers.paint_front(0.1 + 0.5 * layers.front_tones)[..., 0]
    picture = mix(
        picture,
        layers.over(fill[..., None] * rgb(150, 196, 255), blue * (1 - layers.alpha[..., None]))
        + blue * 0.6 * layers.alpha[..., None],
        0.8 * layers.alpha[..., None],
    )
    strokes = np.maximum(layers.lines(2.3), 0.75 * layers.lines(1.7, details=True))
    return stroke(picture, strokes, rgb(246, 250, 255))


def neon(layers: Layers) -> Array:
    """Glowing tubes in the dark."""
    hues = saturate(layers.front_colors + 0.05, 2.6)
    hues = hues / (hues.max(1, keepdims=True) + 0.02)
    plane = layers.paint_front(hues)
    color = blur(plane, 2.4) / (blur(layers.alpha, 2.4)[..., None] + 0.04)
    tubes = np.maximum(layers.lines(2.6), 0.6 * layers.lines(2.0, details=True))
    y = grid(layers)[1]
    night = mix(rgb(16, 8, 44), rgb(44, 10, 62), (y / 128)[..., None])
    far = layers.back_lines(2.0) * (1 - layers.alpha)
    far_color = mix(rgb(255, 40, 190), rgb(30, 190, 255), (y / 128)[..., None])
    picture = night + far_color * (0.5 * far + 0.55 * blur(far, 3))[..., None]
    picture = mix(picture, rgb(14, 8, 36) + 0.2 * plane, layers.alpha[..., None])
    glow = (1.1 * blur(tubes, 2.2) + 1.3 * blur(tubes, 7))[..., None]
    picture = picture + color * glow * 0.75
    return stroke(picture, tubes, mix(color, 1.0, 0.62))


_POP = [rgb(255, 214, 30), rgb(255, 84, 156), rgb(40, 190, 236), rgb(246, 70, 54), rgb(120, 210, 70)]


def pop_art(layers: Layers) -> Array:
    """Loud flat colours, big printed dots, heavy black outlines."""
    x, y = grid(layers)
    first, second = _POP[layers.seed % 5], _POP[(layers.seed + 1 + layers.seed // 5 % 3) % 5]

    def dots(period: float, radius: Array | float) -> Array:
        u, w = (x + y) * 0.7071, (x - y) * 0.7071
        return np.clip(radius - np.hypot(u % period - period / 2, w % period - period / 2) + 0.5, 0, 1)

    back = luma(layers.paint_back())
    if layers.plain:
        back = 0.35 + 0.4 * y / 128
    picture = stroke(np.broadcast_to(first, (*x.shape, 3)), dots(14, 1.0 + 5.0 * (1 - back)), second)
    picture = stroke(picture, layers.back_lines(2.2), 0.06)
    colors = saturate(layers.front_colors, 1.8)
    light = lambert(layers.relief(1.2))
    front = layers.paint_front(colors)
    shade = dots(10, 4.8) * np.clip((0.62 - light) * 6, 0, 1)
    front = front * (1 - 0.5 * shade[..., None])
    halo = np.clip(blur(layers.alpha, 3.4) * 6 - 0.6, 0, 1)
    picture = stroke(picture, halo, 1.0)
    return stroke(layers.over(front, picture), layers.lines(3.3), 0.04)


def woodcut(layers: Layers) -> Array:
    """One dark ink cut into lines that swell in the shade, on warm paper."""
    x, y = grid(layers)
    bend = 16 * (layers.noise(40) - 0.5)
    wave = 0.5 + 0.5 * np.cos((y + 0.12 * x + bend) * 2 * np.pi / 15)
    cross = 0.5 + 0.5 * np.cos((y * 0.7 - x * 0.7 + bend) * 2 * np.pi / 11)
    front = layers.paint_front(0.1 + 0.95 * layers.front_tones)[..., 0]
    front = np.maximum(front * (0.6 + 0.5 * lambert(layers.relief(1.1))), 0.4)
    back = 0.3 + 0.5 * blur(luma(layers.paint_back()), 0.8)
    cut = np.clip((front - 0.35 - 0.3 * cross) * 3 + 0.5, 0, 1)
    carved = np.clip((back + 0.16 - 0.72 * wave) * 2.2 + 0.5, 0, 1)
    rim = np.clip(blur(layers.alpha, 3.2) * 4 - 0.3, 0, 1) * (1 - layers.alpha)
    gray = layers.alpha * cut + (1 - layers.alpha) * np.maximum(
        carved * (1 - 0.9 * layers.back_lines(2.4)), rim
    )
    gray = gray * (1 - layers.lines(3.0)) * (1 - layers.cover("eye", "dark")) + layers.cover("glint")
    return ramp(gray, rgb(44, 26, 22), rgb(240, 222, 184))


def chalkboard(layers: Layers) -> Array:
    """Coloured chalk on a green board with wiped clouds of dust."""
    dust = layers.noise(30) * 0.5 + layers.noise(9, 2.5, 1) * 0.2
    board = rgb(34, 66, 56) + 0.15 * dust[..., None]
    rough = np.clip(layers.noise(6, 2.0, 2) * 1.5, 0.25, 1)
    hatch = 0.4 + 0.6 * np.clip((layers.noise(7, 5.0, 3) - 0.3) * 3, 0, 1)
    chalk = mix(saturate(layers.front_colors, 1.5), 1.0, 0.26)
    plane = layers.paint_front(chalk)
    picture = mix(
        board, board * 0.1 * layers.alpha[..., None] + plane, (0.92 * hatch * layers.alpha)[..., None]
    )
    back = mix(layers.paint_back(), 1.0, 0.4)
    picture = picture + (back - 0.5) * 0.16 * (1 - layers.alpha[..., None])
    picture = stroke(picture, layers.back_lines(2.2) * (1 - layers.alpha) * rough * 0.7, mix(back, 1.0, 0.3))
    picture = stroke(picture, 0.9 * layers.cover("eye"), rgb(20, 36, 32))
    return stroke(picture, layers.lines(2.8) * (0.5 + 0.5 * rough), rgb(252, 250, 240))


def papercut(layers: Layers) -> Array:
    """Sheets of coloured paper behind each other, each with a white rim and a shadow."""
    x, y = grid(layers)
    hue = np.array([_POP[2], rgb(250, 140, 110), rgb(120, 110, 200), rgb(60, 170, 140)][layers.seed % 4])
    deep = layers.paint_back(mix(saturate(layers.back_colors, 1.1), 1.0, 0.3))
    if layers.plain:
        deep = np.broadcast_to(mix(hue, 1.0, 0.72), (*x.shape, 3))
    step = int(3 * layers.unit)

    def cast(mask: Array, strength: float) -> Array:
        return 1 - strength * np.roll(blur(mask, 2.4), (step, step), (0, 1))[..., None]

    edges = layers.back_lines(1.6) if not layers.plain else np.zeros_like(x)
    picture = deep * (1 - 0.3 * np.roll(blur(edges, 2.0), (step, step), (0, 1)))[..., None]
    picture = stroke(picture, 0.7 * edges, 1.0)
    colors = mix(saturate(layers.front_colors, 1.1), 1.0, 0.06)
    seams = layers.lines(1.5)
    front = (
        layers.paint_front(colors)
        * (1 - 0.34 * np.roll(blur(seams, 1.8), (int(2 * layers.unit),) * 2, (0, 1)))[..., None]
    )
    rim = np.clip(blur(layers.alpha, 2.0) * 5 - 0.9, 0, 1)
    picture = stroke(picture * cast(rim, 0.5), rim, rgb(255, 253, 248))
    picture = layers.over(stroke(front, 0.75 * seams * layers.alpha, 1.0), picture)
    angle = np.arctan2(y - 64, x - 64)
    radius = np.hypot(x - 64, y - 64) + 4 * np.sin(angle * 7 + layers.seed % 6)
    for k, size in enumerate((65, 74, 83)):
        sheet = np.clip(radius - size, 0, 1)
        picture = stroke(picture * cast(sheet, 0.5), sheet, mix(hue, 0.12, 0.1 + 0.24 * k))
    return picture


def porcelain(layers: Layers) -> Array:
    """Cobalt brushwork under a white glaze."""
    wash = layers.paint_front(0.3 + 0.7 * layers.front_tones)[..., 0]
    flow = 0.16 * (layers.noise(12) - 0.5)
    front = wash + flow * layers.alpha
    x, y = grid(layers)
    back = (
        0.97 - 0.2 * (1 - blur(luma(layers.paint_back()), 1.5)) if not layers.plain else np.full_like(x, 0.97)
    )
    strokes = np.maximum(blur(layers.lines(3.2), 0.6), 0.7 * blur(layers.lines(2.2, details=True), 0.5))
    gray = (
        (front + back * (1 - layers.alpha))
        * (1 - 0.86 * strokes)
        * (1 - 0.5 * layers.back_lines(2.2) * (1 - layers.alpha))
    )
    far = np.hypot(x - 64, y - 64)
    band = np.clip(far - 66, 0, 1) * (0.55 + 0.45 * np.cos(np.arctan2(y - 64, x - 64) * 20))
    rings = np.clip(1.6 - np.abs(far - 64), 0, 1)
    gray = gray * (1 - 0.8 * np.maximum(rings, 0.8 * band))
    picture = ramp(gray, rgb(10, 24, 96), rgb(44, 84, 184), rgb(166, 192, 232), rgb(252, 253, 255))
    normal = layers.relief(0.9)
    shine = 0.4 * np.clip(gloss(normal, 24) - 0.2, 0, 1) * layers.alpha
    return (
        picture * (0.93 + 0.07 * lambert(normal))[..., None]
        + shine[..., None]
        - 0.05 * layers.shadow()[..., None]
    )
