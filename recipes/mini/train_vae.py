"""Train the autoencoder on every style, held-out ones too, while the pictures are still being drawn."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from recipes.mini.optimize import FlatAdam, capture, learning_rate
from recipes.mini.pictures import NAMES, TEST, Store

STYLE = list(NAMES).index("style")
PEAK = 1.2e-3
KL = 3e-4
"""Weight of the mean KL per latent value against the mean loss per colour value."""


class Reconstruct(torch.nn.Module):
    """Encode, sample with the given noise, decode."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(
        self, x: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x [b, 3, h, w] and noise [b, 12, h/8, w/8] -> reconstruction, posterior mean and log variance."""
        mean, log_variance = self.vae.quant_conv(self.vae.encoder(x)).chunk(2, dim=1)
        log_variance = log_variance.clamp(-30.0, 20.0)
        latent = mean + (0.5 * log_variance).exp() * noise
        return self.vae.decoder(self.vae.post_quant_conv(latent)), mean, log_variance


class DevicePictures:
    """The drawn pictures in device memory, topped up as drawing goes on."""

    def __init__(self, store: Store, device: torch.device) -> None:
        self.store = store
        self.images = torch.zeros(store.pictures.shape, dtype=torch.uint8, device=device)
        self.labels = torch.zeros(store.labels.shape, dtype=torch.long, device=device)
        self.ready = np.zeros(len(store.kinds), bool)

    def update(self) -> int:
        """Copy the pictures drawn since the last call; return how many are here now."""
        fresh = self.store.ready()
        fresh = fresh[~self.ready[fresh]]
        for start in range(0, len(fresh), 4096):
            index = fresh[start : start + 4096]
            where = torch.from_numpy(index).to(self.images.device)
            self.images[where] = torch.from_numpy(self.store.pictures[index]).to(self.images.device)
            self.labels[where] = torch.from_numpy(self.store.labels[index]).long().to(self.images.device)
        self.ready[fresh] = True
        return int(self.ready.sum())

    def batch(self, index: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Pictures [b] as [b, 3, h, w] in -1..1."""
        return (self.images[index].to(dtype) / 127.5 - 1.0).permute(0, 3, 1, 2)


