"""Drawing with many trained pairs at once, each picture with its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from benchmarks.separation.methods import Drawing, Part
from benchmarks.separation.stack import Stack, StackedBranch, StackedLinear
from unziplora_cli.sdxl.base import BaseRef
from unziplora_cli.sdxl.load import load_scheduler
from unziplora_cli.sdxl.sampling import initial_noise, sample, unconditional
from unziplora_cli.training.noise import add_noise, draw

TIMES = (100, 250, 400, 550, 700, 850)
"""Timesteps of the reconstruction error."""


@torch.no_grad()
def drawn(
    stack: Stack,
    base: BaseRef,
    vae: AutoencoderKL,
    drawings: Sequence[Drawing],
    *,
    steps: int,
    guidance: float,
    chunk: int,
) -> Iterator[tuple[Sequence[Drawing], Tensor]]:
    """The pictures uint8 [n, h, w, 3] of ``drawings``, in chunks; ``stack`` must be trained already."""
    for first in range(0, len(drawings), chunk):
        some = drawings[first : first + chunk]
        with _equipped(stack, some):
            told = stack.told([each.prompts for each in some])
            away = unconditional(told)
            shape = stack.latents.shape[2:]
            noise, _ = initial_noise([each.seed for each in some], *shape)

            def denoiser(noisy: Tensor, timestep: Tensor, told=told, away=away) -> Tensor:  # type: ignore[no-untyped-def]
                parts = noisy.chunk(2) if len(noisy) > len(told.full) else (noisy,)
                texts = (away, told) if len(parts) == 2 else (told,)
                return torch.cat(
                    [stack.predict(part, timestep, text) for part, text in zip(parts, texts, strict=True)]
                )

            latents = sample(
                denoiser, load_scheduler(base), noise.to(stack.device), steps=steps, guidance=guidance
            )
        yield some, decoded(vae, latents)


@torch.no_grad()
def rebuilding_errors(stack: Stack, drawings: Sequence[Drawing], *, chunk: int) -> Tensor:
    """Denoising loss of each drawing's training picture under its prompts, mean over timesteps, [n]."""
    found = []
    shape, total = tuple(stack.latents.shape[2:]), len(stack.alphas_cumprod)
    for first in range(0, len(drawings), chunk):
        some = drawings[first : first + chunk]
        pictures = stack.latents[torch.tensor([each.sample for each in some], device=stack.device), 0]
        losses = torch.zeros(len(some), device=stack.device)
        with _equipped(stack, some):
            told = stack.told([each.prompts for each in some])
            for number, at in enumerate(TIMES):
                noise = (
                    draw(17, number, 0, 1, shape, 1, timesteps=total)
                    .noise.to(stack.device)
                    .expand_as(pictures)
                )
                times = torch.full((len(some),), at, device=stack.device)
                noisy = add_noise(pictures, noise, stack.alphas_cumprod.to(stack.device), times)
                losses += (stack.predict(noisy, times, told) - noise).square().flatten(1).mean(dim=1)
        found.append(losses / len(TIMES))
    return torch.cat(found)


def decoded(vae: AutoencoderKL, latents: Tensor, chunk: int = 256) -> Tensor:
    """Latents [n, channels, h, w] -> pictures uint8 [n, 8 h, 8 w, 3] on the same device."""
    parts = []
    for some in latents.split(chunk):
        pixels = vae.decode(some.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
        parts.append(
            pixels.float().add(1).mul(127.5).clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        )
    return torch.cat(parts)


class _equipped:
    """Within this context every layer of a stack holds the branches of drawings, not of its trainings."""

    def __init__(self, stack: Stack, drawings: Sequence[Drawing]) -> None:
        self.stack, self.drawings = stack, drawings
        self.trained: dict[str, dict[str, StackedBranch]] = {}

    def __enter__(self) -> None:
        for name, layer in self.stack.layers.items():
            self.trained[name] = layer.branches
            layer.branches = {
                "content": self._slot(name, layer, [(each.content, each.merge) for each in self.drawings]),
                "style": self._slot(name, layer, [(each.style, each.merge) for each in self.drawings]),
            }

    def __exit__(self, *_: object) -> None:
        for name, layer in self.stack.layers.items():
            layer.branches = self.trained[name]

    def _slot(
        self, name: str, layer: StackedLinear, parts: Sequence[tuple[Part | None, bool]]
    ) -> StackedBranch:
        device, count = self.stack.device, len(self.stack.jobs)
        index, present, weighted = [], [], []
        for part, merge in parts:
            index.append(0 if part is None else part.job + count * (part.branch == "style"))
            present.append(part is not None and (not part.blocks or name.startswith(part.blocks)))
            weighted.append(merge)
        pick = torch.tensor(index, device=device)
        both = [layer.branches["content"], layer.branches["style"]]
        down, up, merge, gate = (
            torch.cat([getattr(branch, part) for branch in both])[pick]
            for part in ("down", "up", "merge", "gate")
        )
        factor = (
            torch.where(torch.tensor(weighted, device=device)[:, None], merge, torch.ones_like(merge)) * gate
        )
        up = up * (factor * torch.tensor(present, device=device)[:, None])[..., None]
        ones = torch.ones_like(gate).to(self.stack.dtype)
        dtype = self.stack.dtype
        return StackedBranch(
            nn.Parameter(down.to(dtype)), nn.Parameter(up.to(dtype)), nn.Parameter(ones), gate > 0, ones, ones
        )
