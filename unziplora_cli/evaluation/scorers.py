"""Scorers name what generated images show: the built-in base's classifier, or DINOv2 with CLIP."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unziplora_cli.config import Words
from unziplora_cli.errors import ModelError, Remedy
from unziplora_cli.evaluation.prompts import CONTEXTS, SUBJECTS
from unziplora_cli.hub import find_snapshot
from unziplora_cli.prompts import PHOTO

ILLUSTRATION = "illustration"
"""The style of an image that is neither a photo nor in the project's style."""


@dataclass(frozen=True, slots=True)
class ImageScore:
    """What a scorer sees in one image.

    Attributes:
        subject, style, context: names from the scorer's vocabulary.
        identity: similarity of the subject to the training image's.
        style_similarity: similarity of the whole image to the training image; None if not measured.
        prompt_similarity: similarity of the image to its prompt; None if not measured.

    Similarities are cosines.
    """

    subject: str
    style: str
    context: str
    identity: float
    style_similarity: float | None = None
    prompt_similarity: float | None = None


class ClassifierScorer:
    """Scores images by the built-in base's classifier, which knows every class of that base.

    Attributes:
        subject, style: the classifier's names for those of the training image.
        seen: the subject that it sees in the training image; another one if it cannot read the image.
        notes: what a person should know about these names.
    """

    name = "the built-in classifier"

    def __init__(self, folder: Path, training: Sequence[Image.Image], words: Words) -> None:
        self._classifier = Classifier.load(folder)
        predictions, self._identity = self._classifier.predict(_pixels(training))  # [images, 64]
        names = self._classifier.class_names(predictions)[0]
        self.seen = names["subject"]
        self.subject, subject_notes = self._resolve("subject", words.subject, names["subject"])
        self.style, style_notes = self._resolve("style", words.style, names["style"])
        self.notes = (*subject_notes, *style_notes)

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[ImageScore]:
        """Score each image; prompts are not used."""
        predictions, embeddings = self._classifier.predict(_pixels(images))
        identities = (embeddings @ self._identity.T).mean(dim=1).tolist()
        return [
            ImageScore(names["subject"], names["style"], names["context"], identity)
            for names, identity in zip(self._classifier.class_names(predictions), identities, strict=True)
        ]

    def _resolve(self, label: str, word: str, predicted: str) -> tuple[str, tuple[str, ...]]:
        """The class for the user's word: the word itself if it is a class, else the predicted class."""
        normalized = " ".join(word.lower().split())
        if normalized not in self._classifier.names[label]:
            return predicted, (
                f'The classifier has no {label} "{word}". It sees "{predicted}" in the training image '
                "and uses that instead.",
            )
        if normalized != predicted:
            return normalized, (
                f'The classifier sees "{predicted}" in the training image, not the {label} "{word}"; '
                "its scores for that may be wrong.",
            )
        return normalized, ()


