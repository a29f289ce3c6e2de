"""Generate images with many trained LoRA pairs at once; every image of a batch uses its own pair."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from benchmarks.separation.methods import BranchRef, ImageRequest
from benchmarks.separation.stack import Stack, StackedLinear
from unziplora_cli.method.layer import Branch
from unziplora_cli.sdxl.base import BaseRef
from unziplora_cli.sdxl.load import load_scheduler
from unziplora_cli.sdxl.sampling import initial_noise, sample
from unziplora_cli.sdxl.text import unconditional
from unziplora_cli.training.noise import add_noise, step_noise

TIMES = (100, 250, 400, 550, 700, 850)
"""Timesteps at which the reconstruction error is measured."""


@torch.no_grad()
def generate_images(
    stack: Stack,
    base: BaseRef,
    vae: AutoencoderKL,
    requests: Sequence[ImageRequest],
    *,
    steps: int,
    guidance: float,
    batch_size: int,
) -> Iterator[tuple[Sequence[ImageRequest], Tensor]]:
    """Generate ``requests`` in chunks: yields requests and their images, uint8 [n, h, w, 3].

    ``stack`` must be trained already.
    """
    for first in range(0, len(requests), batch_size):
        batch = requests[first : first + batch_size]
        with _loaded_branches(stack, batch):
            cond = stack.conditioning_of([request.prompts for request in batch])
            uncond = unconditional(cond)
            shape = stack.latents.shape[2:]
            noise, _ = initial_noise([request.seed for request in batch], *shape)

            def denoiser(noisy: Tensor, timestep: Tensor, cond=cond, uncond=uncond) -> Tensor:  # type: ignore[no-untyped-def]
                parts = noisy.chunk(2) if len(noisy) > len(cond.full) else (noisy,)
                texts = (uncond, cond) if len(parts) == 2 else (cond,)
                return torch.cat(
                    [stack.predict(part, timestep, text) for part, text in zip(parts, texts, strict=True)]
                )

            latents = sample(
                denoiser, load_scheduler(base), noise.to(stack.device), steps=steps, guidance=guidance
            )
        yield batch, decode(vae, latents)


@torch.no_grad()
def reconstruction_errors(stack: Stack, requests: Sequence[ImageRequest], *, batch_size: int) -> Tensor:
    """Denoising loss of the training image of every request under its prompts, mean over timesteps, [n]."""
    errors = []
    shape, total = tuple(stack.latents.shape[2:]), len(stack.alphas_cumprod)
    for first in range(0, len(requests), batch_size):
        batch = requests[first : first + batch_size]
        images = stack.latents[torch.tensor([request.sample for request in batch], device=stack.device), 0]
        losses = torch.zeros(len(batch), device=stack.device)
        with _loaded_branches(stack, batch):
            cond = stack.conditioning_of([request.prompts for request in batch])
            for number, timestep in enumerate(TIMES):
                noise = (
                    step_noise(17, number, 0, 1, shape, 1, timesteps=total)
                    .noise.to(stack.device)
                    .expand_as(images)
                )
                times = torch.full((len(batch),), timestep, device=stack.device)
                noisy = add_noise(images, noise, stack.alphas_cumprod.to(stack.device), times)
                losses += (stack.predict(noisy, times, cond) - noise).square().flatten(1).mean(dim=1)
        errors.append(losses / len(TIMES))
    return torch.cat(errors)


def decode(vae: AutoencoderKL, latents: Tensor, batch_size: int = 256) -> Tensor:
    """Latents [n, channels, h, w] -> images, uint8 [n, 8 h, 8 w, 3], on the same device."""
    parts = []
    for batch in latents.split(batch_size):
        pixels = vae.decode(batch.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
        parts.append(
            pixels.float().add(1).mul(127.5).clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1)
        )
    return torch.cat(parts)


class _loaded_branches:
    """Within this context every layer of a stack holds the branches of the requests, not of its trainings."""

    def __init__(self, stack: Stack, requests: Sequence[ImageRequest]) -> None:
        self.stack, self.requests = stack, requests
        self.trained: dict[str, dict[str, Branch]] = {}

    def __enter__(self) -> None:
        for name, layer in self.stack.layers.items():
            self.trained[name] = layer.branches
            layer.branches = {
                "content": self._slot(
                    name, layer, [(request.content, request.merge) for request in self.requests]
                ),
                "style": self._slot(
                    name, layer, [(request.style, request.merge) for request in self.requests]
                ),
            }

    def __exit__(self, *_: object) -> None:
        for name, layer in self.stack.layers.items():
            layer.branches = self.trained[name]

    def _slot(
        self, name: str, layer: StackedLinear, parts: Sequence[tuple[BranchRef | None, bool]]
    ) -> Branch:
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
        return Branch(down.to(self.stack.dtype), up.to(self.stack.dtype))
