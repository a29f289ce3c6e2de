"""A small project with everything that a report shows, and words that try to inject markup."""

import os
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from tests.jobs import changed
from unziplora_cli.adapters.lora_file import write_lora
from unziplora_cli.adapters.merge_weights import write_merge
from unziplora_cli.config import Prompts, TrainConfig, Words
from unziplora_cli.files import sha256
from unziplora_cli.images import save_png
from unziplora_cli.method.lora import LoRAWeights
from unziplora_cli.projects import manifest
from unziplora_cli.projects.manifest import Artifact, Evaluation, ScoreRecord
from unziplora_cli.projects.store import Project
from unziplora_cli.training import callbacks

HOSTILE = Words(
    subject="<script>alert('subject')</script>",
    style='"><img src="http://style.example/x.png" onerror="alert(1)">',
    trigger="</title><style>body{display:none}</style>",
)
PROMPTS = Prompts(
    full="</pre><iframe src=//full.example></iframe>",
    content="{{ 7 * 7 }} {% raw %} & é “quotes”",
    style="</style><link rel=stylesheet href=http://style.example/x.css>",
)
SECRET = "a secret in the metadata"
ORANGE, BLUE, GREEN = (230, 120, 20), (20, 90, 200), (30, 160, 60)

OPEN = {
    # The open columns of content and of style, of 8 output columns.
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": ((0, 1, 2), (2, 3)),
    "down_blocks.1.attentions.0.transformer_blocks.10.attn1.to_q": ((0,), ()),
    "down_blocks.1.attentions.0.transformer_blocks.2.attn1.to_q": ((), (7,)),
    "up_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": (tuple(range(8)), (4, 5)),
}
COLUMNS = 8
MERGE = {"content": 0.25, "style": 0.75}


def fill(project: Project) -> Project:
    """Add real files to a project: weights, history, images, scores and hostile words."""
    folder = project.folder
    Image.new("RGB", (96, 80), ORANGE).save(folder / "source.png")
    _write_weights(folder)
    callbacks.append_history(folder / "history.csv", (_row(step) for step in range(1, 41)))
    _write_images(folder)
    record = project.manifest
    artifacts = [
        *(_measured(folder, artifact) for artifact in record.artifacts),
        _measured(folder, Artifact("history", "history.csv", "0" * 64, 0, "csv")),
    ]
    return rewrite(
        project,
        words=HOSTILE,
        prompts=PROMPTS,
        images=(replace(record.job.images[0], sha256=sha256(folder / "source.png")),),
        artifacts=tuple(artifacts),
        settings=TrainConfig(validate_every=20),
        evaluation=Evaluation(
            created="2025-01-03T00:00:00Z",
            diagnosis="The style leaks into <content>.",
            advice=("Train longer: <i>--steps 400</i>",),
            scores=(
                ScoreRecord("content kept", 0.75, 0.5, True, "Pictures with a <fox>.", "share"),
                ScoreRecord("loss", 0.0123, None, False, "Error in finding the picture.", "loss"),
            ),
        ),
    )


def rewrite(project: Project, **changes: object) -> Project:
    """Write a changed manifest; returns the project with it."""
    new = changed(project.manifest, **changes)
    manifest.write(project.folder, new)
    return replace(project, manifest=new)


def _write_weights(folder: Path) -> None:
    for branch, number in (("content", 0), ("style", 1)):
        lora = {}
        for layer, columns in OPEN.items():
            up = torch.zeros(COLUMNS, 2)
            up[list(columns[number])] = 1.0
            lora[layer] = LoRAWeights(down=torch.ones(2, COLUMNS), up=up)
        write_lora(folder / f"{branch}.safetensors", lora)
    merges = ({layer: torch.full((COLUMNS,), value) for layer in OPEN} for value in MERGE.values())
    write_merge(folder / "merge.safetensors", *merges)


def _row(step: int) -> callbacks.HistoryRow:
    overlap = None if step % 20 < 3 else 1 / step
    return callbacks.HistoryRow(step, 1 / step, 1 / step, overlap, 0.1, 1 - step / 80, 1 - step / 60, 0.1)


def _write_images(folder: Path) -> None:
    images, crossed = folder / "images", folder / "images" / "cross-001"
    crossed.mkdir(parents=True)
    prompts = {"full": PROMPTS.full, "content": PROMPTS.content, "style": PROMPTS.style}
    for name, command in (
        ("content-001", "content"),
        ("style-001", "style"),
        ("it's \"a\" <b>file & 'more'", None),
    ):
        parameters = {"command": command, "prompts": prompts, "seed": 7, "secret": SECRET}
        save_png(Image.new("RGB", (64, 64), BLUE), images / f"{name}.png", parameters if command else {})
    os.utime(images / "content-001.png", (1_000_000_000, 1_000_000_000))
    Image.new("RGB", (400, 300), GREEN).save(crossed / "sheet.png")
    Image.new("RGB", (64, 64), GREEN).save(crossed / "fox.png")
    for step in (20, 40):
        moment = folder / "validation" / f"step-{step:06d}"
        moment.mkdir(parents=True)
        for prompt in ("full", "content", "style"):
            Image.new("RGB", (64, 64), BLUE).save(moment / f"{prompt}-0.png")


def _measured(folder: Path, artifact: Artifact) -> Artifact:
    path = folder / artifact.path
    return replace(artifact, sha256=sha256(path), bytes=path.stat().st_size)
