"""The two public models that look at pictures where there is no judge: DINOv2 and CLIP.

They are read from Hugging Face's own cache; nothing is fetched here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from unziplora_cli.diffusion.snapshots import find
from unziplora_cli.errors import ModelError

DINO, CLIP = "facebook/dinov2-base", "openai/clip-vit-large-patch14"
FILES = {
    DINO: ("config.json", "preprocessor_config.json", "model.safetensors"),
    CLIP: (
        "config.json",
        "preprocessor_config.json",
        "tokenizer_config.json",
        "vocab.json",
        "merges.txt",
        "model.safetensors",
    ),
}
"""What is needed of each model."""


def missing() -> tuple[str, ...]:
    """The models that are not on this disk, or not with all files."""
    return tuple(id for id in FILES if _folder(id) is None)


@dataclass(frozen=True, slots=True)
class Encoders:
    """Pictures and texts to unit vectors."""

    dino: Any
    clip: Any
    dino_pictures: Any
    clip_pictures: Any
    clip_texts: Any

    @classmethod
    def load(cls) -> Encoders:
        """Both models from the cache, in float32 on the CPU; raises ModelError.

        A few dozen small pictures take them seconds there, and a GPU's memory stays free for drawing.
        """
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        dino, clip = _folder(DINO), _folder(CLIP)
        if dino is None or clip is None:
            raise ModelError(f"{', '.join(missing())} is not on this disk.", hint="Add --pull to fetch it.")
        try:
            return cls(
                dino=_model(transformers.Dinov2Model, dino),
                clip=_model(transformers.CLIPModel, clip),
                dino_pictures=transformers.BitImageProcessor.from_pretrained(dino, local_files_only=True),
                clip_pictures=transformers.CLIPImageProcessor.from_pretrained(clip, local_files_only=True),
                clip_texts=transformers.CLIPTokenizer.from_pretrained(clip, local_files_only=True),
            )
        except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
            reason = str(error).strip().split("\n")[0]
            raise ModelError(
                f"Cannot load DINOv2 or CLIP: {reason}", hint="Fetch them again with --pull."
            ) from error

    @torch.inference_mode()
    def who(self, pictures: Sequence[Image.Image]) -> Tensor:
        """DINOv2's view of n pictures, [n, 768]."""
        rows = []
        for picture in pictures:
            pixels = self.dino_pictures(picture.convert("RGB"), return_tensors="pt").pixel_values
            rows.append(self.dino(pixels).pooler_output)
        return F.normalize(torch.cat(rows), dim=1)

    @torch.inference_mode()
    def how(self, pictures: Sequence[Image.Image]) -> Tensor:
        """CLIP's view of n pictures, [n, 768], to be compared with each other's and with texts'."""
        rows = []
        for picture in pictures:
            pixels = self.clip_pictures(picture.convert("RGB"), return_tensors="pt").pixel_values
            pooled = self.clip.vision_model(pixels).pooler_output
            rows.append(self.clip.visual_projection(pooled))
        return F.normalize(torch.cat(rows), dim=1)

    @torch.inference_mode()
    def words(self, texts: Sequence[str]) -> Tensor:
        """CLIP's view of n texts, [n, 768]."""
        ids = self.clip_texts(list(texts), padding=True, truncation=True, return_tensors="pt")
        pooled = self.clip.text_model(**ids).pooler_output
        return F.normalize(self.clip.text_projection(pooled), dim=1)


def _folder(id: str) -> Path | None:
    snapshot = find(id)
    if snapshot is None or not all((snapshot.path / name).is_file() for name in FILES[id]):
        return None
    return snapshot.path


def _model(cls: Any, folder: Path) -> Any:
    model = cls.from_pretrained(folder, use_safetensors=True, local_files_only=True, dtype=torch.float32)
    return model.eval().requires_grad_(False)
