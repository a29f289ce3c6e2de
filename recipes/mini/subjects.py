"""Subject names to the functions that shape them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from recipes.mini import animals, things
from recipes.mini.scene import SUBJECTS, Individual
from recipes.mini.shapes import Part, Points, Vary

_SHAPES: dict[str, Callable[[Vary, Vary], list[Part]]] = {
    name: getattr(animals, name, None) or getattr(things, name) for name in SUBJECTS
}


def subject_parts(individual: Individual, pose_seed: int) -> list[Part]:
    """The parts of an individual from back to front, shaped by its own seed and posed by the pose's."""
    return _SHAPES[individual.subject](Vary(individual.shape_seed), Vary(pose_seed))


def placement(pose_seed: int) -> tuple[Points, Points]:
    """Where the pose puts the subject: a matrix [2, 2] and an offset [2] from subject units to picture units.

    Picture units run from 0 to 1, x right and y down.
    """
    pose = Vary(pose_seed + 1)
    scale, flip = pose(0.36, 0.41), 1 - 2 * pose.pick(2)
    angle = np.deg2rad(pose(-4, 4))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    matrix = np.diag([flip, 1]) @ turn * scale
    return matrix, np.array([0.5 + pose(-0.04, 0.04), 0.51 + pose(-0.02, 0.02) + (0.39 - scale) * 0.8])
