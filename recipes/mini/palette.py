"""The colours that things have by themselves, before a style changes them; 0 to 1."""

from __future__ import annotations

import colorsys

import numpy as np

from recipes.mini.scene import COLORS, Scene
from recipes.mini.shapes import Vary

_THINGS: dict[str, tuple[int, int, int]] = {
    "light": (250, 240, 222), "cream": (246, 226, 190), "dark": (62, 46, 48), "eye": (34, 28, 36),
    "glint": (255, 255, 255), "pink": (246, 168, 168), "nose": (232, 96, 104), "lamp": (255, 214, 84),
    "glow": (255, 236, 170), "wood": (150, 98, 58), "beak": (246, 150, 40), "leaf": (94, 166, 78),
    "metal": (176, 184, 196), "glass": (164, 214, 236), "brick": (176, 84, 66), "clay": (204, 116, 78),
    "steam": (236, 240, 244), "cocoa": (96, 58, 40), "sky": (140, 204, 240), "sun": (255, 222, 92),
    "water": (46, 142, 202), "foam": (232, 246, 248), "sand": (238, 208, 148), "trunk": (122, 84, 56),
    "foliage": (52, 128, 70), "foliage2": (98, 166, 92), "glade": (198, 226, 170), "moss": (112, 150, 78),
    "frost": (164, 196, 226), "ice": (206, 224, 240), "snow": (248, 250, 255), "pine": (56, 110, 98),
    "dusk": (244, 190, 160), "tower": (98, 108, 142), "tower2": (128, 134, 164), "window": (255, 226, 134),
    "curb": (196, 190, 186), "road": (104, 104, 116), "dash": (240, 232, 210), "void": (30, 22, 62),
    "star": (255, 246, 206), "planet": (226, 140, 96), "ring": (250, 214, 160), "planet2": (110, 176, 196),
    "lunar": (164, 160, 178), "crater": (128, 124, 146), "paper": (238, 216, 190),
    "paper2": (230, 202, 172), "frame": (250, 246, 236), "pane": (168, 212, 236), "table": (182, 124, 78),
    "edge": (140, 90, 56), "midnight": (24, 40, 92), "moon": (252, 240, 190), "hill": (34, 64, 104),
    "meadow": (38, 84, 88), "sea": (112, 208, 224), "sea2": (52, 160, 200), "ray": (90, 186, 214),
    "weed": (40, 140, 100), "seabed": (226, 206, 156), "bubble": (214, 244, 250),
}  # fmt: skip


def local_colors(scene: Scene) -> dict[str, np.ndarray]:
    """Role to colour [3] for one scene."""
    colors = {role: np.array(rgb, np.float32) / 255 for role, rgb in _THINGS.items()}
    body = np.array(COLORS[scene.individual.color], np.float32) / 255
    colors["body"] = body
    colors["shade"] = body * 0.78
    colors["second"] = np.array(COLORS[scene.individual.second_color], np.float32) / 255
    if scene.individual.color == "black":
        colors["eye"] = np.array([0.07, 0.06, 0.09], np.float32)
    vary = Vary(scene.pose_seed + 3)
    hue, tint = vary(0, 1), vary(0.06, 0.24)
    colors["wall"] = np.array(colorsys.hsv_to_rgb(hue, tint, vary(0.8, 0.93)), np.float32)
    colors["floor"] = colors["wall"] * 0.9
    return colors
