r"""Train the network that names the subject of any picture: `python -m recipes.mini.train_subjects`.

The cut-outs are put before backgrounds made at random, in other sizes, colours and styles, anew in every step
and on the device, since what the network must name are pictures that no recipe drew. Scenes of the recipe,
drawn meanwhile, are mixed in. Held-out sets, and one in 33 of the other pictures, are for tests alone.

    python -m recipes.mini.train_subjects --cutouts artwork/cutouts \
        --others artwork/strangers/others.npz --work work --out out
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.mini import artists
from recipes.mini.classifier import degrade, grown, pick
from recipes.mini.optimize import learning_rate
from recipes.mini.pictures import BASE, TEST, Plan, Store, start_drawing
from recipes.mini.random_styles import FAMILIES, Planes, blur, paint_randomly
from unziplora_cli import resources
from unziplora_cli.evaluation.scorers import Classifier

SIZE = 128
PEAK = 1.5e-3
OFTEN = 3
"""How often a picture that no set contains is shown for one of a set's: there are few."""
DRAWN_SHARE = 5
"""One picture in this many of a batch was drawn by the recipe."""


class Cutouts:
    """All cut-outs on the device, [n, 4, 104, 104] in 0..1, and the numbers of their subjects."""

    def __init__(
        self,
        folder: Path,
        names: tuple[str, ...],
        device: torch.device,
        purpose: str,
        others: Path | None = None,
    ) -> None:
        pictures, labels = [], []
        for set_name in artists.shown(folder):
            for subject, picture in artists.load(folder, set_name).items():
                if artists.split(subject, set_name) == purpose:
                    pictures.append(picture)
                    labels.append(names.index(subject))
        if others:
            with np.load(others) as extra:
                for subject, picture in zip(extra["names"].tolist(), extra["pictures"], strict=True):
                    pictures += [picture] * OFTEN
                    labels += [names.index(subject)] * OFTEN
        self.pictures = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).to(device)
        self.labels = torch.tensor(labels, device=device)

    def draw(self, count: int, *, painted_share: float = 0.5) -> tuple[Tensor, Tensor]:
        """``count`` pictures in -1..1, a share of them in styles made at random, and their subjects."""
        index = torch.randint(len(self.labels), (count,), device=self.labels.device)
        front, alpha = place(self.pictures[index].float() / 255)
        back = backgrounds(count, front.device)
        flat = recolor(front, alpha)
        images = flat + back * (1 - alpha)
        painted = int(count * painted_share) // len(FAMILIES) * len(FAMILIES)
        if painted:
            part = slice(painted)
            planes = planes_of(flat[part], back[part], alpha[part])
            images = torch.cat((paint_randomly(planes), images[painted:]))
        return degrade(images * 2 - 1), self.labels[index]


