"""Class pictures for prior preservation: what each branch should still draw for its class."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from unziplora_cli.config import GenerateConfig, Prompts, TrainConfig
from unziplora_cli.errors import ProjectError, UsageError
from unziplora_cli.method.layer import BRANCHES
from unziplora_cli.sdxl.base import BaseRef
from unziplora_cli.sdxl.generate import ImageRequest, generate
from unziplora_cli.training.noise import CONTENT_PRIOR, STYLE_PRIOR, derive_seed

STREAMS = {"content": CONTENT_PRIOR, "style": STYLE_PRIOR}
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def class_prompts(config: TrainConfig) -> dict[str, str]:
    """The class prompt of each branch that has a folder of class pictures.

    Raises UsageError when a folder has no prompt.
    """
    prompts = {}
    for branch in BRANCHES:
        if getattr(config, f"prior_{branch}") is None:
            continue
        prompt = getattr(config, f"prior_{branch}_prompt")
        if not prompt:
            example = "a fox" if branch == "content" else "a picture in watercolor style"
            raise UsageError(
                f"--prior-{branch} names a folder of class pictures, but not what they show.",
                hint=f'Add --prior-{branch}-prompt "{example}".',
            )
        prompts[branch] = prompt
    return prompts


def class_pictures(config: TrainConfig, branch: str) -> list[Path]:
    """The first ``prior_images`` pictures of a branch's folder, by name; the folder need not exist."""
    folder = Path(getattr(config, f"prior_{branch}")).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--prior-{branch} {folder} is a file, not a folder of class pictures.")
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [file for file in files if file.suffix.lower() in SUFFIXES][: config.prior_images]


def draw_missing(
    base: BaseRef,
    config: TrainConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    vae: str | None = None,
) -> Iterator[tuple[int, int]]:
    """Fill the folders of class pictures up with the base alone; yields (drawn, to draw) after each one."""
    requests, folders = [], []
    for branch, prompt in class_prompts(config).items():
        present = len(class_pictures(config, branch))
        missing = config.prior_images - present
        if missing > 0:
            first = derive_seed(config.seed, STREAMS[branch]) >> 31  # 32 bits
            settings = GenerateConfig(
                width=config.resolution, height=config.resolution, count=missing, seed=first + present
            )
            requests.append(ImageRequest(Prompts(prompt, prompt, prompt), config=settings))
            folders += [Path(getattr(config, f"prior_{branch}")).expanduser()] * missing
    if not requests:
        return
    pictures = generate(base, requests, device=device, dtype=dtype, vae=vae)
    for number, (folder, picture) in enumerate(zip(folders, pictures, strict=True), start=1):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            picture.image.save(folder / f"class-{picture.seed:010d}.png")
        except OSError as error:
            raise ProjectError(
                f"Cannot write class pictures to {folder}: {error.strerror}.", hint="Choose another folder."
            ) from error
        yield number, len(folders)
