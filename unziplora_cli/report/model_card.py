"""The model card of a project: what the hub shows of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Template

from unziplora_cli import resources

_MERGE = """
`{file}` holds the learned merge weights, one per output column, with which unziplora joins the two more
cleanly than a plain sum does; other programs do not need it.
"""


@dataclass(frozen=True)
class CardImage:
    """A picture of the card: its file below the card's folder, and the prompt that drew it."""

    file: str
    prompt: str


@dataclass(frozen=True)
class ModelCard:
    """What a model card tells.

    ``files`` are the LoRAs by role, content and style; ``prompts`` what to say for each, and for both
    (``full``). ``base`` is a name, ``base_id`` an id of the hub or None; ``fp16`` says that the hub has that
    variant.
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
    licence: str | None
    pictures: Sequence[CardImage]


def render(card: ModelCard) -> str:
    """The card as Markdown with the metadata that the hub reads in front."""
    template = Template(resources.template("model_card.md").read_text(encoding="utf-8"))
    loads = [
        f'pipe.load_lora_weights("{card.repository}", weight_name="{file}", adapter_name="{role}")'
        for role, file in card.files.items()
    ]
    names = ", ".join(f'"{role}"' for role in card.files)
    prompt = card.prompts["full"] if len(card.files) > 1 else card.prompts[next(iter(card.files))]
    return template.substitute(
        front_matter="\n".join(f"{key}: {_yaml(value)}" for key, value in _metadata(card).items()),
        title=_text(f"{card.subject}, {card.style}"),
        subject=_text(card.subject),
        style=_text(card.style),
        trigger=_text(card.trigger),
        pictures="".join(f"![{_text(each.prompt)}]({each.file})\n" for each in card.pictures),
        files="\n".join(
            f"| {role} | `{file}` | {_text(card.prompts[role])} |" for role, file in card.files.items()
        ),
        base=_text(card.base),
        base_id=card.base_id or f"PATH OF {card.base}",
        variant=', variant="fp16"' if card.fp16 else "",
        rank=card.rank or "unknown",
        load="\n".join([*loads, f"pipe.set_adapters([{names}])"]),
        prompt=json.dumps(prompt, ensure_ascii=False)[1:-1],
        merge=_MERGE.format(file=card.merge_file) if card.merge_file else "",
        licence=_text(card.licence) if card.licence else "The author has not named one.",
    )


def _metadata(card: ModelCard) -> dict[str, object]:
    """What the hub reads."""
    known = {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": [
            "text-to-image",
            "lora",
            "diffusers",
            "stable-diffusion-xl",
            "template:sd-lora",
            "unziplora",
        ],
        "base_model": card.base_id,
        "base_model_relation": "adapter" if card.base_id else None,
        "instance_prompt": card.prompts["content"],
        "license": card.licence,
        "widget": [{"text": each.prompt, "output": {"url": each.file}} for each in card.pictures] or None,
    }
    return {key: value for key, value in known.items() if value is not None}


def _yaml(value: object) -> str:
    """A value as YAML, of which JSON is a part."""
    return json.dumps(value, ensure_ascii=False)


def _text(words: str) -> str:
    """A user's words in Markdown: on one line, and as they were typed."""
    line = " ".join(words.split())
    return "".join(f"\\{mark}" if mark in r"\`*_[]<>|#!" else mark for mark in line)
