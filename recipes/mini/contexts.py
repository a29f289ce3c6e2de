"""Backgrounds, as parts in picture units (0 to 1, y down); details follow from the pose seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from recipes.mini.shapes import Part, Vary, blob, box, curve, ellipse, line, mirror, polygon, star, tube

HORIZON = 0.68


def context_parts(context: str, pose_seed: int) -> list[Part]:
    """The background's parts from back to front; they cover the whole picture."""
    return _CONTEXTS[context](Vary(pose_seed + 2))


def _land(role: str, horizon: float, swell: float, phase: float) -> Part:
    x = np.linspace(-0.05, 1.05, 24)
    top = horizon + swell * np.sin(x * 5 + phase)
    return Part(role, np.concatenate([np.stack([x, top], 1), [(1.05, 1.1), (-0.05, 1.1)]]))


def _sky(role: str = "sky") -> Part:
    return Part(role, box(-0.1, -0.1, 1.1, 1.1))


def _studio(v: Vary) -> list[Part]:
    return [_sky("wall"), _land("floor", HORIZON + v(-0.03, 0.03), 0, 0)]


def _beach(v: Vary) -> list[Part]:
    side = v.pick(2)
    x = 0.16 if side else 0.84
    lean = 0.05 if side else -0.05
    parts = [_sky(), Part("sun", ellipse(1 - x + v(-0.03, 0.03), 0.15, 0.095, 0.095))]
    parts += [
        Part("water", box(-0.1, 0.48, 1.1, 1.1)),
        Part("foam", line(0.55 - 8 * lean, 0.58, 0.75 - 8 * lean, 0.58, 0.022, 0.022)),
    ]
    parts += [_land("foam", 0.68, 0.02, v(0, 6)), _land("sand", 0.71, 0.02, v(0, 6))]
    top = (x + lean, 0.24)
    parts.append(
        Part("trunk", tube(curve((x - lean, 0.86), (x - lean * 0.6, 0.55), top), 0.06, 0.045, 0.035))
    )
    for dx, dy in ((-0.22, 0.05), (-0.15, -0.12), (0.04, -0.17), (0.18, -0.08), (0.21, 0.08)):
        leaf = curve(top, (top[0] + dx * 0.55, top[1] + dy * 0.6 - 0.05), (top[0] + dx, top[1] + dy + 0.03))
        parts.append(Part("foliage", tube(leaf, 0.05, 0.075, 0.015)))
    return parts


def _forest(v: Vary) -> list[Part]:
    parts = [_sky("glade"), _land("foliage2", 0.42, 0.06, v(0, 6)), _land("moss", 0.72, 0.02, v(0, 6))]
    for x, near in ((0.3, 0), (0.68, 0), (0.06, 1), (0.93, 1)):
        x += v(-0.04, 0.04)
        width = 0.07 + 0.05 * near
        parts.append(
            Part(
                "trunk",
                polygon(
                    (x - width / 2, -0.1),
                    (x + width / 2, -0.1),
                    (x + width * 0.8, 0.7 + 0.12 * near),
                    (x - width * 0.8, 0.7 + 0.12 * near),
                ),
            )
        )
    for k in range(6):
        x = k / 5 + v(-0.03, 0.03)
        parts.append(Part("foliage", ellipse(x, 0.0, 0.15, 0.15 + v(0.0, 0.07))))
    for x in (0.03, 0.97):
        parts.append(Part("foliage2", ellipse(x, 0.9, 0.13, 0.1)))
    return parts


