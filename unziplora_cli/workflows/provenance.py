"""What a project records of its base, and what its weight files say about their origin."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from unziplora_cli.job import BaseRecord, Job, Prediction
from unziplora_cli.projects.store import Project
from unziplora_cli.prompts import style_phrase

if TYPE_CHECKING:
    from unziplora_cli.adapters.metadata import Origin
    from unziplora_cli.sdxl.base import BaseRef

SDXL_RESOLUTION = 1024
"""For LoRAs that were not trained here."""


def base_record(base: BaseRef) -> BaseRecord:
    """What a job keeps of a base."""
    prediction = cast(Prediction | None, base.prediction)  # one of the choices of the setting
    return BaseRecord(base.spec, base.kind, base.id, base.revision, base.fingerprint, prediction)


def origin(job: Job, image: Path | None = None, merged_from: tuple[str, ...] = ()) -> Origin:
    """The origin of the weights of ``job``, with a thumbnail of ``image``.

    Of a base on this disk, only the last part of its path is kept.
    """
    from unziplora_cli.adapters.metadata import Origin, thumbnail
    from unziplora_cli.images import load_image

    base, phrase = job.base, style_phrase(job.words)
    return Origin(
        project=job.name,
        base=Path(base.id).name if base.kind in ("folder", "file") else base.id,
        base_hash=base.hash,
        builtin=base.kind == "builtin",
        words=job.words,
        prompts=job.prompts,
        style_phrase=phrase if phrase in job.prompts.style else job.prompts.style,
        resolution=job.settings.resolution if job.settings else SDXL_RESOLUTION,
        created=job.created,
        thumbnail=thumbnail(load_image(image).image) if image else "",
        merged_from=merged_from,
    )


def metadata_of(job: Job, image: Path | None = None) -> dict[str, dict[str, str]]:
    """The metadata of the three weight files of ``job``, by part."""
    from unziplora_cli.adapters.metadata import project_metadata

    return project_metadata(origin(job, image))


def project_origin(project: Project, *, with_picture: bool = True) -> Origin:
    """The origin of a project's weights; imported projects may have no image."""
    images = project.job.images
    return origin(project.job, project.folder / images[0].file if with_picture and images else None)