def place(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Cut-outs mirrored, turned, scaled and moved: colours weighted by coverage [n, 3, h, w], coverage."""
    n, device = len(pictures), pictures.device

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, device=device)

    angle = uniform(-1, 1) * torch.where(uniform(0, 1) < 0.7, 0.12, 0.6)
    scale = uniform(1.02, 1.7)
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    stretch = uniform(0.85, 1.18)
    room = (1 - 1 / scale).clamp(min=0.0)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = [
        torch.stack((flip * cos * stretch, -flip * sin, scale * room * uniform(-0.8, 0.8)), 1),
        torch.stack((sin * stretch, cos, scale * room * uniform(-0.8, 0.8)), 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), [n, 4, SIZE, SIZE], align_corners=False)
    weighted = torch.cat((pictures[:, :3] * pictures[:, 3:], pictures[:, 3:]), 1)
    moved = F.grid_sample(weighted, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved[:, :3], moved[:, 3:].clamp(0, 1)


def backgrounds(count: int, device: torch.device) -> Tensor:
    """White, plain, graded, clouded, striped, and with a floor: [count, 3, h, w]."""

    def color(pale: float) -> Tensor:
        return pale + (1 - pale) * torch.rand(count, 3, 1, 1, device=device)

    def chance(probability: float) -> Tensor:
        return (torch.rand(count, 1, 1, 1, device=device) < probability).float()

    y = torch.linspace(0, 1, SIZE, device=device).view(1, 1, SIZE, 1).expand(count, 1, SIZE, SIZE)
    x = y.transpose(2, 3)
    first = torch.where(chance(0.6) > 0, color(0.6), color(0.0))
    second = torch.where(chance(0.6) > 0, color(0.6), color(0.0))
    cells = torch.randint(3, 14, (1,)).item()
    cloud = F.interpolate(
        torch.rand(count, 1, int(cells), int(cells), device=device), (SIZE, SIZE), mode="bicubic"
    )
    angle = torch.rand(count, 1, 1, 1, device=device) * math.pi
    along = x * angle.cos() + y * angle.sin()
    stripes = ((along * (4 + 20 * torch.rand(count, 1, 1, 1, device=device))) % 1 > 0.5).float()
    floor = (y > 0.5 + 0.4 * torch.rand(count, 1, 1, 1, device=device)).float()
    amount = torch.zeros(count, 1, SIZE, SIZE, device=device)
    kind = torch.randint(6, (count, 1, 1, 1), device=device)
    for number, field in enumerate((along, cloud.clamp(0, 1), stripes, floor), 2):
        amount = torch.where(kind == number, field, amount)
    back = first + (second - first) * amount
    return torch.where(kind == 0, torch.ones_like(back), back)


def recolor(front: Tensor, alpha: Tensor) -> Tensor:
    """Some cut-outs with mixed channels, in gray, darker or paler, or with another outline."""
    n, device = len(front), front.device

    def chance(probability: float) -> Tensor:
        return (torch.rand(n, 1, 1, 1, device=device) < probability).float()

    mixing = torch.eye(3, device=device) + 0.5 * torch.randn(n, 3, 3, device=device)
    mixing = (mixing / mixing.sum(2, keepdim=True).clamp(min=0.4)).clamp(-1.5, 1.5)
    mixed = torch.einsum("nij,njhw->nihw", mixing, front).clamp(0, 1) * (alpha > 0)
    mixed = torch.minimum(mixed, alpha)
    result = torch.where(chance(0.3) > 0, mixed, front)
    gray = front.mean(1, keepdim=True).expand_as(front)
    result = torch.where(chance(0.12) > 0, gray, result)
    gain = 0.6 + 0.7 * torch.rand(n, 1, 1, 1, device=device)
    return torch.minimum((result * gain).clamp(0, 1), alpha)


def planes_of(front: Tensor, back: Tensor, alpha: Tensor) -> Planes:
    """What random styles are made of: the borders of the cut-out and of its colours are the lines."""
    tone = front.mean(1, keepdim=True)

    def edges(field: Tensor) -> Tensor:
        across = F.pad(field, (1, 1, 0, 0), "replicate")
        down = F.pad(field, (0, 0, 1, 1), "replicate")
        slope = (across[..., 2:] - across[..., :-2]).abs() + (down[..., 2:, :] - down[..., :-2, :]).abs()
        return slope.amax(1, keepdim=True)

    outline = (blur(edges(alpha), 0.7) * 1.6).clamp(0, 1)
    detail = (edges(front) * 3 - 0.2).clamp(0, 1) * alpha
    far = (edges(back) * 2).clamp(0, 1)
    return Planes(front, back, alpha, tone, outline, detail, far, torch.zeros_like(alpha))


@torch.no_grad()
def accuracy(network: Classifier, draw: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """How often the likeliest subject is right, and how often the right one has a probability of a tenth."""
    logits = torch.cat([network(images)[0]["subject"].float() for images, _ in draw])
    truth = torch.cat([labels for _, labels in draw])
    likelihood = logits.softmax(1).gather(1, truth[:, None])[:, 0]
    return {
        "right": round(float((logits.argmax(1) == truth).float().mean()), 3),
        "likely": round(float((likelihood >= 0.1).float().mean()), 3),
    }


def train(
    network: Classifier, cutouts: Cutouts, store: Store, seconds: float, *, batch: int, max_steps: int
) -> int:
    """Train ``network`` for `seconds`; returns the number of steps."""
    device = cutouts.labels.device
    network.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=PEAK, betas=(0.9, 0.99), weight_decay=0.02, fused=device.type == "cuda"
    )
    drawn: tuple[Tensor, Tensor] | None = None
    begun = last_log = last_look = time.monotonic()
    steps = 0
    while (now := time.monotonic()) - begun < seconds and steps < max_steps:
        if now - last_look > 5 and (drawn is None or now - begun < 60):
            drawn, last_look = drawn_pictures(store, device, BASE), now
        images, labels = cutouts.draw(batch)
        if drawn is not None and len(drawn[1]):
            rows = pick(torch.arange(len(drawn[1]), device=device), batch // DRAWN_SHARE)
            shown = degrade(drawn[0][rows].permute(0, 3, 1, 2).float() / 127.5 - 1)
            images, labels = torch.cat((images, shown)), torch.cat((labels, drawn[1][rows]))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(PEAK, steps, (now - begun) / seconds)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits, _ = network(images.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits["subject"].float(), labels, label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        steps += 1
        if steps % 10 == 0 and device.type == "cuda":
            torch.cuda.synchronize()
        if now - last_log > 15:
            print(f"{now - begun:4.0f}s step {steps} loss {float(loss.detach()):.3f}", flush=True)
            last_log = now
    network.eval()
    return steps


def drawn_pictures(store: Store, device: torch.device, kind: int) -> tuple[Tensor, Tensor]:
    """The drawn pictures of a kind that are ready, uint8 [n, h, w, 3], and their subjects."""
    ready = store.ready()
    ready = ready[store.kinds[ready] == kind]
    pictures = torch.from_numpy(store.pictures[ready]).to(device)
    return pictures, torch.from_numpy(store.labels[ready, 0].astype(np.int64)).to(device)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cutouts", type=Path, required=True)
    parser.add_argument("--others", type=Path, help="others.npz, as `recipes.mini.strangers` writes it")
    parser.add_argument("--work", type=Path, required=True, help="folder for drawn pictures")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--widths",
        type=int,
        nargs=4,
        help="channels of a network from scratch; default: go on from the reader",
    )
    parser.add_argument("--drawn", type=int, default=6_000)
    parser.add_argument("--seconds", type=float, default=100.0)
    parser.add_argument("--batch", type=int, default=448)
    parser.add_argument("--max-steps", type=int, default=10**9)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--seed", type=int, default=5, help="of the weights and the augmentation")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    plan = Plan(
        base=args.drawn, held_out=0, groups=0, test=args.drawn // 10, artworks=0, artworks_test=0, seed=9
    )
    store = Store.create(args.work, plan)
    start_drawing(args.work, args.workers, time.time() + args.seconds)
    names = artists.subjects()
    network = grown(Classifier.load(resources.reader(), "reader"), {"subject": names})
    torch.manual_seed(args.seed)
    if args.widths:
        network = Classifier({"subject": names}, widths=args.widths)
    cutouts = Cutouts(args.cutouts, names, device, artists.TRAIN, args.others)
    steps = train(network, cutouts, store, args.seconds, batch=args.batch, max_steps=args.max_steps)
    network.save(args.out, "subjects")
    report: dict[str, object] = {"steps": steps, "pictures": len(cutouts.labels)}
    unseen = Cutouts(args.cutouts, names, device, artists.TEST)
    batch = min(args.batch, 224)
    report["unseen pictures"] = accuracy(network, [unseen.draw(batch, painted_share=0) for _ in range(4)])
    held_out = Cutouts(args.cutouts, names, device, artists.HELD_OUT)
    report["held-out sets"] = accuracy(network, [held_out.draw(batch, painted_share=0) for _ in range(4)])
    pictures, labels = drawn_pictures(store, device, TEST)
    images = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
    report["drawn"] = accuracy(network, list(zip(images.split(224), labels.split(224), strict=True)))
    print(json.dumps(report), flush=True)
    (args.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
