"""Draw a scene; as a program, draw contact sheets and the sample pictures.

python -m recipes.mini.draw --sheet sheet.png
python -m recipes.mini.draw --samples folder
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from recipes.mini.layers import Layers
from recipes.mini.scene import (
    CONTEXTS,
    GENERIC,
    HELD_OUT_STYLES,
    MARKINGS,
    STYLES,
    SUBJECTS,
    Scene,
    random_individual,
    random_scene,
    sample_scenes,
)  # fmt: skip
from recipes.mini.styles import PAINTERS


def draw(scene: Scene, size: int = 128) -> np.ndarray:
    """Draw ``scene`` as uint8 [size, size, 3]; the same scene always gives the same picture."""
    picture = PAINTERS[scene.style](Layers(scene, size))
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def sheet(rows: Sequence[Sequence[Scene]], size: int = 128) -> Image.Image:
    """A contact sheet of scenes."""
    lines = [np.concatenate([draw(scene, size) for scene in row], 1) for row in rows]
    return Image.fromarray(np.concatenate(lines, 0))


def sheet_scenes(kind: str, seed: int) -> list[list[Scene]]:
    """The scenes of a contact sheet of all styles, subjects, contexts or markings, or of some individuals."""
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng, styles=STYLES[:1]) for _ in range(256)]
    plain = [replace(scene, context="") for scene in scenes]

    def subject(scene: Scene, name: str) -> Scene:
        return replace(scene, individual=replace(scene.individual, subject=name))

    match kind:
        case "styles":
            names = (*STYLES, GENERIC, *HELD_OUT_STYLES)
            return [
                [replace(scenes[(j * 13 + i) % 256], style=style) for j in range(12)]
                for i, style in enumerate(names)
            ]
        case "subjects":
            return [[subject(plain[i * 8 + j], name) for j in range(8)] for i, name in enumerate(SUBJECTS)]
        case "contexts":
            return [
                [replace(scenes[i * 10 + j], context=c) for j in range(10)] for i, c in enumerate(CONTEXTS)
            ]
        case "markings":
            return [
                [replace(s, individual=replace(s.individual, marking=m)) for s in plain[i * 10 : i * 10 + 10]]
                for i, m in enumerate(MARKINGS)
            ]
        case _:
            styles = (STYLES[0], *rng.choice([*STYLES[1:], *HELD_OUT_STYLES], 7, replace=False))
            who = [random_individual(rng) for _ in range(8)]
            return [
                [replace(scenes[i * 8 + j], individual=w, style=str(s)) for j, s in enumerate(styles)]
                for i, w in enumerate(who)
            ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sheet", type=Path, help="write a contact sheet to this file")
    parser.add_argument(
        "--kind", default="styles", choices=["styles", "subjects", "contexts", "markings", "individuals"]
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=Path, help="write the sample pictures, 256 px, to this folder")
    args = parser.parse_args()
    if args.sheet:
        sheet(sheet_scenes(args.kind, args.seed)).save(args.sheet)
    if args.samples:
        args.samples.mkdir(parents=True, exist_ok=True)
        for name, scene in sample_scenes().items():
            Image.fromarray(draw(scene, 256)).save(args.samples / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
