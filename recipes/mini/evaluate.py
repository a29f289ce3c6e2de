"""How good the base is: what the classifier sees in generated images, tables, and contact sheets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image, ImageDraw

from recipes.mini.model import load_pipeline
from recipes.mini.pictures import NAMES, TEST, Store, label
from recipes.mini.scene import (
    COLORS,
    CONTEXTS,
    HELD_OUT_STYLES,
    MARKINGS,
    STYLES,
    SUBJECTS,
    Individual,
    Scene,
)
from unziplora_cli.evaluation.scorers import Classifier

GUIDANCE = 5.0
STEPS = 25
SHEET_SCENES = (
    ("orange dotted", "fox", ""),
    ("purple striped", "cat", "on a beach"),
    ("white plain", "owl", "in a forest"),
    ("red striped", "fish", "under water"),
    ("red plain", "rose", ""),
    ("blue checkered", "house", "in the snow"),
    ("yellow starred", "robot", "in space"),
    ("green plain", "car", "in a city"),
    ("teal dotted", "teapot", "on a table"),
    ("pink striped", "balloon", "at night"),
)


def generate(
    pipeline: StableDiffusionXLPipeline,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    steps: int = STEPS,
    batch: int = 256,
) -> np.ndarray:
    """Pictures uint8 [n, 128, 128, 3] of the prompts, each from its own seed."""
    pictures = []
    for start in range(0, len(prompts), batch):
        texts = list(prompts[start : start + batch])
        noise = [torch.Generator().manual_seed(seed + start + n) for n in range(len(texts))]
        made = pipeline(
            texts, num_inference_steps=steps, guidance_scale=GUIDANCE, generator=noise, output_type="np"
        )
        pictures.append((made.images * 255).round().astype(np.uint8))
    return np.concatenate(pictures)


def prompt_of(scene: Scene, *, say_photo: bool = True) -> str:
    """A caption that says everything: colour, marking, subject, style, context."""
    who = scene.individual
    style = f"in {scene.style} style" if say_photo or scene.style != STYLES[0] else ""
    return " ".join(f"a {who.color} {who.marking} {who.subject} {style} {scene.context}".split())


def fully_said_scenes(count: int, seed: int = 11) -> list[Scene]:
    """Scenes in the base's styles with every property drawn evenly."""
    rng = np.random.default_rng(seed)
    orders = [
        np.concatenate([rng.permutation(len(names)) for _ in range(-(-count // len(names)))])[:count]
        for names in (SUBJECTS, STYLES, CONTEXTS, MARKINGS, tuple(COLORS))
    ]
    colors = tuple(COLORS)
    return [
        Scene(Individual(SUBJECTS[s], colors[c], "white", MARKINGS[m], 0), STYLES[t], CONTEXTS[x], 0)
        for s, t, x, m, c in zip(*orders, strict=True)
    ]


def evaluate(
    folder: Path, classifier: Classifier, device: torch.device, *, count: int, steps: int
) -> dict[str, object]:
    """Generate `count` fully captioned pictures and let the classifier name them."""
    scenes = fully_said_scenes(count)
    prompts = [prompt_of(scene, say_photo=n % 2 == 0) for n, scene in enumerate(scenes)]
    made = generate(load_pipeline(folder, str(device)), prompts, seed=1000, steps=steps)
    truth = np.array([label(scene) for scene in scenes])
    predicted, _ = classifier.to(device).predict(torch.from_numpy(made))
    correct = {name: predicted[name].cpu().numpy() == truth[:, n] for n, name in enumerate(NAMES)}
    columns = list(NAMES)
    photo = truth[:, columns.index("style")] == 0
    return {
        "pictures": count,
        "guidance": GUIDANCE,
        "steps": steps,
        "overall": {name: _share(hits) for name, hits in correct.items()},
        "photo only": {name: _share(hits[photo]) for name, hits in correct.items()},
        "by": {
            name: {
                word: {other: _share(hits[truth[:, n] == number]) for other, hits in correct.items()}
                for number, word in enumerate(NAMES[name])
                if (truth[:, n] == number).any()
            }
            for n, name in enumerate(columns)
        },
    }


def generated_sheet(
    folder: Path, device: torch.device, path: Path, *, steps: int, styles: Sequence[str] = STYLES
) -> None:
    """Draw the same ten scenes in each style, a row for each."""
    prompts = [
        " ".join(f"a {look} {subject} in {style} style {context}".split())
        for style in styles
        for look, subject, context in SHEET_SCENES
    ]
    made = generate(load_pipeline(folder, str(device)), prompts, seed=7, steps=steps)
    sheet(made, len(SHEET_SCENES), list(styles), path)


def reconstruction_sheet(store: Store, rebuilt: np.ndarray, index: np.ndarray, path: Path) -> None:
    """Rendered pictures beside their reconstructions, five pairs of every style in a row."""
    styles = store.labels[index][:, list(NAMES).index("style")]
    rows, names = [], []
    for number, name in enumerate(NAMES["style"]):
        if (styles == number).any():
            rows_of_style = np.resize(np.flatnonzero(styles == number), 5)
            rows += [picture for n in rows_of_style for picture in (store.pictures[index[n]], rebuilt[n])]
            names.append(name)
    sheet(np.stack(rows), 10, names, path)


def sheet(pictures: np.ndarray, columns: int, names: Sequence[str], path: Path) -> None:
    """Write pictures [n, h, w, 3] as a PNG grid with a name beside each row."""
    size, margin = pictures.shape[1], 90
    rows = -(-len(pictures) // columns)
    canvas = Image.new("RGB", (margin + columns * size, rows * size), "white")
    pen = ImageDraw.Draw(canvas)
    for n, picture in enumerate(pictures):
        canvas.paste(Image.fromarray(picture), (margin + n % columns * size, n // columns * size))
    for row, name in enumerate(names):
        pen.text((4, row * size + size // 2), name, fill="black")
    canvas.save(path)


def tested(store: Store) -> np.ndarray:
    """Indices of the drawn test pictures."""
    ready = store.ready()
    return ready[store.kinds[ready] == TEST]


def held_out_check(folder: Path, classifier: Classifier, device: torch.device, *, steps: int) -> float:
    """How often a picture asked for in a held-out style is seen in it: near 0 for a true base."""
    prompts = [f"a {subject} in {style} style" for style in HELD_OUT_STYLES for subject in SUBJECTS[:8]]
    truth = [style for style in HELD_OUT_STYLES for _ in SUBJECTS[:8]]
    made = generate(load_pipeline(folder, str(device)), prompts, seed=50, steps=steps)
    named = classifier.to(device).classify(torch.from_numpy(made))
    return _share(np.array([labels["style"] == style for labels, style in zip(named, truth, strict=True)]))


def _share(hits: np.ndarray) -> float:
    return round(float(np.mean(hits)), 4)
