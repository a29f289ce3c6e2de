"""Project names: slugs in any script that are valid folder names on every platform."""

import hashlib
import os
import re
import unicodedata

from unziplora_cli.errors import Remedy, UsageError

MAX_LENGTH, MAX_BYTES = 64, 96
"""In characters and in UTF-8: the file name of an image has two names and a prompt in its 255 bytes."""

_ASCII = re.compile(r"[a-z0-9._-]*")
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Letters and marks that nobody can see."""
_RULE = "A name has lowercase letters, digits, '-', '_' and '.', and starts with a letter or digit"


def check_name(name: str) -> str:
    """Return the name in Unicode's form NFC; raises UsageError when it is not a valid project name."""
    name = unicodedata.normalize("NFC", name)
    if (
        not (_ASCII.fullmatch(name) or all(map(_is_allowed, name)))
        or not name
        or name != name.lower()
        or not name[0].isalnum()
    ):
        raise _refusal(name, f"{_RULE}.")
    if len(name) > MAX_LENGTH or len(name.encode()) > MAX_BYTES:
        raise _refusal(
            name[:20] + "...", f"It is too long: {MAX_LENGTH} characters in {MAX_BYTES} bytes are allowed."
        )
    if name.endswith(".") or ".." in name:
        raise _refusal(name, "A name must not end with a dot or contain two dots in a row.")
    if _RESERVED.fullmatch(name):
        raise _refusal(name, "Windows reserves this name.")
    return name


def is_name(name: str) -> bool:
    """Whether this is a valid project name."""
    try:
        return check_name(name) == name
    except UsageError:
        return False


def slugify(text: str) -> str:
    """A valid name from any text, such as a file's stem: ``My Fox (1)`` becomes ``my-fox-1``.

    Letters of every script are kept. If the name lacks something that tells two texts apart, such as an emoji
    or the end of a long text, it ends with six digits of a hash.
    """
    lower = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower())
    slug = re.sub("-{2,}", "-", "".join(char if _is_allowed(char) else "-" for char in lower))
    slug = re.sub(r"\.{2,}", ".", slug).rstrip("-_.")
    while slug and not slug[0].isalnum():
        slug = slug[1:]
    digest = hashlib.sha256(lower.encode("utf-8", "surrogatepass")).hexdigest()[:6]
    whole = len(slug) <= MAX_LENGTH and len(slug.encode()) <= MAX_BYTES
    if not slug:
        return f"picture-{digest}"
    if not whole or any(map(_is_symbol, lower)):
        slug = f"{shorten(slug[: MAX_LENGTH - 7], MAX_BYTES - 7)}-{digest}"
    return f"picture-{slug}" if _RESERVED.fullmatch(slug) else slug


def shorten(name: str, limit: int) -> str:
    """The start of a name, at most `limit` bytes in UTF-8."""
    return name.encode()[:limit].decode(errors="ignore").rstrip("-_.")


def _is_allowed(char: str) -> bool:
    if char.isascii():
        return bool(_ASCII.fullmatch(char))
    category = unicodedata.category(char)
    if (category[0] not in "LM" and category != "Nd") or _INVISIBLE.match(char):
        return False
    try:
        return bool(os.fsencode(char))
    except UnicodeEncodeError:  # the names of this file system are not in UTF-8
        return False


def _is_symbol(char: str) -> bool:
    """Whether a character that a name cannot hold carries meaning, unlike spaces and punctuation."""
    if char.isascii() or _is_allowed(char) or _INVISIBLE.match(char):
        return False
    category = unicodedata.category(char)
    return category[0] not in "ZP" and category != "Cf"


def _refusal(name: str, why: str) -> UsageError:
    return UsageError(f"{name!r} is not a valid project name. {why}", Remedy(f"Try {slugify(name)!r}."))
