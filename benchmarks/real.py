"""How well methods separate content and style of real images on SDXL: the table that papers print.

    python benchmarks/real.py FOLDER --out results       # needs the base, DINOv2 and CLIP in the cache
    python benchmarks/real.py FOLDER --out results --only paper --only ours

Every image of FOLDER is trained by every method and then generated from. ``prompts.json`` in FOLDER names
subject and style of each image; what it lacks is described by the describer:

    {"fox.png": {"subject": "fox", "style": "watercolor", "features": ["orange", "white dots"]}}

Run the same command again after an interruption: projects and images that exist are kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.separation.classification import interval
from unziplora_cli.cli._errors import describe as explain
from unziplora_cli.config import (
    ComputeConfig,
    GenerateConfig,
    Prompts,
    Words,
    resolve,
    resolve_generate,
)
from unziplora_cli.errors import UnziploraError, UsageError
from unziplora_cli.evaluation.scorers import Encoders, missing_encoders
from unziplora_cli.events import Event, Notice, Phase, run
from unziplora_cli.files import atomic_write
from unziplora_cli.image_formats import image_files
from unziplora_cli.images import load_image
from unziplora_cli.method.layer import DualLoRALinear
from unziplora_cli.method.lora import LoRA, LoRAPair
from unziplora_cli.projects.names import slugify
from unziplora_cli.projects.store import Project, ProjectStore
from unziplora_cli.prompts import make_prompts, make_words, with_article
from unziplora_cli.sdxl.base import BaseRef, resolve_base
from unziplora_cli.sdxl.generate import GeneratedImage, ImageRequest
from unziplora_cli.sdxl.latents import crop_boxes
from unziplora_cli.training import engine
from unziplora_cli.training.events import StepDone
from unziplora_cli.training.request import TrainRequest
from unziplora_cli.workflows.describe import describe
from unziplora_cli.workflows.destyle import destyle_requests
from unziplora_cli.workflows.generate import AdapterCache, GenerateSpec, generate_requests
from unziplora_cli.workflows.train import input_cache_for, make_request, train

Kind = Literal["none", "pair", "one", "two", "blocks"]
PURPOSES = ("content", "style", "combine", "cross")
BLOCKS = {"content": "up_blocks.0.attentions.0.", "style": "up_blocks.0.attentions.1."}
"""The blocks that B-LoRA trains (Frenkel et al., arXiv 2403.14572)."""
PLAIN = {"column_separation": False, "prompt_separation": False, "block_separation": False, "start": "zero"}
"""Settings that reduce the method to ordinary LoRAs; the two parts of one are used together."""
OTHER_SUBJECTS = ("house", "teapot", "cat", "tree", "bicycle")
"""What the style LoRA is asked for: the first that is not the subject."""
COLUMNS = {
    "content DINO": "content images and the training image, DINOv2",
    "content identity": "share of content images whose nearest training image, of all, is their own",
    "style CLIP-I": "style images and the training image, CLIP",
    "style encoder": "the same by the encoder of --style-encoder",
    "content CLIP-T": "content images and their prompt, CLIP",
    "combine DINO": "combined images and the training image, DINOv2",
    "cross DINO": "images in another image's style and the image of their content, DINOv2",
    "cross CLIP-I": "the same images and the image of their style, CLIP",
}


@dataclass(frozen=True)
class Method:
    """One row: ``kind`` as in ``separation/methods.py``, and the settings over those of ``preset``."""

    name: str
    kind: Kind
    preset: str = "paper"
    settings: Mapping[str, Any] = field(default_factory=dict)
    described: bool = False

    @property
    def slug(self) -> str:
        """The name as a folder."""
        return slugify(self.name)


def methods(destyler: str | None) -> list[Method]:
    """All rows; the one with an editing model only if one is named."""
    edited = {"destyle": "edit", "destyler": destyler}
    return [
        Method("base alone", "none"),
        Method("DreamBooth-LoRA", "one", settings=PLAIN),
        Method("two DreamBooth-LoRAs", "two", settings=PLAIN),
        Method("B-LoRA", "blocks", settings={**PLAIN, "fuse": False}),
        Method("no prompt separation", "pair", settings={"prompt_separation": False}),
        Method("no column separation", "pair", settings={"column_separation": False}),
        Method("no block separation", "pair", settings={"block_separation": False}),
        Method("paper", "pair"),
        Method("ours, not described", "pair", "destyle"),
        Method("ours", "pair", "destyle", described=True),
        *([Method("ours, edited", "pair", "destyle", edited, described=True)] if destyler else []),
    ]


@dataclass(frozen=True)
class Sample:
    """One image of the folder."""

    image: Path
    name: str
    words: Words
    features: tuple[str, ...]


def read_samples(folder: Path, builtin: bool, describer: str | None, device: str) -> list[Sample]:
    """The images of a folder, with the words of ``prompts.json`` or of the describer."""
    images = image_files(folder) if folder.is_dir() else []
    if not images:
        raise UsageError(f"There are no images in {folder}.")
    listed: dict[str, Any] = {}
    if (file := folder / "prompts.json").is_file():
        listed = json.loads(file.read_text(encoding="utf-8"))
    words = {path: dict(listed.get(path.name, {})) for path in images}
    missing = [path for path in images if not {"subject", "style"} <= words[path].keys()]
    if missing:
        for path, read in zip(
            missing,
            run(describe(missing, builtin=builtin, describer=describer, device=device), show),
            strict=True,
        ):
            proposed = {"subject": read.subject, "style": read.style, "features": read.features}
            words[path] = proposed | words[path]
    return [
        Sample(
            path,
            slugify(path.stem),
            make_words(entry["subject"], entry["style"]),
            tuple(entry.get("features", ())),
        )
        for path, entry in words.items()
    ]


# Training


@dataclass(frozen=True)
class Bench:
    """What all methods share. ``settings`` and ``generation`` override those of the presets."""

    samples: Sequence[Sample]
    base: BaseRef
    out: Path
    settings: Mapping[str, Any]
    generation: GenerateConfig
    device: str

    def store(self, method: Method) -> ProjectStore:
        """The projects of a method."""
        return ProjectStore(self.out / method.slug)

    def requests(self, method: Method) -> Iterator[TrainRequest]:
        """The trainings of a method that are not finished."""
        config = resolve(method.preset, {**method.settings, **self.settings})
        if method.kind in ("one", "two"):  # two parts of one LoRA have its rank together
            config = replace(config, rank=max(1, config.rank // 2))
        for sample in self.samples:
            prompts = make_prompts(sample.words)
            texts = {"": prompts}
            if method.kind in ("one", "blocks"):
                texts = {"": _same(prompts.full)}
            elif method.kind == "two":
                texts = {"-content": _same(prompts.content), "-style": _same(prompts.style)}
            for suffix, chosen in texts.items():
                name = sample.name + suffix
                if method.kind != "none" and not self.store(method).exists(name):
                    yield make_request(
                        name,
                        [sample.image],
                        sample.words,
                        self.base,
                        config,
                        features=sample.features if method.described else (),
                        texts={f"{branch}_prompt": text for branch, text in asdict(chosen).items()},
                        device=self.device,
                        replaces=True,
                    )

    def train(self, method: Method) -> None:
        """Train a method on every image; projects that exist are kept."""
        requests = list(self.requests(method))
        if not requests:
            return
        scratch = self.out / "destyled" / method.slug
        requests = run(destyle_requests(requests, scratch), show)
        cache = input_cache_for(requests)
        with only_blocks() if method.kind == "blocks" else no_change():
            for request in requests:
                if trained := run(train(request, self.store(method), cache), show):
                    log(f"{method.name}: {trained.project.name} in {trained.seconds:.0f} s")

    def generate(self, method: Method) -> None:
        """Generate the images of a method that are missing."""
        wanted = [
            (self.path(method, index, purpose), index, purpose)
            for index in range(len(self.samples))
            for purpose in PURPOSES
        ]
        due = [(path, index, purpose) for path, index, purpose in wanted if not path.is_dir()]
        cache = AdapterCache()
        requests = [self._request(method, index, purpose, cache) for _, index, purpose in due]
        images: list[Image.Image] = []
        remaining = iter(due)
        for event in generate_requests(requests, self.base, ComputeConfig(device=self.device)):
            if not isinstance(event, GeneratedImage):
                show(event)
                continue
            images.append(event.image)
            if len(images) == self.generation.count:
                _save(images, next(remaining)[0])
                images = []

    def path(self, method: Method, index: int, purpose: str) -> Path:
        """The folder of some images of a method."""
        return self.out / method.slug / "images" / self.samples[index].name / purpose

    def images(self, method: Method, index: int, purpose: str) -> list[Image.Image]:
        """Generated images."""
        return [load_image(path).image for path in image_files(self.path(method, index, purpose))]

    def other(self, index: int) -> int:
        """The sample whose style the content of ``index`` is crossed with."""
        return (index + 1) % len(self.samples)

    def _request(self, method: Method, index: int, purpose: str, cache: AdapterCache) -> ImageRequest:
        content = self.samples[index]
        style = self.samples[self.other(index)] if purpose == "cross" else content
        prompts = make_prompts(replace(content.words, style=style.words.style))
        if purpose == "style":
            subject = next(noun for noun in OTHER_SUBJECTS if noun not in content.words.subject)
            prompts = make_prompts(replace(content.words, subject=subject))
        text = {"content": prompts.content, "style": prompts.style}.get(purpose, prompts.full)
        if method.kind == "none":
            return ImageRequest(_same(text), LoRAPair(), self.generation)
        pairs = [self._pair(method, content, cache), self._pair(method, style, cache)]
        lora = self._lora(method, pairs, purpose)
        separate = method.kind == "pair" and purpose not in ("content", "style")
        return ImageRequest(prompts if separate else _same(text), lora, self.generation)

    def _pair(self, method: Method, sample: Sample, cache: AdapterCache) -> dict[str, LoRAPair]:
        def read(name: str) -> LoRAPair:
            project: Project = self.store(method).open(name)
            return cache.branches(GenerateSpec(self.base, self.generation, project, project))

        if method.kind == "two":
            return {part: read(f"{sample.name}-{part}") for part in ("content", "style")}
        pair = read(sample.name)
        return {"content": pair, "style": pair}

    def _lora(self, method: Method, pairs: Sequence[dict[str, LoRAPair]], purpose: str) -> LoRAPair:
        """The LoRAs of the content and the style of an image, as the method uses them."""
        content, style = pairs[0]["content"], pairs[1]["style"]
        merged = LoRAPair(content.content, style.style, content.content_merge, style.style_merge)
        if method.kind == "pair":
            return replace(
                merged, **{"content": {"style": None}, "style": {"content": None}}.get(purpose, {})
            )
        limits = BLOCKS if method.kind == "blocks" else {"content": "", "style": ""}
        first = _one_lora(content, limits["content"]) if purpose != "style" else {}
        second = _one_lora(style, limits["style"]) if purpose != "content" else {}
        if method.kind == "one":  # the same LoRA serves all purposes
            first, second = (_one_lora(content), {}) if purpose != "cross" else (first, second)
            first = first or _one_lora(style)
        return LoRAPair(first, second)


def _one_lora(pair: LoRAPair, prefix: str = "") -> LoRA:
    """Both parts of an ordinary LoRA as one, of the layers whose names start with ``prefix``."""
    parts = [part for part in (pair.content, pair.style) if part is not None]
    return {
        name: replace(
            weights,
            down=torch.cat([part[name].down for part in parts]),
            up=torch.cat([part[name].up for part in parts], dim=1),
        )
        for name, weights in parts[0].items()
        if name.startswith(prefix)
    }


def _same(text: str) -> Prompts:
    return Prompts(text, text, text)


@contextmanager
def only_blocks() -> Iterator[None]:
    """Train only the layers in ``BLOCKS``: all others keep LoRAs that are zero."""
    create = engine.inject
    prefixes = tuple(BLOCKS.values())

    def inject(network: torch.nn.Module, rank: int, **options: Any) -> dict[str, DualLoRALinear]:
        layers = create(network, rank, **options)
        for name, layer in layers.items():
            for branch in layer.branches() if not name.startswith(prefixes) else ():
                branch.requires_grad_(False)
        return layers

    engine.inject = inject
    try:
        yield
    finally:
        engine.inject = create


@contextmanager
def no_change() -> Iterator[None]:
    """Train all layers."""
    yield


def _save(images: Sequence[Image.Image], folder: Path) -> None:
    """Write images into a new folder, which appears when all of them are there."""
    partial = folder.with_name(f".{folder.name}")
    partial.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        image.save(partial / f"{number:02}.png")
    partial.rename(folder)


# Scores


def score(bench: Bench, method: Method, encoders: Encoders, style_encoder: Any) -> dict[str, np.ndarray]:
    """Each column by sample."""
    sources = [square(load_image(sample.image).image) for sample in bench.samples]
    dino, clip = encoders.embed_dino(sources), encoders.embed_clip(sources)
    styles = None if style_encoder is None else style_encoder(sources)
    columns: dict[str, list[float]] = {name: [] for name in COLUMNS}
    for index, sample in enumerate(bench.samples):
        images = {purpose: bench.images(method, index, purpose) for purpose in PURPOSES}
        content = encoders.embed_dino(images["content"]) @ dino.T  # [count, samples]
        columns["content DINO"].append(float(content[:, index].mean()))
        columns["content identity"].append(float((content.argmax(1) == index).float().mean()))
        text = encoders.embed_texts([with_article(sample.words.subject)])
        columns["content CLIP-T"].append(_likeness(encoders.embed_clip(images["content"]), text[0]))
        columns["style CLIP-I"].append(_likeness(encoders.embed_clip(images["style"]), clip[index]))
        columns["combine DINO"].append(_likeness(encoders.embed_dino(images["combine"]), dino[index]))
        columns["cross DINO"].append(_likeness(encoders.embed_dino(images["cross"]), dino[index]))
        other = bench.other(index)
        columns["cross CLIP-I"].append(_likeness(encoders.embed_clip(images["cross"]), clip[other]))
        likeness = float("nan")
        if styles is not None:
            likeness = _likeness(style_encoder(images["style"]), styles[index])
        columns["style encoder"].append(likeness)
    return {name: np.array(values) for name, values in columns.items()}


def _likeness(images: Tensor, reference: Tensor) -> float:
    return float((images @ reference).mean())


def square(image: Image.Image) -> Image.Image:
    """The central square, which training and the encoders see."""
    left, top, right, bottom = crop_boxes(image.size, 1)[0]
    return image.crop((int(left), int(top), int(right), int(bottom)))


def load_style_encoder(spec: str | None) -> Any:
    """A CLIP vision model with a projection that was trained to see style, such as CSD's; None for none."""
    if spec is None:
        return None
    import transformers

    options: dict[str, Any] = {"local_files_only": True}
    model = transformers.CLIPVisionModelWithProjection.from_pretrained(spec, use_safetensors=True, **options)
    processor = transformers.CLIPImageProcessor.from_pretrained(spec, **options)

    @torch.inference_mode()
    def embed(images: Sequence[Image.Image]) -> Tensor:
        pixels = processor(list(images), return_tensors="pt").pixel_values
        return torch.nn.functional.normalize(model.eval()(pixels).image_embeds, dim=1)

    return embed


