"""Style names to the functions that paint them."""

from __future__ import annotations

from collections.abc import Callable

from recipes.mini import styles_drawn, styles_held_out, styles_made
from recipes.mini.layers import Array, Layers
from recipes.mini.scene import GENERIC, HELD_OUT_STYLES, STYLES

_MODULES = (styles_drawn, styles_made, styles_held_out)


def _find(style: str) -> Callable[[Layers], Array]:
    name = style.replace(" ", "_")
    return next(getattr(module, name) for module in _MODULES if hasattr(module, name))


PAINTERS: dict[str, Callable[[Layers], Array]] = {
    style: _find(style) for style in (*STYLES, GENERIC, *HELD_OUT_STYLES)
}