def picture_loss(made: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Absolute and squared error, edges at two scales, and colour (chroma doubled) at four pooled scales."""
    loss = F.l1_loss(made, real) + 2.0 * F.mse_loss(made, real)
    fine, fine_real = made, real
    for _ in range(2):
        for dim in (2, 3):
            loss = loss + 0.5 * F.l1_loss(fine.diff(dim=dim), fine_real.diff(dim=dim))
        fine, fine_real = F.avg_pool2d(fine, 2), F.avg_pool2d(fine_real, 2)
    error = _luma_chroma(made - real)
    for _ in range(4):
        error = F.avg_pool2d(error, 2)
        loss = loss + 0.5 * error.abs().mean()
    return loss


def train_vae(
    vae: AutoencoderKL,
    store: Store,
    device: torch.device,
    seconds: float,
    *,
    batch: int,
    compiled: bool,
    graph: bool,
    max_steps: int,
) -> dict[str, float]:
    """Train `vae` in place for `seconds` and set its scaling factor; returns the PSNR of every style."""
    steps = _fit(
        vae, store, device, seconds, batch=batch, compiled=compiled, graph=graph, max_steps=max_steps
    )
    if device.type == "cuda":
        torch.cuda.empty_cache()
    vae.to(device).eval()
    spread = torch.cat([mean.flatten() for mean, _ in _latents(vae, store, store.ready()[:2048], device)])
    vae.register_to_config(scaling_factor=round(1.0 / float(spread.std()), 4))
    return {"steps": steps, "scaling_factor": vae.config.scaling_factor, **style_psnr(vae, store, device)}


def _fit(
    vae: AutoencoderKL,
    store: Store,
    device: torch.device,
    seconds: float,
    *,
    batch: int,
    compiled: bool,
    graph: bool,
    max_steps: int,
) -> int:
    """The training loop; writes the averaged weights into `vae` and returns the number of steps."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = Reconstruct(copy.deepcopy(vae)).to(device).train()
    pictures = DevicePictures(store, device)
    waited_from = time.monotonic()
    while pictures.update() < min(2048, len(store.kinds) // 2):
        if time.monotonic() - waited_from > 90:
            raise RuntimeError(
                "no pictures to train on after 90 s: look for a drawing process's message above"
            )
        time.sleep(0.5)
    weights = _Weights(pictures)
    optimizer = FlatAdam([model], dtype)
    run = torch.compile(model) if compiled else model
    loss_sum = torch.zeros((), device=device)

    def step() -> None:
        index = weights.draw(batch)
        real = pictures.batch(index, torch.float32)
        noise = torch.randn(
            batch, vae.config.latent_channels, real.shape[2] // 8, real.shape[3] // 8, device=device
        )
        made, mean, log_variance = run(real.to(dtype), noise.to(dtype))
        made, mean, log_variance = made.float(), mean.float(), log_variance.float()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()
        loss = picture_loss(made, real) + KL * kl
        loss.backward()
        optimizer.step()
        loss_sum.add_(loss.detach())
        weights.record(index, (made.detach() - real).square().mean(dim=(1, 2, 3)) / 4.0)

    def uncompile() -> bool:
        nonlocal run
        was_compiled, run = run is not model, model
        optimizer.gradients.zero_()
        return was_compiled

    start = time.monotonic()
    optimizer.set(0.0, 0)
    replay = capture(step, uncompile, graph=graph)
    print(f"vae first step after {time.monotonic() - start:.0f} s", flush=True)
    steps, last_log, logged_steps = 0, time.monotonic(), 0
    loss_sum.zero_()
    begun = time.monotonic()
    seconds = max(seconds - (begun - start), 1.0)
    while (now := time.monotonic()) - begun < seconds and steps < max_steps:
        optimizer.set(learning_rate(PEAK, steps, (now - begun) / seconds), steps)
        replay()
        steps += 1
        if steps % 20 == 0 and device.type == "cuda":
            torch.cuda.synchronize()
        if steps % 100 == 0:
            pictures.update()
            weights.update()
        if now - last_log > 15:
            loss = float(loss_sum) / (steps - logged_steps)
            rate = (steps - logged_steps) / (now - last_log)
            print(
                f"vae {now - begun:4.0f}s step {steps} loss {loss:.4f} {rate:.1f}/s {weights.summary()}",
                flush=True,
            )
            loss_sum.zero_()
            last_log, logged_steps = now, steps
    optimizer.write_average([vae])
    return steps


@torch.no_grad()
def encode_all(vae: AutoencoderKL, store: Store, index: np.ndarray, device: torch.device) -> np.ndarray:
    """Posterior mean and standard deviation, times the scaling factor: float16 [n, 2, 12, 16, 16]."""
    scale = vae.config.scaling_factor
    pairs = [torch.stack(pair, 1) * scale for pair in _latents(vae, store, index, device)]
    return np.concatenate([pair.to(torch.float16).cpu().numpy() for pair in pairs])


@torch.no_grad()
def rebuild(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Pictures uint8 [n, h, w, 3] through the autoencoder and back."""
    made = torch.empty_like(images)
    for start in range(0, len(images), 256):
        with _autocast(images.device):
            x = images[start : start + 256].permute(0, 3, 1, 2) / 127.5 - 1.0
            y = vae.decode(vae.encode(x).latent_dist.mean).sample.float()
        made[start : start + 256] = (
            ((y + 1.0) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8)
        )
    return made


def reconstruct(vae: AutoencoderKL, images: np.ndarray, device: torch.device) -> np.ndarray:
    """`rebuild` for pictures in main memory."""
    return rebuild(vae, torch.from_numpy(images).to(device)).cpu().numpy()


def style_psnr(vae: AutoencoderKL, store: Store, device: torch.device) -> dict[str, float]:
    """Peak signal-to-noise ratio of every style in dB, from the mean squared error over test pictures."""
    ready = store.ready()
    test = ready[store.kinds[ready] == TEST]
    real = store.pictures[test]
    made = reconstruct(vae, real, device)
    error = np.square((made.astype(np.float32) - real) / 255.0).mean(axis=(1, 2, 3))
    styles = store.labels[test][:, STYLE]
    return {
        name: round(float(-10 * np.log10(error[styles == number].mean())), 2)
        for number, name in enumerate(NAMES["style"])
        if (styles == number).any()
    }


class _Weights:
    """Sampling weights of the pictures: styles evenly, but more often if harder to reconstruct."""

    def __init__(self, pictures: DevicePictures) -> None:
        device = pictures.images.device
        self.pictures = pictures
        self.error = torch.full((len(NAMES["style"]),), 0.02, device=device)
        self.sums = torch.zeros(2, len(NAMES["style"]), device=device)
        self.cumulative = torch.zeros(len(pictures.ready), dtype=torch.float64, device=device)
        self.usable = torch.from_numpy(pictures.store.kinds != TEST).to(device)
        self.update()

    def draw(self, count: int) -> torch.Tensor:
        """Indices of `count` pictures."""
        point = torch.rand(count, dtype=torch.float64, device=self.cumulative.device) * self.cumulative[-1]
        return torch.searchsorted(self.cumulative, point, right=True).clamp(max=len(self.cumulative) - 1)

    def record(self, index: torch.Tensor, error: torch.Tensor) -> None:
        """Add the squared errors of a batch to their styles."""
        style = self.pictures.labels[index, STYLE]
        self.sums[0].index_add_(0, style, error)
        self.sums[1].index_add_(0, style, torch.ones_like(error))

    def update(self) -> None:
        """Take in the recorded errors and the pictures drawn since."""
        seen = self.sums[1] > 0
        recent = torch.where(seen, self.sums[0] / self.sums[1].clamp(min=1), self.error)
        self.error.lerp_(recent, 0.5)
        self.sums.zero_()
        usable = self.usable & torch.from_numpy(self.pictures.ready).to(self.usable.device)
        style = self.pictures.labels[:, STYLE]
        count = torch.bincount(style[usable], minlength=len(self.error)).clamp(min=1)
        hardness = (self.error / self.error.mean()).pow(0.6).clamp(0.3, 4.0)
        self.cumulative.copy_(((hardness / count)[style] * usable).double().cumsum(0))

    def summary(self) -> str:
        """The mean and the three worst styles, in dB while training."""
        psnr = (-10 * self.error.log10()).tolist()
        worst = sorted(zip(psnr, NAMES["style"], strict=True))[:3]
        ready = int(self.pictures.ready.sum())
        names = " ".join(f"{name} {value:.1f}" for value, name in worst)
        return f"psnr mean {sum(psnr) / len(psnr):.1f} worst {names}; {ready} pictures"


@torch.no_grad()
def _latents(
    vae: AutoencoderKL, store: Store, index: np.ndarray, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Posterior mean and standard deviation of pictures, in batches."""
    for start in range(0, len(index), 512):
        images = torch.from_numpy(store.pictures[index[start : start + 512]]).to(device)
        with _autocast(device):
            posterior = vae.encode(images.permute(0, 3, 1, 2) / 127.5 - 1.0).latent_dist
        yield posterior.mean.float(), posterior.std.float()


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def _luma_chroma(rgb: torch.Tensor) -> torch.Tensor:
    """[b, 3, h, w] -> luma and twice the two colour differences; linear, so it may be applied to an error."""
    red, green, blue = rgb.unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return torch.stack((luma, 2.0 * (red - luma), 2.0 * (blue - luma)), 1)
