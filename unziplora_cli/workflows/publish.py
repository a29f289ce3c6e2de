"""From a project to a model on the Hugging Face hub, or to the folder that would be uploaded."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unziplora_cli.errors import ModelError, ProjectError, UsageError
from unziplora_cli.projects.manifest import Manifest
from unziplora_cli.projects.store import Project, ProjectStore
from unziplora_cli.report.model_card import CardImage, ModelCard, render

PICTURES = 4
"""How many of the project's own pictures the card shows."""


@dataclass(frozen=True)
class PushRequest:
    """What to publish, and where.

    ``pictures`` are those of the card; None takes the newest ones that were drawn with the project.
    """

    project: Project
    repository: str
    private: bool = False
    licence: str | None = None
    pictures: Sequence[Path] | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", self.repository):
            raise UsageError(
                f"{self.repository!r} cannot be a model on the hub.", hint="Give owner/name, as in me/fox."
            )


@dataclass(frozen=True)
class PushResult:
    """What was published: the page, or the folder where it was not; and the files."""

    url: str | None
    folder: Path | None
    files: tuple[str, ...]


def push(order: PushRequest, store: ProjectStore) -> PushResult:
    """Upload the LoRAs, the merge weights, the pictures and the card as one commit.

    Raises ProjectError for a damaged project, and ModelError when the hub refuses.
    """
    from unziplora_cli.hub import hub_errors

    with tempfile.TemporaryDirectory() as scratch:
        files = _fill(order, store, Path(scratch))
        with hub_errors(order.repository, "push to"):
            from huggingface_hub import HfApi

            api = HfApi()
            url = api.create_repo(order.repository, private=order.private or None, exist_ok=True)
            if order.private and not api.model_info(order.repository).private:
                raise ModelError(
                    f"{order.repository} is there already, and it is public. Nothing was uploaded.",
                    hint="Leave out --private, choose another name, or make it private on its page first.",
                )
            api.upload_folder(
                repo_id=order.repository, folder_path=scratch, commit_message=f"Upload {order.project.name}"
            )
    return PushResult(str(url), None, files)


def write_folder(order: PushRequest, store: ProjectStore, folder: Path) -> PushResult:
    """Write what :func:`push` would upload into ``folder``, which must be empty or new."""
    from unziplora_cli.workflows.generate import check_writable

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already.", hint="Choose an empty folder with --out.")
    check_writable(folder.absolute().parent)
    unfinished = folder.with_name(f".{folder.name}.partial")
    try:
        files = _fill(order, store, unfinished)
        if folder.exists():
            folder.rmdir()
        unfinished.rename(folder)
    except OSError as error:
        raise ProjectError(
            f"Cannot write {folder}: {error.strerror or error}.", hint="Choose another place with --out."
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return PushResult(None, folder, files)


def _fill(order: PushRequest, store: ProjectStore, folder: Path) -> tuple[str, ...]:
    project = order.project
    damage = store.verify(project.name).problems
    if damage:
        raise ProjectError(
            f"{project.name} is damaged: {damage[0].path} {damage[0].reason}.",
            hint=f"See all: unziplora verify {project.name}",
        )
    folder.mkdir(parents=True, exist_ok=True)
    named: dict[str, str] = {}
    for artifact in project.manifest.artifacts:
        if artifact.path.endswith(".safetensors"):
            named[artifact.role] = f"{project.name}_{artifact.role}.safetensors"
            shutil.copyfile(project.path(artifact.role), folder / named[artifact.role])
    shown = [
        _picture(path, folder / "images" / f"{number}.png", project.manifest.prompts.full)
        for number, path in enumerate(_pictures(order), start=1)
    ]
    card = render(_card(order, project.manifest, named, shown))
    (folder / "README.md").write_text(card, encoding="utf-8")
    return tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))


def _card(order: PushRequest, about: Manifest, files: dict[str, str], shown: list[CardImage]) -> ModelCard:
    from unziplora_cli.sdxl.base import SDXL_ID

    on_disk = about.base.kind in ("folder", "file")
    content = about.artifact("content") or about.artifact("style")
    return ModelCard(
        repository=order.repository,
        subject=about.words.subject,
        style=about.words.style,
        trigger=about.words.trigger,
        prompts={
            "full": about.prompts.full,
            "content": about.prompts.content,
            "style": about.prompts.style,
        },
        files={role: files[role] for role in ("content", "style") if role in files},
        merge_file=files.get("merge"),
        rank=content.rank if content else None,
        base=Path(about.base.id).name if on_disk else about.base.id,
        base_id=about.base.id if about.base.kind == "hub" else None,
        fp16=about.base.id == SDXL_ID,
        licence=order.licence,
        pictures=shown,
    )


def _pictures(order: PushRequest) -> Sequence[Path]:
    if order.pictures is not None:
        return order.pictures
    drawn = order.project.images.glob("**/*.png")
    return sorted(drawn, key=lambda path: path.stat().st_mtime, reverse=True)[:PICTURES]


def _picture(path: Path, target: Path, otherwise: str) -> CardImage:
    """Save the pixels alone: what a picture says about itself may name folders of this machine."""
    from unziplora_cli.images import load_image, read_parameters

    image = load_image(path).image
    prompt = read_parameters(path).get("prompts", {}).get("full") or otherwise
    target.parent.mkdir(exist_ok=True)
    image.save(target, format="PNG")
    return CardImage(f"images/{target.name}", prompt)
