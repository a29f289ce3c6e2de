"""Markings: coarse patterns that lie over the body of an individual."""

from __future__ import annotations

from recipes.mini.scene import Individual
from recipes.mini.shapes import Points, Vary, blob, box, ellipse, line, rotate, star

_REACH = 1.3


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
            shapes = [ellipse(x, y, step * size, step * size) for x, y in _lattice(step, phase, staggered=True)]
        case "checkered":
            step = vary(0.22, 0.28)
            shapes = [
                box((i + phase) * step, j * step, (i + phase + 1) * step, (j + 1) * step)
                for i in range(-7, 7) for j in range(-7, 7) if (i + j) % 2
            ]  # fmt: skip
        case "starred":
            step = vary(0.42, 0.5)
            shapes = [star(x, y, step * 0.4, turn=-turn) for x, y in _lattice(step, phase, staggered=True)]
        case "patched":
            step = vary(0.58, 0.7)
            shapes = []
            for x, y in _lattice(step, phase, staggered=True):
                radii = [step * vary(0.24, 0.42) for _ in range(6)]
                ring = [rotate(ellipse(0, 0, r, r)[:1], 60 * k)[0] for k, r in enumerate(radii)]
                shapes.append(blob(*[(x + dx, y + dy) for dx, dy in ring]))
        case _:
            shapes = []
    return [rotate(points, turn) for points in shapes]


def _lattice(step: float, phase: float, *, staggered: bool) -> list[tuple[float, float]]:
    count = int(_REACH / step) + 1
    return [
        ((i + phase + (0.5 if staggered and j % 2 else 0.0)) * step, j * step * 0.88)
        for i in range(-count - 1, count + 1)
        for j in range(-count - 1, count + 2)
    ]
