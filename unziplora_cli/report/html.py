"""Fill the templates: the report, one self-contained HTML page, and the model card for the hub."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Template

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


_MERGE_SECTION = """
`{file}` holds the learned merge weights, one per output column. unziplora uses them to join the two LoRAs
more cleanly than a plain sum does; other programs do not need the file.
"""


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
    fp16: bool
    license: str | None
    images: Sequence[CardImage]


def render_card(card: ModelCard) -> str:
    """The card as Markdown, after YAML metadata for the hub."""
    template = Template(resources.template("model_card.md").read_text(encoding="utf-8"))
    loads = [
        f'pipe.load_lora_weights("{card.repository}", weight_name="{file}", adapter_name="{role}")'
        for role, file in card.files.items()
    ]
    roles = ", ".join(f'"{role}"' for role in card.files)
    prompt = card.prompts["full"] if len(card.files) > 1 else card.prompts[next(iter(card.files))]
    return template.substitute(
        front_matter="\n".join(f"{key}: {_yaml(value)}" for key, value in _metadata(card).items()),
        title=_markdown(f"{card.subject}, {card.style}"),
        subject=_markdown(card.subject),
        style=_markdown(card.style),
        trigger=_markdown(card.trigger),
        images="".join(f"![{_markdown(image.prompt)}]({image.file})\n" for image in card.images),
        files="\n".join(
            f"| {role} | `{file}` | {_markdown(card.prompts[role])} |" for role, file in card.files.items()
        ),
        base=_markdown(card.base),
        base_id=card.base_id or f"PATH OF {card.base}",
        variant=', variant="fp16"' if card.fp16 else "",
        rank=card.rank or "unknown",
        load="\n".join([*loads, f"pipe.set_adapters([{roles}])"]),
        prompt=json.dumps(prompt, ensure_ascii=False)[1:-1],
        merge=_MERGE_SECTION.format(file=card.merge_file) if card.merge_file else "",
        license=_markdown(card.license) if card.license else "The author has not specified a license.",
    )


def _metadata(card: ModelCard) -> dict[str, object]:
    """What the hub reads."""
    tags = ["text-to-image", "lora", "diffusers", "stable-diffusion-xl", "template:sd-lora", "unziplora"]
    values = {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": tags,
        "base_model": card.base_id,
        "base_model_relation": "adapter" if card.base_id else None,
        "instance_prompt": card.prompts["content"],
        "license": card.license,
        "widget": [{"text": image.prompt, "output": {"url": image.file}} for image in card.images] or None,
    }
    return {key: value for key, value in values.items() if value is not None}


def _yaml(value: object) -> str:
    """A value as YAML, of which JSON is a subset."""
    return json.dumps(value, ensure_ascii=False)


def _markdown(text: str) -> str:
    """A user's text escaped for Markdown, on one line."""
    line = " ".join(text.split())
    return "".join(f"\\{mark}" if mark in r"\`*_[]<>|#!" else mark for mark in line)
