"""Where weights come from, gathered for the files that tell it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from unziplora_cli.config import Prompts, Words
from unziplora_cli.projects import manifest
from unziplora_cli.projects.manifest import BaseRecord
from unziplora_cli.projects.store import Project
from unziplora_cli.prompts import make_prompts

if TYPE_CHECKING:
    from unziplora_cli.adapters.metadata import Origin
    from unziplora_cli.sdxl.base import BaseRef

NATIVE = 1024
"""The resolution of SDXL, for what was not trained here."""


def base_record(base: BaseRef) -> BaseRecord:
    """What a manifest keeps of a base."""
    return BaseRecord(
        spec=base.spec, kind=base.kind, id=base.id, revision=base.revision, hash=base.fingerprint
    )


def origin(
    name: str,
    base: BaseRecord,
    words: Words,
    prompts: Prompts,
    *,
    resolution: int = NATIVE,
    picture: Path | None = None,
    created: str | None = None,
    merged_from: tuple[str, ...] = (),
) -> Origin:
    """The origin of the weights of one project; without ``created`` it is now.

    Of a base on this disk only the last part of its path is told.
    """
    from unziplora_cli.adapters.metadata import Origin, thumbnail
    from unziplora_cli.images import load_image

    phrase = make_prompts(words, "{style}").style
    return Origin(
        project=name,
        base=Path(base.id).name if base.kind in ("folder", "file") else base.id,
        base_hash=base.hash,
        builtin=base.kind == "builtin",
        words=words,
        prompts=prompts,
        style_phrase=phrase if phrase in prompts.style else prompts.style,
        resolution=resolution,
        created=created or manifest.now(),
        thumbnail=thumbnail(load_image(picture).image) if picture else "",
        merged_from=merged_from,
    )


def project_origin(project: Project, *, with_picture: bool = True) -> Origin:
    """The origin of a project's weights, by its manifest; imported projects may have no picture."""
    about = project.manifest
    resolution = about.training.get("resolution")
    return origin(
        project.name,
        about.base,
        about.words,
        about.prompts,
        resolution=resolution if isinstance(resolution, int) else NATIVE,
        picture=project.folder / about.source[0].file if with_picture and about.source else None,
        created=about.created,
    )
