"""Fill the templates: the report, one self-contained HTML page, and the model card for the hub."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from unziplora_cli import resources

PAGE, STYLE = "report.html", "report/style.css"


def render_page(values: Mapping[str, object]) -> str:
    """Fill ``templates/report.html``; every value is escaped.

    The page's content security policy allows data URIs and, by its hash, this one style sheet, and nothing
    else: markup that a value might smuggle in can neither run nor fetch anything.
    """
    environment = Environment(
        loader=FileSystemLoader(resources.templates_dir()),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["python"] = repr
    style = environment.get_template(STYLE).render()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    return environment.get_template(PAGE).render(values, style_hash=digest)


@dataclass(frozen=True)
class CardImage:
    """An image of the card: its path below the card's folder, and its prompt."""

    file: str
    prompt: str


@dataclass(frozen=True)
class ModelCard:
    """The content of a model card.

    Attributes:
        prompts: by "content", "style" and "full", the latter for both LoRAs together.
        files: the LoRA files by "content" and "style".
        base: the base model's name; ``base_id`` is its id on the hub, None for a base on disk.
        builtin: the base is the small one that comes with unziplora.
        fp16: whether the hub has an fp16 variant of the base.
    """

    repository: str
    subject: str
    style: str
    trigger: str
    prompts: Mapping[str, str]
    files: Mapping[str, str]
    merge_file: str | None
    rank: int | None
    base: str
    base_id: str | None
    builtin: bool
    fp16: bool
    license: str | None
    images: Sequence[CardImage]

    @property
    def metadata(self) -> dict[str, object]:
        """What the hub reads."""
        tags = ["text-to-image", "lora", "diffusers", "stable-diffusion-xl", "template:sd-lora", "unziplora"]
        values = {
            "library_name": "diffusers",
            "pipeline_tag": "text-to-image",
            "tags": tags,
            "base_model": self.base_id,
            "base_model_relation": "adapter" if self.base_id else None,
            "instance_prompt": self.prompts["content"],
            "license": self.license,
            "widget": [{"text": image.prompt, "output": {"url": image.file}} for image in self.images]
            or None,
        }
        return {key: value for key, value in values.items() if value is not None}


def render_card(card: ModelCard) -> str:
    """The card as Markdown, after YAML metadata for the hub."""
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"md": _markdown, "data": _data}
    template = environment.from_string(resources.template("model_card.md").read_text(encoding="utf-8"))
    return template.render(card=card)


def _data(value: object) -> str:
    """A value as JSON, which is YAML and, for text, a Python literal as well."""
    text = json.dumps(value, ensure_ascii=False)
    return re.sub(r"[\x7f-\x9f\u2028\u2029\ufeff]", lambda match: f"\\u{ord(match[0]):04x}", text)


def _markdown(text: str) -> str:
    """A user's text on one line, escaped for Markdown; addresses do not become links."""
    line = " ".join(text.split()).replace("&", "&amp;")
    return re.sub(r"([\\`*_~\[\]<>|#!$@{}]|:(?=//)|(?<=www)\.)", r"\\\1", line)
