"""The classifier: a small network that names subject, style, context, marking and colour of a picture."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

WIDTHS = (32, 64, 96, 128)
IDENTITY = 64


class Classifier(nn.Module):
    """A residual CNN with one classifier for each label, and an embedding of who is in the picture."""

    def __init__(self, names: dict[str, tuple[str, ...]], size: int = 128) -> None:
        super().__init__()
        self.names = names
        self.size = size
        self.stem = nn.Sequential(
            nn.Conv2d(3, WIDTHS[0], 3, 2, 1, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU()
        )
        pairs = zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False)
        self.blocks = nn.Sequential(*(_Residual(i, o, 1 if n == 0 else 2) for n, (i, o) in enumerate(pairs)))
        features = 2 * WIDTHS[-1]
        self.heads = nn.ModuleDict({label: nn.Linear(features, len(words)) for label, words in names.items()})
        self.identity = nn.Linear(features, IDENTITY)

    def forward(self, x: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Pictures [n, 3, size, size] in -1..1 -> logits of each label, unit embeddings [n, 64]."""
        maps = self.blocks(self.stem(x))  # [n, 128, size / 16, size / 16]
        features = torch.cat((maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))), dim=1)
        logits = {label: head(features) for label, head in self.heads.items()}
        return logits, F.normalize(self.identity(features), dim=1)

    @torch.inference_mode()
    def predict(self, pictures: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Pictures uint8 [n, h, w, 3] -> class numbers [n] of each label, unit embeddings [n, 64]."""
        weight = self.identity.weight
        x = pictures.to(weight.device, weight.dtype).permute(0, 3, 1, 2) / 127.5 - 1.0
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        logits, identity = self(x)
        return {label: value.argmax(1) for label, value in logits.items()}, identity

    def classify(self, pictures: torch.Tensor) -> list[dict[str, str]]:
        """Pictures uint8 [n, h, w, 3] -> the word for each label of each picture."""
        return self.class_names(self.predict(pictures)[0])

    def class_names(self, predictions: dict[str, torch.Tensor]) -> list[dict[str, str]]:
        """Class numbers of each label, as `look` finds them -> the word for each label of each picture."""
        columns = {
            label: [self.names[label][i] for i in numbers.tolist()] for label, numbers in predictions.items()
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def save(self, folder: Path) -> None:
        """Write `classifier.safetensors` (float16) and `classifier.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        half = {
            key: value.half() if value.is_floating_point() else value
            for key, value in self.state_dict().items()
            if not key.endswith("num_batches_tracked")
        }
        save_file(
            {key: value.cpu().contiguous() for key, value in half.items()}, folder / "classifier.safetensors"
        )
        config = {"names": self.names, "size": self.size}
        (folder / "classifier.json").write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Classifier:
        """Read what `save` wrote, in float32, ready to look."""
        config = json.loads((folder / "classifier.json").read_text())
        classifier = cls({label: tuple(words) for label, words in config["names"].items()}, config["size"])
        weights = {key: value.float() for key, value in load_file(folder / "classifier.safetensors").items()}
        missing, unexpected = classifier.load_state_dict(weights, strict=False)
        if unexpected or any(not key.endswith("num_batches_tracked") for key in missing):
            raise ValueError(f"{folder} holds another classifier: missing {missing}, unexpected {unexpected}")
        return classifier.eval()


class _Residual(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.norm_first = nn.BatchNorm2d(out)
        self.second = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm_second = nn.BatchNorm2d(out)
        self.skip = nn.Conv2d(channels, out, 1, stride) if (channels, stride) != (out, 1) else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm_first(self.first(x)))
        return F.relu(self.norm_second(self.second(y)) + self.skip(x))