class Classifier(nn.Module):
    """A small residual CNN with one classification head per label, and an embedding of the individual.

    Args:
        names: the class names of each label (subject, style, context, marking, color).
        size: side of the input images in pixels.
        widths: channels of the four stages.
    """

    WIDTHS = (32, 64, 96, 128)
    EMBEDDING = 64

    def __init__(
        self, names: Mapping[str, Sequence[str]], size: int = 128, widths: Sequence[int] = WIDTHS
    ) -> None:
        super().__init__()
        self.names = {label: tuple(classes) for label, classes in names.items()}
        self.size = size
        self.widths = tuple(widths)
        first, *_, last = widths
        self.stem = nn.Sequential(nn.Conv2d(3, first, 3, 2, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU())
        channels = zip((first, *widths), widths, strict=False)
        self.blocks = nn.Sequential(
            *(_ResidualBlock(in_, out, 1 if i == 0 else 2) for i, (in_, out) in enumerate(channels))
        )
        self.heads = nn.ModuleDict({label: nn.Linear(2 * last, len(names)) for label, names in names.items()})
        self.identity = nn.Linear(2 * last, self.EMBEDDING)

    def forward(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Images [n, 3, size, size] in -1..1 -> logits of each label, unit embeddings [n, 64]."""
        maps = self.blocks(self.stem(x))  # [n, 128, size / 16, size / 16]
        features = torch.cat((maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))), dim=1)
        logits = {label: head(features) for label, head in self.heads.items()}
        return logits, F.normalize(self.identity(features), dim=1)

    @torch.inference_mode()
    def predict(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Images uint8 [n, h, w, 3] -> class indices [n] of each label, unit embeddings [n, 64]."""
        weight = self.identity.weight
        x = images.to(weight.device, weight.dtype).permute(0, 3, 1, 2) / 127.5 - 1.0
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        logits, embeddings = self(x)
        return {label: values.argmax(1) for label, values in logits.items()}, embeddings

    def classify(self, images: Tensor) -> list[dict[str, str]]:
        """Images uint8 [n, h, w, 3] -> the class name of each label, for each image."""
        return self.class_names(self.predict(images)[0])

    def class_names(self, predictions: Mapping[str, Tensor]) -> list[dict[str, str]]:
        """Class indices from :meth:`predict` -> the class name of each label, for each image."""
        columns = {
            label: [self.names[label][index] for index in indices.tolist()]
            for label, indices in predictions.items()
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def save(self, folder: Path, name: str = "classifier", **more: object) -> None:
        """Write ``name``.safetensors (float16) and ``name``.json, with ``more`` entries in the latter."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {
            key: (value.half() if value.is_floating_point() else value).cpu().contiguous()
            for key, value in self.state_dict().items()
            if not key.endswith("num_batches_tracked")
        }
        save_file(weights, folder / f"{name}.safetensors")
        config = {"names": self.names, "size": self.size, "widths": self.widths, **more}
        (folder / f"{name}.json").write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path, name: str = "classifier") -> Classifier:
        """Read what :meth:`save` wrote, in float32 and evaluation mode."""
        config = json.loads((folder / f"{name}.json").read_text())
        classifier = cls(config["names"], config["size"], config.get("widths", cls.WIDTHS))
        weights = {key: value.float() for key, value in load_file(folder / f"{name}.safetensors").items()}
        missing, unexpected = classifier.load_state_dict(weights, strict=False)
        if unexpected or any(not key.endswith("num_batches_tracked") for key in missing):
            raise ValueError(f"{folder} holds another classifier: missing {missing}, unexpected {unexpected}")
        return classifier.eval()


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.norm_first = nn.BatchNorm2d(out)
        self.second = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norm_second = nn.BatchNorm2d(out)
        self.skip = nn.Conv2d(channels, out, 1, stride) if (channels, stride) != (out, 1) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm_first(self.first(x)))
        return F.relu(self.norm_second(self.second(y)) + self.skip(x))


def _pixels(images: Sequence[Image.Image]) -> Tensor:
    """Images of one size as uint8 [n, height, width, 3]."""
    return torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images]))


class ClipScorer:
    """Scores images by CLIP and DINOv2, for all other bases.

    CLIP names an image by the nearest of a few descriptions. The identity is DINOv2's similarity to the
    training image, the style similarity CLIP's. The prompt similarity is CLIP's, without the trigger. The
    attributes are those of :class:`ClassifierScorer`.
    """

    name = "DINOv2 and CLIP"

    def __init__(self, encoders: Encoders, training: Sequence[Image.Image], words: Words) -> None:
        self.subject, self.style = words.subject.lower(), words.style.lower()
        self.notes: tuple[str, ...] = ()
        self._encoders = encoders
        self._trigger = words.trigger
        self._dino, self._clip = encoders.embed_dino(training), encoders.embed_clip(training)
        others = [subject for subject in SUBJECTS if subject not in self.subject.split()]
        self._subjects = {subject: f"a picture of a {subject}" for subject in (self.subject, *others)}
        self._styles = {
            self.style: f"a picture in {self.style} style",
            PHOTO: "a photo",
            ILLUSTRATION: "a digital illustration",
        }
        self._contexts = {
            "": "a picture on a plain background",
            **{context: f"a picture taken {context}" for context in CONTEXTS},
        }
        self.seen = self._nearest(self._clip[:1], self._subjects)[0]

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[ImageScore]:
        """Score each image."""
        dino, clip = self._encoders.embed_dino(images), self._encoders.embed_clip(images)
        texts = self._encoders.embed_texts(
            [" ".join(word for word in prompt.split() if word != self._trigger) for prompt in prompts]
        )
        labels = (self._subjects, self._styles, self._contexts)
        names = [self._nearest(clip, descriptions) for descriptions in labels]
        identity = (dino @ self._dino.T).mean(dim=1).tolist()
        style = (clip @ self._clip.T).mean(dim=1).tolist()
        prompt = (clip * texts).sum(dim=1).tolist()
        return [ImageScore(*values) for values in zip(*names, identity, style, prompt, strict=True)]

    def _nearest(self, images: Tensor, descriptions: Mapping[str, str]) -> list[str]:
        """For each image embedding, the name whose description is the most similar."""
        similarity = images @ self._encoders.embed_texts(list(descriptions.values())).T
        names = list(descriptions)
        return [names[index] for index in similarity.argmax(dim=1).tolist()]


Scorer = ClassifierScorer | ClipScorer

DINO, CLIP = "facebook/dinov2-base", "openai/clip-vit-large-patch14"
ENCODER_FILES = {
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
"""The files that are needed of each model."""


def missing_encoders() -> tuple[str, ...]:
    """The models that are not, or not completely, in Hugging Face's cache."""
    return tuple(model_id for model_id in ENCODER_FILES if _snapshot(model_id) is None)


@dataclass(frozen=True, slots=True)
class Encoders:
    """DINOv2 and CLIP: images and texts to unit vectors."""

    dino: Any
    clip: Any
    dino_processor: Any
    clip_processor: Any
    clip_tokenizer: Any

    @classmethod
    def load(cls) -> Encoders:
        """Load both models from the cache, in float32 on the CPU.

        The CPU encodes a few dozen images in seconds, and the GPU's memory stays free for generation. Raises
        ModelError if a model is missing or damaged.
        """
        import transformers

        from unziplora_cli.sdxl.load import loading

        download = Remedy("Download them", settings={"pull": True})
        dino, clip = _snapshot(DINO), _snapshot(CLIP)
        if dino is None or clip is None:
            raise ModelError(f"Not in the cache: {', '.join(missing_encoders())}.", download)
        with loading("DINOv2 or CLIP", download):
            return cls(
                dino=_load_model(transformers.Dinov2Model, dino),
                clip=_load_model(transformers.CLIPModel, clip),
                dino_processor=transformers.BitImageProcessor.from_pretrained(dino, local_files_only=True),
                clip_processor=transformers.CLIPImageProcessor.from_pretrained(clip, local_files_only=True),
                clip_tokenizer=transformers.CLIPTokenizer.from_pretrained(clip, local_files_only=True),
            )

    @torch.inference_mode()
    def embed_dino(self, images: Sequence[Image.Image]) -> Tensor:
        """DINOv2 embeddings of n images, [n, 768]."""
        rows = []
        for image in images:
            pixels = self.dino_processor(image.convert("RGB"), return_tensors="pt").pixel_values
            rows.append(self.dino(pixels).pooler_output)
        return F.normalize(torch.cat(rows), dim=1)

    @torch.inference_mode()
    def embed_clip(self, images: Sequence[Image.Image]) -> Tensor:
        """CLIP embeddings of n images, [n, 768], comparable to each other and to texts."""
        rows = []
        for image in images:
            pixels = self.clip_processor(image.convert("RGB"), return_tensors="pt").pixel_values
            rows.append(self.clip.visual_projection(self.clip.vision_model(pixels).pooler_output))
        return F.normalize(torch.cat(rows), dim=1)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """CLIP embeddings of n texts, [n, 768]."""
        tokens = self.clip_tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        pooled = self.clip.text_model(**tokens).pooler_output
        return F.normalize(self.clip.text_projection(pooled), dim=1)


def _snapshot(model_id: str) -> Path | None:
    snapshot = find_snapshot(model_id)
    if snapshot is None or not all((snapshot.path / name).is_file() for name in ENCODER_FILES[model_id]):
        return None
    return snapshot.path


def _load_model(cls: Any, folder: Path) -> Any:
    model = cls.from_pretrained(folder, use_safetensors=True, local_files_only=True, dtype=torch.float32)
    return model.eval().requires_grad_(False)
