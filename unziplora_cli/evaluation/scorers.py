"""Who looks at the drawn pictures: what a scorer tells of each, and the built-in base's classifier as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from unziplora_cli.config import Words
from unziplora_cli.errors import ModelError
from unziplora_cli.evaluation.classifier import Classifier
from unziplora_cli.evaluation.prompts import CONTEXTS, SUBJECTS
from unziplora_cli.hub import find_snapshot

PHOTO = "photo"
"""The style of a picture that has none."""


@dataclass(frozen=True, slots=True)
class ImageScore:
    """What a scorer sees in one picture.

    ``identity`` is its likeness to the training picture in who or what is shown, ``style_likeness`` in how it
    is drawn, ``prompt_likeness`` its likeness to the words it was asked for; cosines, None where a scorer has
    no sense for it.
    """

    subject: str
    style: str
    context: str
    identity: float
    style_likeness: float | None = None
    prompt_likeness: float | None = None


class Scorer(Protocol):
    """Names what pictures show.

    ``subject`` and ``style`` are what it calls the training picture's; ``notes`` say what else a person
    should know about that.
    """

    name: str
    subject: str
    style: str
    notes: tuple[str, ...]

    def look(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> list[ImageScore]:
        """A view of each picture; ``texts`` are the prompts it was drawn from."""
        ...


class ClassifierScorer:
    """The classifier of the built-in base: it names every picture from the classes it was trained on."""

    name = "the built-in classifier"

    def __init__(self, folder: Path, training: Sequence[Image.Image], words: Words) -> None:
        self._classifier = Classifier.load(folder)
        found, self._identity = self._classifier.predict(_pixels(training))  # [pictures, 64]
        seen = self._classifier.class_names(found)[0]
        self.subject, subject_notes = self._call("subject", words.subject, seen)
        self.style, style_notes = self._call("style", words.style, seen)
        self.notes = (*subject_notes, *style_notes)

    def look(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> list[ImageScore]:
        """A view of each picture; the classifier does not read texts."""
        pixels = _pixels(pictures)
        found, identity = self._classifier.predict(pixels)
        likeness = (identity @ self._identity.T).mean(dim=1).tolist()
        return [
            ImageScore(each["subject"], each["style"], each["context"], identity)
            for each, identity in zip(self._classifier.class_names(found), likeness, strict=True)
        ]

    def _call(self, label: str, word: str, seen: dict[str, str]) -> tuple[str, tuple[str, ...]]:
        """The classifier's word for the training picture: the user's where it knows it, else what it sees."""
        sees = seen[label]
        plain = " ".join(word.lower().split())
        if plain not in self._classifier.names[label]:
            return sees, (
                f'The classifier has no {label} "{word}"; it sees "{sees}" in the training picture, '
                "and looks for that.",
            )
        if plain != sees:
            return plain, (
                f'The classifier sees "{sees}" in the training picture, not the {label} "{word}": '
                "take its numbers on that with care.",
            )
        return plain, ()


def _pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size as uint8 [n, height, width, 3]."""
    return torch.from_numpy(np.stack([np.asarray(picture.convert("RGB")) for picture in pictures]))


# DINOv2 and CLIP as a scorer: CLIP names what a picture shows, among a few answers.


ILLUSTRATION = "illustration"
"""What CLIP may call a picture that is neither a photo nor in the project's style."""


class ClipScorer:
    """Names each picture by the description, of a few, that CLIP finds nearest to it.

    DINOv2's likeness to the training picture is the identity, CLIP's the likeness in style. CLIP's likeness
    of picture and prompt, the trigger left out, tells how far the prompt was obeyed.
    """

    name = "DINOv2 and CLIP"

    def __init__(self, encoders: Encoders, training: Sequence[Image.Image], words: Words) -> None:
        subject, style = words.subject.lower(), words.style.lower()
        self.subject, self.style = subject, style
        self.notes: tuple[str, ...] = ()
        self._encoders = encoders
        self._trigger = words.trigger
        self._who, self._how = encoders.who(training), encoders.how(training)
        subjects = (subject, *(each for each in SUBJECTS if each not in subject.split()))
        self._subjects = {each: f"a picture of a {each}" for each in subjects}
        self._styles = {
            style: f"a picture in {style} style",
            PHOTO: "a photo",
            ILLUSTRATION: "a digital illustration",
        }
        self._contexts = {
            "": "a picture on a plain background",
            **{each: f"a picture taken {each}" for each in CONTEXTS},
        }

    def look(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> list[ImageScore]:
        """A view of each picture."""
        who, how = self._encoders.who(pictures), self._encoders.how(pictures)
        asked = self._encoders.words(
            [" ".join(word for word in text.split() if word != self._trigger) for text in texts]
        )
        names = [self._nearest(how, answers) for answers in (self._subjects, self._styles, self._contexts)]
        identity = (who @ self._who.T).mean(dim=1).tolist()
        style = (how @ self._how.T).mean(dim=1).tolist()
        prompt = (how * asked).sum(dim=1).tolist()
        return [ImageScore(*each) for each in zip(*names, identity, style, prompt, strict=True)]

    def _nearest(self, pictures: Tensor, answers: Mapping[str, str]) -> list[str]:
        """The answer whose description lies nearest to each picture."""
        near = pictures @ self._encoders.words(list(answers.values())).T
        names = list(answers)
        return [names[i] for i in near.argmax(dim=1).tolist()]


# The two public models that look at pictures where there is no classifier: DINOv2 and CLIP.
#
# They are read from Hugging Face's own cache; nothing is fetched here.


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
    snapshot = find_snapshot(id)
    if snapshot is None or not all((snapshot.path / name).is_file() for name in FILES[id]):
        return None
    return snapshot.path


def _model(cls: Any, folder: Path) -> Any:
    model = cls.from_pretrained(folder, use_safetensors=True, local_files_only=True, dtype=torch.float32)
    return model.eval().requires_grad_(False)