def table(results: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """One row per method: the mean of every column with its 95 % interval; empty columns are left away."""
    names = [name for name in COLUMNS if any(not np.isnan(row[name]).all() for row in results.values())]
    lines = ["| method | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for method, row in results.items():
        cells = ["{:.3f} ({:.3f} to {:.3f})".format(*interval(row[name])) for name in names]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"- {name}: {COLUMNS[name]}" for name in names)]) + "\n"


# The program


def log(text: str) -> None:
    """Print what is going on."""
    print(text, file=sys.stderr, flush=True)


def show(event: Event) -> None:
    """Print phases, notices and every hundredth step."""
    match event:
        case Phase(name, detail):
            log(f"  {name} {detail}")
        case Notice(text):
            log(f"  note: {text}")
        case StepDone() if event.step % 100 == 0:
            log(f"  step {event.step}/{event.total}, {event.seconds:.2f} s each")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path, help="folder of images, with or without prompts.json")
    parser.add_argument("--out", type=Path, default=Path("real-results"), help="results")
    parser.add_argument("--base", help="default: sdxl if it is in the cache")
    parser.add_argument("--only", action="append", help="only this method; may be repeated")
    parser.add_argument("--count", type=int, default=4, help="images per purpose")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first generated image")
    parser.add_argument("--describer", help="vision-language model for images without words")
    parser.add_argument("--destyler", help="editing model; adds a row")
    parser.add_argument("--style-encoder", help="CLIP vision model that sees style")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a training setting of all methods"
    )
    parser.add_argument(
        "--generate",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of all images",
    )
    return parser.parse_args(arguments)


