"""Publish a project as a model on the Hugging Face hub, or write the folder that would be uploaded."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from unziplora_cli import files
from unziplora_cli.errors import ModelError, ProjectError, Remedy, UsageError
from unziplora_cli.projects.store import Project, ProjectStore
from unziplora_cli.report.html import CardImage, ModelCard, render_card
from unziplora_cli.workflows.report import newest_images

MAX_IMAGES = 4
"""How many of the project's generated images the card shows by default."""


@dataclass(frozen=True)
class PushRequest:
    """What to publish, and where; ``images`` are those of the card (default: the project's newest)."""

    project: Project
    repository: str
    private: bool = False
    license: str | None = None
    images: Sequence[Path] | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", self.repository):
            raise UsageError(
                f"{self.repository!r} is not a valid name for a model on the hub.",
                Remedy("Give owner/name, for example me/fox."),
            )


@dataclass(frozen=True)
class PushResult:
    """What was published: the page's address, or the folder if nothing was uploaded, and the files."""

    url: str | None
    folder: Path | None
    files: tuple[str, ...]


def push(request: PushRequest, store: ProjectStore) -> PushResult:
    """Upload the LoRAs, the merge weights, the images and the card as one commit.

    Raises ProjectError for a damaged project, and ModelError when the hub refuses.
    """
    from unziplora_cli.hub import hub_errors

    with tempfile.TemporaryDirectory() as scratch:
        names = _write(request, store, Path(scratch))
        with hub_errors(request.repository, "push to"):
            from huggingface_hub import HfApi

            api = HfApi()
            url = api.create_repo(request.repository, private=request.private or None, exist_ok=True)
            if request.private and not api.model_info(request.repository).private:
                raise ModelError(
                    f"{request.repository} already exists and is public. Nothing was uploaded.",
                    Remedy("Publish it publicly, choose another name, or make it private on its page first."),
                )
            api.upload_folder(
                repo_id=request.repository,
                folder_path=scratch,
                commit_message=f"Upload {request.project.name}",
            )
    return PushResult(str(url), None, names)


def write_folder(request: PushRequest, store: ProjectStore, folder: Path) -> PushResult:
    """Write what :func:`push` would upload into ``folder``, which must be empty or new."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            f"{folder} already exists.", Remedy("Choose an empty folder", settings={"out": None})
        )
    folder = folder.absolute()
    files.check_writable(folder.parent)
    with files.write_errors(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with files.temporary_folder(folder.parent) as temporary:
            names = _write(request, store, temporary)
            if folder.exists():
                folder.rmdir()
            temporary.rename(folder)
            files.fsync(folder.parent)
    return PushResult(None, folder, names)


def _write(request: PushRequest, store: ProjectStore, folder: Path) -> tuple[str, ...]:
    """Write weights, images and card into an empty folder; returns the files below it."""
    project = request.project
    problems = store.verify(project.name).problems
    if problems:
        raise ProjectError(
            f"{project.name} is damaged: {problems[0].path} {problems[0].reason}.",
            Remedy("See all problems", command="verify", arguments=(project.name,)),
        )
    weights: dict[str, str] = {}
    for artifact in project.manifest.artifacts:
        if artifact.path.endswith(".safetensors"):
            weights[artifact.role] = f"{project.name}_{artifact.role}.safetensors"
            shutil.copyfile(project.path(artifact.role), folder / weights[artifact.role])
    paths = newest_images(project)[:MAX_IMAGES] if request.images is None else request.images
    images = [
        _copy_image(path, folder, f"images/{number}.png", project.job.prompts.full)
        for number, path in enumerate(paths, start=1)
    ]
    (folder / "README.md").write_text(render_card(_card(request, weights, images)), encoding="utf-8")
    return tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))


def _card(request: PushRequest, weights: dict[str, str], images: Sequence[CardImage]) -> ModelCard:
    from unziplora_cli.sdxl.base import SDXL_ID

    manifest, job = request.project.manifest, request.project.job
    lora = manifest.artifact("content") or manifest.artifact("style")
    return ModelCard(
        repository=request.repository,
        subject=job.words.subject,
        style=job.words.style,
        trigger=job.words.trigger,
        prompts=asdict(job.prompts),
        files={role: weights[role] for role in ("content", "style") if role in weights},
        merge_file=weights.get("merge"),
        rank=lora.rank if lora else None,
        base=Path(job.base.id).name if job.base.kind in ("folder", "file") else job.base.id,
        base_id=job.base.id if job.base.kind == "hub" else None,
        fp16=job.base.id == SDXL_ID,
        license=request.license,
        images=images,
    )


def _copy_image(source: Path, folder: Path, name: str, default_prompt: str) -> CardImage:
    """Save the pixels without metadata, which may name folders of this machine."""
    from unziplora_cli.images import load_image, read_parameters

    image = load_image(source).image
    prompt = read_parameters(source).get("prompts", {}).get("full") or default_prompt
    (folder / name).parent.mkdir(exist_ok=True)
    image.save(folder / name, format="PNG")
    return CardImage(name, prompt)
