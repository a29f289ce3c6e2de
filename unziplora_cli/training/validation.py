"""Pictures from the layers as they are in the middle of a training."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from torch import Tensor

from unziplora_cli.accel.device import empty_cache
from unziplora_cli.job import TrainRequest
from unziplora_cli.method.layer import Mode
from unziplora_cli.method.separation import Layers, set_mode
from unziplora_cli.sdxl.base import vae_scale_factor
from unziplora_cli.sdxl.generate import load_vae_decoder
from unziplora_cli.sdxl.latents import decode_latents
from unziplora_cli.sdxl.load import load_scheduler
from unziplora_cli.sdxl.sampling import concat_conditionings, initial_noise, sample, unconditional
from unziplora_cli.sdxl.text import Conditioning, TextEmbeddings, predict_noise
from unziplora_cli.training.inputs import Materials

STEPS, GUIDANCE = 20, 5.0
MODES: dict[str, Mode] = {"full": "both", "content": "content", "style": "style"}


@dataclass(slots=True)
class Validation:
    """Draws the same pictures again and again as the training goes on: same seeds, same prompts.

    The VAE comes to the device only while pictures are decoded, and waits on the CPU in between.
    """

    request: TrainRequest
    materials: Materials
    unet: UNet2DConditionModel
    layers: Layers
    _vae: AutoencoderKL | None = field(default=None, init=False)

    def draw(self, step: int) -> tuple[Path, ...]:
        """Write the pictures of the full, content and style prompts and a strip of all; returns the paths."""
        folder = self.request.folder / "validation" / f"step-{step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        rows, paths = [], []
        latents = {name: self._latents(name) for name in MODES}
        for name, pictures in self._decode(latents).items():
            rows.append(pictures)
            for number, picture in enumerate(pictures):
                paths.append(folder / f"{name}-{number}.png")
                picture.save(paths[-1])
        paths.append(folder / "strip.png")
        strip(rows).save(paths[-1])
        return tuple(paths)

    def _latents(self, name: str) -> list[Tensor]:
        """One picture's latents per seed, [1, channels, h, w] each."""
        config = self.request.config
        side = config.resolution // vae_scale_factor(self.request.base)
        seeds = range(config.seed, config.seed + config.validation_images)
        told = self.materials.validation[name].to(device=self.unet.device, dtype=self.unet.dtype)
        both = concat_conditionings(_away(self.materials.empty, told, name), told)  # batch of 2
        set_mode(self.layers, MODES[name])
        try:
            return [self._sample(seed, side, both) for seed in seeds]
        finally:
            set_mode(self.layers, "both")

    @torch.no_grad()
    def _sample(self, seed: int, side: int, told: Conditioning) -> Tensor:
        noise, generators = initial_noise([seed], self.unet.config.in_channels, side, side)

        def denoiser(noisy: Tensor, timestep: Tensor) -> Tensor:
            return predict_noise(self.unet, noisy.to(self.unet.dtype), timestep, told).float()

        return sample(
            denoiser,
            load_scheduler(self.request.base),
            noise.to(self.unet.device),
            steps=STEPS,
            guidance=GUIDANCE,
            generators=generators,
        )

    def _decode(self, latents: dict[str, list[Tensor]]) -> dict[str, list[Image.Image]]:
        if self._vae is None:
            self._vae = load_vae_decoder(
                self.request.base, device=torch.device("cpu"), dtype=torch.float32, vae=self.request.vae
            )
        self._vae.to(self.unet.device)
        pictures = {name: decode_latents(self._vae, torch.cat(parts)) for name, parts in latents.items()}
        self._vae.to("cpu")
        empty_cache(self.unet.device)
        return pictures


def strip(rows: list[list[Image.Image]], gap: int = 4) -> Image.Image:
    """Pictures of one size as a table on white."""
    width, height = rows[0][0].size
    sheet = Image.new("RGB", (len(rows[0]) * (width + gap) - gap, len(rows) * (height + gap) - gap), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture, (x * (width + gap), y * (height + gap)))
    return sheet


def _away(empty: TextEmbeddings | None, told: Conditioning, name: str) -> Conditioning:
    """What guidance moves away from: zeros, or the empty prompt on bases that were trained with it."""
    if empty is None:
        return unconditional(told)
    empty = empty.to(device=told.full.device, dtype=told.full.dtype)
    if name == "full":
        return unconditional(told, (empty.tokens, empty.pooled))
    return Conditioning.from_prompt(empty.tokens, empty.pooled, told.time_ids)