def settings(pairs: Sequence[str]) -> dict[str, Any]:
    """``NAME=VALUE`` pairs, values as in a preset file; text needs no quotes."""
    values = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            values[name.replace("-", "_")] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            values[name.replace("-", "_")] = value
    return values


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, generate, score and print the table; returns the exit code."""
    options = parse(arguments)
    try:
        base, notice = resolve_base(options.base, offline=True)
        if notice:
            log(notice.text)
        rows = methods(options.destyler)
        if unknown := set(options.only or ()) - {row.name for row in rows}:
            raise UsageError(f"There is no method {unknown.pop()!r}: {', '.join(row.name for row in rows)}.")
        chosen = [row for row in rows if not options.only or row.name in options.only]
        samples = read_samples(options.folder, base.kind == "builtin", options.describer, options.device)
        generation = resolve_generate("paper", settings(options.generate))
        generation = replace(generation, count=options.count, seed=options.seed)
        bench = Bench(samples, base, options.out, settings(options.set), generation, options.device)
        for method in chosen:
            log(method.name)
            bench.train(method)
            bench.generate(method)
        if missing := missing_encoders():
            log(f"Not scored: {' and '.join(missing)} are not in the cache; `eval --pull` downloads them.")
            return 0
        encoders, style_encoder = Encoders.load(), load_style_encoder(options.style_encoder)
        results = {method.name: score(bench, method, encoders, style_encoder) for method in chosen}
    except UnziploraError as error:
        message, hint, code = explain(error)
        log(f"Error: {message}\n{hint}")
        return code
    text = table(results)
    with atomic_write(options.out / "table.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    values = {name: {column: list(row) for column, row in rows.items()} for name, rows in results.items()}
    with atomic_write(options.out / "results.json") as temporary:
        temporary.write_text(json.dumps(values, indent=2), encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
