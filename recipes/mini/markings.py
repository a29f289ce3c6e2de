"""Markings: coarse patterns that lie over the body of an individual."""

from __future__ import annotations

import numpy as np

from recipes.mini.scene import Individual
from recipes.mini.shapes import Points, Vary, blob, box, ellipse, line, rotate, star

_REACH = 1.3
_HEXAGON = [(float(np.cos(a)), float(np.sin(a))) for a in np.arange(6) * np.pi / 3]


def marking_shapes(individual: Individual) -> list[Points]:
    """The outlines that take the second colour, in subject units; periods are 10 px or more at 128 px."""
    vary = Vary(individual.shape_seed + 7)
    turn, phase = vary(-30, 30), vary(0, 1)
    match individual.marking:
        case "striped":
            step = vary(0.28, 0.36)
            turn += 90 * vary.pick(2)
            shapes = [line(-2, (k + phase) * step, 2, (k + phase) * step, step * 0.46) for k in range(-6, 6)]
        case "dotted":
            step, size = vary(0.32, 0.4), vary(0.27, 0.31)
            dot = ellipse(0, 0, step * size, step * size)
            shapes = [dot + at for at in _lattice(step, phase)]
        case "checkered":
            step = vary(0.22, 0.28)
            shapes = [
                box((i + phase) * step, j * step, (i + phase + 1) * step, (j + 1) * step)
                for i in range(-7, 7) for j in range(-7, 7) if (i + j) % 2
            ]  # fmt: skip
        case "starred":
            step = vary(0.42, 0.5)
            mark = star(0, 0, step * 0.4, turn=-turn)
            shapes = [mark + at for at in _lattice(step, phase)]
        case "patched":
            step = vary(0.58, 0.7)
            shapes = []
            for at in _lattice(step, phase):
                radii = [step * vary(0.24, 0.42) for _ in _HEXAGON]
                shapes.append(blob(*[(r * x, r * y) for r, (x, y) in zip(radii, _HEXAGON, strict=True)]) + at)
        case _:
            shapes = []
    if not shapes:
        return []
    ends = np.cumsum([len(points) for points in shapes])[:-1]
    return np.split(rotate(np.concatenate(shapes), turn), ends)


def _lattice(step: float, phase: float) -> list[tuple[float, float]]:
    """Centres of a staggered lattice that covers a subject however it is turned."""
    count = int(_REACH / step) + 1
    return [
        ((i + phase + 0.5 * (j % 2)) * step, j * step * 0.88)
        for i in range(-count - 1, count + 1)
        for j in range(-count - 1, count + 2)
    ]
