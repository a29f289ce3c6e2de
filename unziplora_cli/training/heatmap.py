"""Which branch holds which column of which layer, as a picture."""

from __future__ import annotations

import numpy as np
from PIL import Image

from unziplora_cli.method.separation import Layers

COLORS = np.array([[238, 238, 238], [214, 126, 44], [44, 110, 178], [120, 54, 128]], dtype=np.uint8)
"""Neither branch, style alone, content alone, both."""

WIDTH, HEIGHT = 800, 560


def column_map(layers: Layers) -> Image.Image:
    """One row per layer in the U-Net's order, its columns from left to right; narrow layers are stretched."""
    width = max(layer.out_features for layer in layers.values())
    rows = []
    for layer in layers.values():
        kinds = (2 * layer.content.mask.int() + layer.style.mask.int()).cpu().numpy()  # [out], 0 to 3
        rows.append(kinds[np.arange(width) * len(kinds) // width])
    picture = COLORS[np.repeat(np.stack(rows), max(1, HEIGHT // len(rows)), axis=0)]
    return Image.fromarray(np.repeat(picture, max(1, WIDTH // width), axis=1))
