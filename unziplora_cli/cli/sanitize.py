"""What may be shown of a text: names and words can come from strangers' files, errors from libraries."""

import os
import re

_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "WANDB_API_KEY")
_TOKEN = re.compile(r"\b(?:hf_|api_org_)[A-Za-z0-9]{16,}|(?<=Bearer )[^\s'\"]+|(?<=://)[^/\s@]+(?=@)")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def without_tokens(text: str) -> str:
    """The text with `***` for access tokens: those of the environment and all that look like one."""
    for name in _SECRETS:
        secret = os.environ.get(name, "").strip()
        if len(secret) >= 8:
            text = text.replace(secret, "***")
    return _TOKEN.sub("***", text)


def shown(text: str) -> str:
    """The text as a terminal may get it: without tokens, and without control characters, which could act."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", without_tokens(text))
