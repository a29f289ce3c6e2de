"""DINOv2 and CLIP as a viewer: CLIP names what a picture shows, among a few answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image
from torch import Tensor

from unziplora_cli.config import Words
from unziplora_cli.evaluation.encoders import Encoders
from unziplora_cli.evaluation.scenes import CONTEXTS, SUBJECTS
from unziplora_cli.evaluation.viewer import PHOTO, View

ILLUSTRATION = "illustration"
"""What CLIP may call a picture that is neither a photo nor in the project's style."""


class ClipViewer:
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

    def look(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> list[View]:
        """A view of each picture."""
        who, how = self._encoders.who(pictures), self._encoders.how(pictures)
        asked = self._encoders.words(
            [" ".join(word for word in text.split() if word != self._trigger) for text in texts]
        )
        names = [self._nearest(how, answers) for answers in (self._subjects, self._styles, self._contexts)]
        identity = (who @ self._who.T).mean(dim=1).tolist()
        style = (how @ self._how.T).mean(dim=1).tolist()
        prompt = (how * asked).sum(dim=1).tolist()
        return [View(*each) for each in zip(*names, identity, style, prompt, strict=True)]

    def _nearest(self, pictures: Tensor, answers: Mapping[str, str]) -> list[str]:
        """The answer whose description lies nearest to each picture."""
        near = pictures @ self._encoders.words(list(answers.values())).T
        names = list(answers)
        return [names[i] for i in near.argmax(dim=1).tolist()]