def _snow(v: Vary) -> list[Part]:
    parts = [_sky("frost"), _land("ice", 0.56, 0.05, v(0, 6))]
    for x, high in ((0.13 + v(-0.02, 0.02), 0.52), (0.88 + v(-0.02, 0.02), 0.44)):
        for k in range(3):
            y = 0.7 - high + k * high * 0.27
            half = 0.075 + 0.036 * k
            parts.append(
                Part(
                    "pine",
                    polygon((x, y), (x + half, y + high * 0.38), (x - half, y + high * 0.38), round=0.03),
                )
            )
            parts.append(
                Part(
                    "snow",
                    polygon(
                        (x, y - 0.01),
                        (x + half * 0.55, y + high * 0.17),
                        (x, y + high * 0.13),
                        (x - half * 0.55, y + high * 0.17),
                        round=0.02,
                    ),
                    line=False,
                )
            )
    parts.append(_land("snow", 0.69, 0.03, v(0, 6)))
    for k in range(9):
        x, y = (k % 3) / 3 + v(0.05, 0.28), (k // 3) * 0.2 + v(0.03, 0.16)
        parts.append(Part("snow", ellipse(x, y, 0.022, 0.022), line=False))
    return parts


def _city(v: Vary) -> list[Part]:
    parts = [_sky("dusk")]
    x = -0.04
    for k in range(5):
        width, high = v(0.19, 0.24), v(0.42, 0.6) if k in (0, 4) else v(0.3, 0.66)
        top = 0.74 - high
        parts.append(Part("tower" if k % 2 else "tower2", box(x, top, x + width, 0.8)))
        for row in range(4):
            for column in (0.27, 0.73):
                cx, cy = x + width * column, top + 0.06 + row * 0.13
                if cy < 0.68 and v(0, 1) < 0.85:
                    parts.append(
                        Part("window", box(cx - 0.028, cy - 0.03, cx + 0.028, cy + 0.035), line=False)
                    )
        x += width + 0.005
    parts += [Part("curb", box(-0.1, 0.72, 1.1, 0.78)), Part("road", box(-0.1, 0.76, 1.1, 1.1))]
    for k in range(4):
        parts.append(Part("dash", box(k * 0.3 - 0.06, 0.93, k * 0.3 + 0.1, 0.96), line=False))
    return parts


def _space(v: Vary) -> list[Part]:
    side = 0.16 if v.pick(2) else 0.84
    parts = [_sky("void")]
    for k in range(10):
        x, y = (k % 4) / 4 + v(0.02, 0.22), (k // 4) * 0.22 + v(0.03, 0.18)
        r = v(0.02, 0.04)
        parts.append(Part("star", star(x, y, r * 1.2, points=4, inner=0.4), line=False))
    tilt = curve((side - 0.22, 0.27), (side, 0.21), (side + 0.22, 0.1))
    parts += [Part("planet", ellipse(side, 0.2, 0.125, 0.125)), Part("ring", tube(tilt, 0.02, 0.04, 0.02))]
    parts.append(Part("planet2", ellipse(1 - side, 0.5 + v(-0.05, 0.05), 0.075, 0.075)))
    parts.append(Part("lunar", ellipse(0.5, 1.42, 1.0, 0.72)))
    for x, y, r in ((0.12, 0.88, 0.08), (0.9, 0.86, 0.09), (0.5, 0.95, 0.1)):
        parts.append(Part("crater", ellipse(x + v(-0.03, 0.03), y, r, r * 0.4)))
    return parts


def _table(v: Vary) -> list[Part]:
    x = 0.2 if v.pick(2) else 0.8
    parts = [_sky("paper")]
    for k in range(4):
        parts.append(Part("paper2", box(k * 0.28 - 0.02, -0.1, k * 0.28 + 0.1, 0.8), line=False))
    parts += [
        Part("frame", box(x - 0.17, 0.06, x + 0.17, 0.48)),
        Part("pane", box(x - 0.13, 0.1, x + 0.13, 0.44)),
    ]
    parts += [
        Part("frame", box(x - 0.015, 0.1, x + 0.015, 0.44), line=False),
        Part("frame", box(x - 0.13, 0.255, x + 0.13, 0.285), line=False),
    ]
    parts += [Part("table", box(-0.1, 0.7, 1.1, 0.95)), Part("edge", box(-0.1, 0.94, 1.1, 1.1))]
    parts += [
        Part("edge", box(-0.1, 0.79, 0.4, 0.805), line=False),
        Part("edge", box(0.6, 0.85, 1.1, 0.865), line=False),
    ]
    return parts


def _night(v: Vary) -> list[Part]:
    side = 0.18 if v.pick(2) else 0.82
    parts = [_sky("midnight")]
    for k in range(8):
        x, y = (k % 4) / 4 + v(0.03, 0.2), (k // 4) * 0.24 + v(0.03, 0.2)
        parts.append(Part("star", ellipse(x, y, 0.017, 0.017), line=False))
    moon = blob(
        (side - 0.06, 0.06),
        (side - 0.13, 0.2),
        (side - 0.03, 0.32),
        (side + 0.11, 0.29),
        (side + 0.01, 0.23),
        (side - 0.02, 0.14),
    )
    parts.append(Part("moon", moon if side < 0.5 else mirror(moon, side)))
    parts += [_land("hill", 0.54, 0.07, v(0, 6)), _land("meadow", 0.7, 0.02, v(0, 6))]
    return parts


def _water(v: Vary) -> list[Part]:
    parts = [_sky("sea"), _land("sea2", 0.36, 0.05, v(0, 6))]
    for x in (0.24, 0.62):
        parts.append(
            Part("ray", polygon((x, -0.1), (x + 0.12, -0.1), (x + 0.04, 0.75), (x - 0.2, 0.75)), line=False)
        )
    for x, high in ((0.06, 0.52), (0.16, 0.3), (0.88, 0.36), (0.96, 0.56)):
        sway = v(0.03, 0.05)
        weed = curve(
            (x, 0.9),
            (x + sway, 0.9 - high * 0.35),
            (x - sway, 0.9 - high * 0.7),
            (x + sway * 0.5, 0.9 - high),
        )
        parts.append(Part("weed", tube(weed, 0.07, 0.075, 0.06, 0.025)))
    parts.append(_land("seabed", 0.78, 0.025, v(0, 6)))
    for k in range(6):
        x, y = (0.1 if k % 2 else 0.9) + v(-0.06, 0.06), 0.06 + k * 0.09
        parts.append(Part("bubble", ellipse(x, y, 0.03, 0.03)))
    return parts


_CONTEXTS: dict[str, Callable[[Vary], list[Part]]] = {
    "": _studio,
    "on a beach": _beach,
    "in a forest": _forest,
    "in the snow": _snow,
    "in a city": _city,
    "in space": _space,
    "on a table": _table,
    "at night": _night,
    "under water": _water,
}
