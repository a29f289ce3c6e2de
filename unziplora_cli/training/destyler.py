"""The built-in base's destyler: a small U-Net that redraws an image of any style as a photo.

It is trained by `recipes/mini` on pairs of one individual in one pose. Both images of a pair show the same
outlines, so plain regression of the pixels is sharp; what a style may hide are the colours. The network names
the two main colours, or none of those that it has words for, and draws in these, or as it sees them: a doubt
becomes one clear colour instead of a mixture, and words of the user decide where the style hides them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

EMBEDDING = 64
GROUPS = 8
DISTINCT = 105
"""Least distance of two colours, in levels, at which a marking is seen on a body."""


class MiniDestyler(nn.Module):
    """Images -> photos of the same subject in the same pose, before a plain background.

    Args:
        colors: the colours that a body, or its marking, can have: name and red, green and blue, 0 to 255.
        widths: channels at the full size, at half of it, and so on.
        size: side of the images in pixels.
    """

    WIDTHS = (32, 48, 96, 160, 192)

    def __init__(
        self, colors: Mapping[str, Sequence[int]], widths: Sequence[int] = WIDTHS, size: int = 128
    ) -> None:
        super().__init__()
        self.palette, self.colors, self.widths, self.size = dict(colors), tuple(colors), tuple(widths), size
        self.unknown = len(self.colors)
        """The index of an unknown colour."""
        self.none = len(self.colors) + 1
        """The index of none of the colours: a body as the image shows it, or no marking."""
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList(_Block(channels, out, stride=2) for channels, out in pairwise(widths))
        self.middle = _Block(widths[-1], widths[-1])
        self.guess = nn.Linear(2 * widths[-1], 2 * len(self.colors) + 2)
        self.body, self.marking = (nn.Embedding(len(self.colors) + 2, EMBEDDING) for _ in range(2))
        inner = widths[::-1]
        self.bottom = _Block(inner[0], inner[0], conditioned=True)
        self.up = nn.ModuleList(
            _Block(channels + out, out, conditioned=True) for channels, out in pairwise(inner)
        )
        self.out = nn.Sequential(
            nn.GroupNorm(GROUPS, widths[0]), nn.SiLU(), nn.Conv2d(widths[0], 3, 3, padding=1)
        )

    @torch.inference_mode()
    def forward(self, images: Tensor, colors: Tensor | None = None) -> Tensor:
        """Photos [n, 3, size, size] of ``images``, of that shape, both in [-1, 1].

        ``colors`` [n, 2] are indices of the body's and the marking's colour; ``unknown`` and None let the
        network decide.
        """
        maps = self.encode(images)
        return self.decode(maps, self.choose(maps[-1], colors)).clamp(-1.0, 1.0)

    def choose(self, coarsest: Tensor, colors: Tensor | None = None) -> Tensor:
        """``colors`` [n, 2] with the likeliest ones in place of the unknown; None: all are.

        Whether the body has one of the colours, and whether there is a marking, is decided first: a marking
        of doubtful colour is still one. Both colours are then the likeliest two that differ visibly.
        """
        if colors is None:
            colors = torch.full((len(coarsest), 2), self.unknown, device=coarsest.device)
        body, marking = (logits.log_softmax(1) for logits in self.guess_colors(coarsest))
        colored = (body[:, -1].exp() < 0.5) | (colors[:, 0] < self.unknown)
        marked = (marking[:, -1].exp() < 0.5) | (colors[:, 1] < self.unknown)
        pairs = body[:, :-1, None] + marking[:, None, :-1]  # [n, colours, colours]
        rgb = torch.tensor(list(self.palette.values()), dtype=torch.float32, device=body.device)
        pairs = pairs - 100.0 * (torch.cdist(rgb, rgb) < DISTINCT)
        index = torch.arange(self.unknown, device=body.device)
        for dim, shape in ((0, (1, -1, 1)), (1, (1, 1, -1))):
            given = colors[:, dim, None, None]
            pairs = pairs - 1e4 * ((given < self.unknown) & (index.view(shape) != given))
        best = pairs.flatten(1).argmax(1)
        likeliest = torch.stack((best // self.unknown, best % self.unknown), 1)
        plain = torch.stack((body[:, :-1].argmax(1), torch.full_like(best, self.none)), 1)
        chosen = likeliest.where(marked[:, None], plain).where(colored[:, None], self.none)
        return chosen.where(colors == self.unknown, colors)

    @torch.inference_mode()
    def body_color(self, image: Tensor) -> tuple[str, float]:
        """The body's colour in the photo of ``image`` [1, 3, size, size], or "", and how likely it is."""
        coarsest = self.encode(image)[-1]
        chosen = min(int(self.choose(coarsest)[0, 0]), len(self.colors))  # the last logit is none of them
        likely = self.guess_colors(coarsest)[0].softmax(1)[0]
        return (*self.colors, "")[chosen], float(likely[chosen])

    def encode(self, images: Tensor) -> list[Tensor]:
        """Feature maps of ``images``, from the finest to the coarsest."""
        maps = [self.stem(images)]
        for block in self.down:
            maps.append(block(maps[-1]))
        maps[-1] = self.middle(maps[-1])
        return maps

    def guess_colors(self, coarsest: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the body's colour and of the marking's, [n, colours + 1] each; last: none of them."""
        features = torch.cat((coarsest.mean(dim=(2, 3)), coarsest.amax(dim=(2, 3))), 1)
        logits: tuple[Tensor, Tensor] = self.guess(features).chunk(2, 1)
        return logits

    def decode(self, maps: Sequence[Tensor], colors: Tensor) -> Tensor:
        """The photos that ``maps`` show, in ``colors`` [n, 2]; not clamped."""
        cond = self.body(colors[:, 0]) + self.marking(colors[:, 1])
        x = self.bottom(maps[-1], cond)
        for block, skip in zip(self.up, maps[-2::-1], strict=True):
            x = block(torch.cat((F.interpolate(x, scale_factor=2.0), skip), 1), cond)
        photos: Tensor = self.out(x)
        return photos

    def save(self, folder: Path) -> None:
        """Write ``destyler.safetensors`` (float16) and ``destyler.json``."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {key: value.half().cpu().contiguous() for key, value in self.state_dict().items()}
        save_file(weights, folder / "destyler.safetensors")
        config = {"colors": self.palette, "widths": self.widths, "size": self.size}
        (folder / "destyler.json").write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> MiniDestyler:
        """Read what :meth:`save` wrote, in float32 and evaluation mode."""
        model = cls(**json.loads((folder / "destyler.json").read_text()))
        weights = load_file(folder / "destyler.safetensors")
        model.load_state_dict({key: value.float() for key, value in weights.items()})
        return model.eval()


class _Block(nn.Module):
    """A residual block; scale and shift of its second norm follow the colours if it is ``conditioned``."""

    def __init__(self, channels: int, out: int, *, stride: int = 1, conditioned: bool = False) -> None:
        super().__init__()
        self.norm_first = nn.GroupNorm(GROUPS, channels)
        self.first = nn.Conv2d(channels, out, 3, stride, 1)
        self.norm_second = nn.GroupNorm(GROUPS, out)
        self.second = nn.Conv2d(out, out, 3, 1, 1)
        self.skip = nn.Conv2d(channels, out, 1, stride) if (channels, stride) != (out, 1) else nn.Identity()
        self.modulation = nn.Linear(EMBEDDING, 2 * out) if conditioned else None

    def forward(self, x: Tensor, cond: Tensor | None = None) -> Tensor:
        y = self.norm_second(self.first(F.silu(self.norm_first(x))))
        if self.modulation is not None and cond is not None:
            scale, shift = self.modulation(cond)[..., None, None].chunk(2, 1)
            y = y * (1.0 + scale) + shift
        result: Tensor = self.skip(x) + self.second(F.silu(y))
        return result
