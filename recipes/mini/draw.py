"""Draw a scene (first, rough version: a disc in the individual's colours)."""

from __future__ import annotations

import numpy as np

from recipes.mini.scene import COLORS, Scene


def draw(scene: Scene, size: int = 128) -> np.ndarray:
    """Draw ``scene`` as uint8 [size, size, 3]."""
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    picture = np.full((size, size, 3), 235, np.uint8)
    picture[x**2 + y**2 < 0.1] = COLORS[scene.individual.color]
    return picture
