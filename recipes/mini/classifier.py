"""Train the classifier on drawn images, many of them decoded by the autoencoder as generated ones are."""

from __future__ import annotations

import time

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from recipes.mini.optimize import learning_rate
from recipes.mini.pictures import BASE, GROUPED, NAMES, TEST, Store
from recipes.mini.train_vae import DevicePictures, rebuild
from unziplora_cli.evaluation.scorers import Classifier

PEAK, PEAK_AGAIN = 2e-3, 1.2e-3
"""Highest learning rate of a new classifier, and of one that is trained on."""
GROUP_SHARE = 3
"""One batch in this many parts is made of pairs of pictures of one individual."""


def train_classifier(
    vae: AutoencoderKL,
    store: Store,
    device: torch.device,
    seconds: float,
    *,
    batch: int,
    max_steps: int,
    trained: Classifier | None = None,
) -> tuple[Classifier, dict[str, float]]:
    """Train a classifier, or continue to train one, for `seconds`; returns it and its test accuracy."""
    peak = PEAK if trained is None else PEAK_AGAIN
    begun = time.monotonic()
    pictures = DevicePictures(store, device)
    pictures.update()
    ready = np.flatnonzero(pictures.ready)
    chosen = ready[(store.kinds[ready] != BASE) | (ready % 4 == 0)]
    has_rebuilt = torch.zeros(len(pictures.images), dtype=torch.bool, device=device)
    rebuilt = pictures.images.clone()
    for start in range(0, len(chosen), 4096):
        rows = torch.from_numpy(chosen[start : start + 4096]).to(device)
        rebuilt[rows] = rebuild(vae, pictures.images[rows])
        has_rebuilt[rows] = True
    train = torch.from_numpy(ready[store.kinds[ready] != TEST]).to(device)
    pairs = _pairs(store, ready, device)
    torch.manual_seed(3)
    classifier = (trained or Classifier(NAMES)).float().to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=0.02)
    last_log, steps = time.monotonic(), 0
    print(
        f"classifier starts on {len(ready)} pictures and {len(pairs)} pairs after {last_log - begun:.0f} s",
        flush=True,
    )
    while (now := time.monotonic()) - begun < seconds and steps < max_steps:
        share = max((now - begun) / seconds, steps / max_steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(peak, steps, share)
        picked = torch.randint(len(pairs), (batch // GROUP_SHARE // 2,), device=device)
        same = pairs[picked].T.reshape(-1)  # first of each pair, then second
        rest = train[torch.randint(len(train), (batch - len(same),), device=device)]
        index = torch.cat((same, rest))
        through = has_rebuilt[index] & (torch.rand(len(index), device=device) < 0.6)
        images = torch.where(through[:, None, None, None], rebuilt[index], pictures.images[index])
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits, identity = classifier(degrade(images.permute(0, 3, 1, 2).float() / 127.5 - 1.0))
        labels = pictures.labels[index]
        loss = sum(
            (
                F.cross_entropy(logits[name].float(), labels[:, n], label_smoothing=0.02)
                for n, name in enumerate(NAMES)
            ),
            torch.zeros((), device=device),
        )
        loss = loss + 0.5 * _contrast(identity[: len(same)].float())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        steps += 1
        if steps % 20 == 0 and device.type == "cuda":
            torch.cuda.synchronize()
        if now - last_log > 15:
            print(f"classifier {now - begun:4.0f}s step {steps} loss {float(loss.detach()):.3f}", flush=True)
            last_log = now
    classifier.eval()
    report = {"steps": float(steps)}
    test = ready[store.kinds[ready] == TEST]
    for kind, images in (("real", pictures.images), ("rebuilt", rebuilt)):
        for label, value in accuracy(classifier, images, test, store.labels[test]).items():
            report[f"{kind} {label}"] = value
        report[f"{kind} identity of 6"] = retrieval(classifier, images, pairs)
    return classifier, report


def accuracy(
    classifier: Classifier, images: torch.Tensor, index: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    """Accuracy of each label; images uint8 [n, h, w, 3] on any device."""
    correct: dict[str, list[np.ndarray]] = {name: [] for name in NAMES}
    for start in range(0, len(index), 512):
        rows = torch.from_numpy(index[start : start + 512]).to(images.device)
        predicted, _ = classifier.predict(images[rows])
        for n, name in enumerate(NAMES):
            correct[name].append(predicted[name].cpu().numpy() == labels[start : start + 512, n])
    return {name: round(float(np.concatenate(hits).mean()), 4) for name, hits in correct.items()}


def retrieval(classifier: Classifier, images: torch.Tensor, pairs: torch.Tensor, trials: int = 500) -> float:
    """How often the most similar of six pictures shows the same individual.

    The individuals were part of the training, so this is a sanity check, not a measurement.
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(pairs), (trials, 6), generator=generator).to(pairs.device)
    _, queries = classifier.predict(images[pairs[rows[:, 0], 0]])
    candidates = torch.stack([classifier.predict(images[pairs[rows[:, n], 1]])[1] for n in range(6)], 1)
    return round(float(((queries[:, None] * candidates).sum(-1).argmax(1) == 0).float().mean()), 4)


def degrade(x: torch.Tensor) -> torch.Tensor:
    """Blur, shift, mirror, brighten, tint and add noise, each a little and each to some of the pictures."""
    n, device = len(x), x.device
    pick = torch.rand(5, n, 1, 1, 1, device=device)
    x = torch.where(pick[0] < 0.5, x.flip(3), x)
    x = torch.where(pick[1] < 0.35, F.avg_pool2d(F.pad(x, (1, 1, 1, 1), "replicate"), 3, 1), x)
    across, down = torch.randint(-4, 5, (2,)).tolist()
    x = F.pad(x, (4, 4, 4, 4), "replicate")[
        :, :, 4 + down : x.shape[2] + 4 + down, 4 + across : x.shape[3] + 4 + across
    ]
    gain = 1.0 + 0.08 * (2 * pick[2] - 1)
    tint = 0.04 * torch.randn(n, 3, 1, 1, device=device)
    noise = 0.06 * pick[3] * (pick[4] < 0.5) * torch.randn_like(x)
    return (x * gain + tint + noise).clamp(-1.0, 1.0)


def _pairs(store: Store, ready: np.ndarray, device: torch.device) -> torch.Tensor:
    """All pairs of drawn pictures of one individual: [m, 2]."""
    grouped = ready[store.kinds[ready] == GROUPED]
    grouped = grouped[np.argsort(store.groups[grouped], kind="stable")]
    result = []
    for apart in (1, 2, 3):
        same = store.groups[grouped[:-apart]] == store.groups[grouped[apart:]]
        result.append(np.stack((grouped[:-apart][same], grouped[apart:][same]), 1))
    return torch.from_numpy(np.concatenate(result)).to(device)


def _contrast(identity: torch.Tensor, temperature: float = 0.1) -> torch.Tensor:
    """Each picture must find its partner in the batch; identity holds the firsts, then the seconds."""
    similarity = identity @ identity.T / temperature
    similarity = similarity.masked_fill(
        torch.eye(len(identity), dtype=torch.bool, device=identity.device), -1e4
    )
    return F.cross_entropy(
        similarity, torch.arange(len(identity), device=identity.device).roll(len(identity) // 2)
    )
