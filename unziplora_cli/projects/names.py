"""Project names: slugs that are valid folder names on every platform."""

import re
import unicodedata

from unziplora_cli.errors import Remedy, UsageError

MAX_LENGTH = 64
_SLUG = re.compile(r"[a-z0-9][a-z0-9._-]*")
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")
_RULE = "A name has lowercase letters, digits, '-', '_' and '.', starts with a letter or digit"


def check_name(name: str) -> str:
    """Return the name; raises UsageError when it is not a valid project name."""
    if not _SLUG.fullmatch(name):
        raise _refusal(name, f"{_RULE}.")
    if len(name) > MAX_LENGTH:
        raise _refusal(name[:20] + "...", f"It has {len(name)} characters, {MAX_LENGTH} are allowed.")
    if name.endswith(".") or ".." in name:
        raise _refusal(name, "A name must not end with a dot or contain two dots in a row.")
    if _RESERVED.fullmatch(name):
        raise _refusal(name, "Windows reserves this name.")
    return name


def is_name(name: str) -> bool:
    """Whether the name is a valid project name."""
    try:
        check_name(name)
    except UsageError:
        return False
    return True


def slugify(text: str) -> str:
    """A valid name from any text, such as a file's stem: ``My Fox (1)`` becomes ``my-fox-1``."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9_.]+", "-", ascii_text)
    slug = re.sub(r"\.{2,}", ".", slug)[:MAX_LENGTH].strip("-_.")
    if not slug or _RESERVED.fullmatch(slug):
        slug = f"picture-{slug}".strip("-")
    return slug


def _refusal(name: str, why: str) -> UsageError:
    return UsageError(f"{name!r} is not a valid project name. {why}", Remedy(f"Try {slugify(name)!r}."))
