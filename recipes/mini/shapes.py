"""Outlines of parts: smooth closed curves as point lists, in units where a subject spans [-1, 1], y down."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Points = np.ndarray  # float [n, 2]


@dataclass(frozen=True, slots=True)
class Part:
    """A filled outline with a role; the role, not the part, decides what a style paints.

    ``line`` says whether line styles trace it (small details such as eyes are painted, not traced).
    """

    role: str
    points: Points
    line: bool = True


class Vary:
    """Numbers that differ between individuals or poses, drawn in order from one seed."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def __call__(self, low: float, high: float) -> float:
        return float(self._rng.uniform(low, high))

    def pick(self, count: int) -> int:
        return int(self._rng.integers(count))


_TURN = np.linspace(0, 2 * np.pi, 40, endpoint=False)
_CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], 1)
_STEPS = np.linspace(0, 1, 8, endpoint=False)[None, :, None]


def ellipse(x: float, y: float, rx: float, ry: float, turn: float = 0.0) -> Points:
    """An ellipse around (x, y), turned clockwise by ``turn`` degrees."""
    return move(rotate(_CIRCLE * (rx, ry), turn), x, y)


def blob(*points: tuple[float, float]) -> Points:
    """A smooth closed curve through the points (Catmull-Rom)."""
    p = np.array([points[-1], *points, points[0], points[1]], float)[:, None]  # [n + 3, 1, 2]
    return _spline(p[:-3], p[1:-2], p[2:-1], p[3:]).reshape(-1, 2)


def curve(*points: tuple[float, float]) -> Points:
    """A smooth open curve through the points."""
    p = np.array(points, float)
    padded = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])[:, None]
    inner = _spline(padded[:-3], padded[1:-2], padded[2:-1], padded[3:]).reshape(-1, 2)
    return np.concatenate([inner, p[-1:]])


def _spline(p0: Points, p1: Points, p2: Points, p3: Points) -> Points:
    t = _STEPS
    linear, square, cube = p2 - p0, 2 * p0 - 5 * p1 + 4 * p2 - p3, 3 * (p1 - p2) + p3 - p0
    return 0.5 * (2 * p1 + t * (linear + t * (square + t * cube)))


def polygon(*points: tuple[float, float], round: float = 0.0) -> Points:
    """A polygon whose corners are rounded off over at most the length ``round`` of each side."""
    p = np.array(points, float)
    if not round:
        return p
    before, after = np.roll(p, 1, 0) - p, np.roll(p, -1, 0) - p
    long_before = np.linalg.norm(before, axis=1, keepdims=True)
    long_after = np.linalg.norm(after, axis=1, keepdims=True)
    start = p + before * np.minimum(round / long_before, 0.5)
    end = p + after * np.minimum(round / long_after, 0.5)
    t = np.linspace(0, 1, 7)[None, :, None]
    corners = (1 - t) ** 2 * start[:, None] + 2 * t * (1 - t) * p[:, None] + t**2 * end[:, None]
    return corners.reshape(-1, 2)


def box(x0: float, y0: float, x1: float, y1: float, round: float = 0.0) -> Points:
    """An upright rectangle with rounded corners."""
    return polygon((x0, y0), (x1, y0), (x1, y1), (x0, y1), round=round)


def tube(path: Points, *widths: float) -> Points:
    """A stroke along a path, its widths spread evenly from start to end, with round ends."""
    width = np.interp(np.linspace(0, 1, len(path)), np.linspace(0, 1, len(widths)), widths) / 2
    along = np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-9
    side = np.stack([along[:, 1], -along[:, 0]], 1)
    edge = width[:, None] * side
    angle = np.linspace(0, np.pi, 9)[1:-1, None]
    tip = path[-1] + width[-1] * (np.cos(angle) * side[-1] + np.sin(angle) * along[-1])
    tail = path[0] - width[0] * (np.cos(angle) * side[0] + np.sin(angle) * along[0])
    return np.concatenate([path + edge, tip, (path - edge)[::-1], tail])


def line(x0: float, y0: float, x1: float, y1: float, *widths: float) -> Points:
    """A straight stroke with round ends."""
    return tube(np.linspace((x0, y0), (x1, y1), 6), *widths)


def star(
    x: float, y: float, radius: float, points: int = 5, inner: float = 0.48, turn: float = 0.0
) -> Points:
    """A star with one point up."""
    angle = np.arange(2 * points) * np.pi / points - np.pi / 2
    radii = np.where(np.arange(2 * points) % 2, inner, 1.0) * radius
    return move(rotate(np.stack([np.cos(angle), np.sin(angle)], 1) * radii[:, None], turn), x, y)


def mirror(points: Points, x: float = 0.0) -> Points:
    """The points mirrored at the upright axis through x."""
    return move(points * (-1, 1), 2 * x, 0)


def move(points: Points, x: float, y: float) -> Points:
    """The points shifted by (x, y)."""
    return points + np.array((x, y))


def rotate(points: Points, turn: float, about: tuple[float, float] = (0.0, 0.0)) -> Points:
    """The points turned clockwise by ``turn`` degrees."""
    angle = np.deg2rad(turn)
    matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return (points - about) @ matrix + about
