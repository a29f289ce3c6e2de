"""Pictures as data URIs: a page that holds them needs no other file."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from PIL import Image

LOSSLESS = 256
"""Pictures up to this side stay PNG; larger ones become JPEG, a tenth of the size."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """A picture inside a page, with its size in pixels."""

    uri: str
    width: int
    height: int


def embed(image: Image.Image, longest: int = 4096) -> Embedded:
    """An RGB or palette picture, its longer side at most ``longest``.

    What a file says beside its pixels (place, camera, prompts) is left out.
    """
    image = image.copy()
    image.thumbnail((longest, longest))
    image.info = {}
    buffer = io.BytesIO()
    if image.mode == "P" or max(image.size) <= LOSSLESS:
        kind = "png"
        image.save(buffer, "PNG", optimize=True, **({"transparency": 0} if image.mode == "P" else {}))
    else:
        kind = "jpeg"
        image.save(buffer, "JPEG", quality=88, optimize=True, progressive=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Embedded(f"data:image/{kind};base64,{data}", image.width, image.height)
