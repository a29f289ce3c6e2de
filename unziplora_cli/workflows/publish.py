"""Publish a project as a model on the Hugging Face hub, or write the folder that would be uploaded."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from unziplora_cli import files
from unziplora_cli.errors import ModelError, ProjectError, Remedy, UsageError
from unziplora_cli.projects.store import Project, ProjectStore
from unziplora_cli.report.html import render_card
from unziplora_cli.workflows.report import newest_images

SLOWEST_UPLOAD = 50_000
"""Bytes per second that an upload must reach on average."""
CARD = "README.md"
MAX_IMAGES = 4
"""How many of the project's generated images the card shows by default."""

_OTHER_SCRATCH = Remedy("Or name a folder with more space in the variable TMPDIR.")


@dataclass(frozen=True)
class PushRequest:
    """What to publish, and where.

    ``images`` are those of the card; by default the newest that this project alone generated. ``pictures``
    False publishes no image at all, not even the thumbnails in the LoRA files.
    """

    project: Project
    repository: str
    private: bool = False
    license: str | None = None
    images: Sequence[Path] | None = None
    pictures: bool = True

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
    from unziplora_cli.hub import LARGEST_ANSWER, endpoint, hub_errors
    from unziplora_cli.network import WINDOW, limited_answers, within

    with tempfile.TemporaryDirectory() as scratch:
        with files.write_errors(Path(scratch), "Nothing was uploaded.", _OTHER_SCRATCH):
            names = _write(request, store, Path(scratch))
        with hub_errors(request.repository, "push to"), limited_answers(LARGEST_ANSWER):
            from huggingface_hub import HfApi

            api = HfApi()
            create = partial(api.create_repo, request.repository, exist_ok=True)
            within(WINDOW, lambda: create(private=request.private or None))
            if request.private and not within(WINDOW, lambda: api.model_info(request.repository)).private:
                raise ModelError(
                    f"{request.repository} already exists and is public. Nothing was uploaded.",
                    Remedy("Publish it publicly, choose another name, or make it private on its page first."),
                )
            upload = partial(api.upload_folder, repo_id=request.repository, folder_path=scratch)
            allowed = WINDOW * 10 + files.size_and_links(Path(scratch))[0] / SLOWEST_UPLOAD
            within(allowed, lambda: upload(commit_message=f"Upload {request.project.name}"))
    return PushResult(f"{endpoint()}/{request.repository}", None, names)


def write_folder(request: PushRequest, store: ProjectStore, folder: Path) -> PushResult:
    """Write what :func:`push` would upload into ``folder``, which must be empty or new."""
    taken = UsageError(f"{folder} already exists.", Remedy("Choose an empty folder", settings={"out": None}))
    if (folder.is_symlink() or folder.exists()) and (not folder.is_dir() or any(folder.iterdir())):
        raise taken
    folder = Path(os.path.realpath(folder))
    files.check_writable(folder.parent)
    with files.write_errors(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with files.temporary_folder(folder.parent) as temporary:
            names = _write(request, store, temporary)
            files.flush_all(temporary)
            if folder.exists():  # it may be the working folder, which must stay
                try:  # of two commands at once, one gets the folder
                    files.place(temporary / CARD, folder / CARD)
                except ProjectError:
                    raise taken from None
                for path in temporary.iterdir():
                    path.rename(folder / path.name)
                files.fsync(folder)
            else:
                files.rename(temporary, folder)
    return PushResult(None, folder, names)


def _write(request: PushRequest, store: ProjectStore, folder: Path) -> tuple[str, ...]:
    """Write weights, images and card into an empty folder; returns the files below it."""
    project = request.project
    store.require_whole(project)
    weights: dict[str, str] = {}
    for artifact in project.manifest.artifacts:
        if artifact.role in ("content", "style", "merge"):
            weights[artifact.role] = f"{project.name}_{artifact.role}.safetensors"
            copy = shutil.copyfile if request.pictures else _copy_without_thumbnail
            copy(project.path(artifact.role), folder / weights[artifact.role])
    paths: Sequence[Path] = ()
    if request.pictures:
        generated = (path for path in newest_images(project) if _is_own(project, path))
        paths = tuple(islice(generated, MAX_IMAGES)) if request.images is None else request.images
    images = [
        _copy_image(path, folder, f"images/{number}.png", project)
        for number, path in enumerate(paths, start=1)
    ]
    card = render_card(_card(request, weights, images))
    (folder / CARD).write_bytes(card.encode(errors="replace"))
    return tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))


def _card(
    request: PushRequest, weights: Mapping[str, str], images: Sequence[Mapping[str, str]]
) -> dict[str, object]:
    """What the card says; its metadata are what the hub reads."""
    from unziplora_cli.sdxl.base import SDXL_ID

    manifest, job = request.project.manifest, request.project.job
    lora = manifest.artifact("content") or manifest.artifact("style")
    base_id = job.base.id if job.base.kind == "hub" else None
    metadata = {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": [
            "text-to-image",
            "lora",
            "diffusers",
            "stable-diffusion-xl",
            "template:sd-lora",
            "unziplora",
        ],
        "base_model": base_id,
        "base_model_relation": "adapter" if base_id else None,
        "instance_prompt": job.prompts.content,
        "license": request.license,
        "widget": [{"text": image["prompt"], "output": {"url": image["file"]}} for image in images] or None,
    }
    return {
        "metadata": {key: value for key, value in metadata.items() if value is not None},
        "repository": request.repository,
        "words": job.words,
        "prompts": asdict(job.prompts),
        "files": {role: weights[role] for role in ("content", "style") if role in weights},
        "merge_file": weights.get("merge"),
        "rank": lora.rank if lora else None,
        "base": re.split(r"[\\/]", job.base.id)[-1] if job.base.kind in ("folder", "file") else job.base.id,
        "base_id": base_id,
        "builtin": job.base.kind == "builtin",
        "fp16": job.base.id == SDXL_ID,  # the hub has an fp16 variant of it
        "license": request.license,
        "images": images,
    }


def _is_own(project: Project, path: Path) -> bool:
    """Whether the present LoRAs of this project alone generated an image, which is whole."""
    from unziplora_cli.images import load_image, read_parameters

    hashes: dict[str, str] = {artifact.role: artifact.sha256 for artifact in project.manifest.artifacts}
    try:
        used = read_parameters(path).get("adapters", {})
        return bool(used) and used.items() <= hashes.items() and bool(load_image(path))  # raises if damaged
    except UsageError:
        return False


def _copy_without_thumbnail(source: Path, target: Path) -> None:
    from unziplora_cli.adapters.tensors import read_tensors, write_tensors

    tensors, metadata = read_tensors(source)
    metadata.pop("modelspec.thumbnail", None)
    write_tensors(target, tensors, metadata)


def _copy_image(source: Path, folder: Path, name: str, project: Project) -> dict[str, str]:
    """Save the pixels without metadata, which may name folders of this machine; returns file and prompt."""
    from unziplora_cli.images import load_image, read_parameters, save_image

    image, parameters = load_image(source).image, read_parameters(source)
    kind, default = parameters.get("command", ""), project.job.prompts.full
    prompt = parameters.get("prompts", {}).get(kind if kind in ("content", "style") else "full", default)
    (folder / name).parent.mkdir(exist_ok=True)
    save_image(image, folder / name)
    return {"file": name, "prompt": prompt}
