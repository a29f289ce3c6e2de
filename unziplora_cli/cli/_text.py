"""Text on its way out: cleaned of what a terminal would execute, wrapped between words, in tables."""

import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from unziplora_cli import paths

if TYPE_CHECKING:
    from rich.console import Console


INLINE_WIDTH = 48
"""Columns of an image in the terminal."""
SHORT = 24
"""Columns of a cell that is broken only if nothing else is left to break, such as `running, 120 of 600`."""


@dataclass(frozen=True)
class Table:
    """Rows of text under column headings."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def print_table(console: "Console", table: Table) -> None:
    """Print a table that fits the width of the terminal; cells wrap between words where that suffices.

    Rich's own table takes a millisecond per row.
    """
    from rich.cells import cell_len
    from rich.text import Text

    raw = [_LINE_BREAK.sub(" ", cell) for row in (table.columns, *table.rows) for cell in row]
    cells = iter(_encodable(printable("\n".join(raw)), console).split("\n"))  # at once, which is quick
    rows = [list(islice(cells, len(row))) for row in (table.columns, *table.rows)]
    columns = list(zip(*rows, strict=True))
    longest = [max(map(cell_len, " ".join(column).split()), default=0) for column in columns]
    widths = [max(map(cell_len, column)) for column in columns]
    available = console.width - 2 * len(widths)
    least_widths = (  # long cells are broken first, between words and then inside them
        [width if width <= SHORT else words for width, words in zip(widths, longest, strict=True)],
        [longest[0], *(min(width, SHORT) for width in widths[1:])],
        longest,
        [1] * len(widths),
    )
    for least in least_widths:
        while (excess := sum(widths) - available) > 0:
            wide = [(width, index) for index, width in enumerate(widths) if width > least[index]]
            if not wide:
                break
            width, index = max(wide)
            others = [other for other in widths if other < width]
            widths[index] = max(least[index], width - excess, max(others, default=1))
    lines = []
    for row in rows:
        folded = [_fold(cell, width) for cell, width in zip(row, widths, strict=True)]
        for parts in zip_longest(*folded, fillvalue=""):
            line = ""
            for part, width in zip(parts, widths, strict=True):
                line += f" {part}{(width - cell_len(part)) * ' '} "
            lines.append(line.rstrip())
        if row is rows[0]:
            rule = "\N{BOX DRAWINGS LIGHT HORIZONTAL}" if console.encoding.startswith("utf") else "-"
            console.print(Text("\n" + "\n".join(lines), style="bold"), soft_wrap=True)
            lines = [" " + rule * (sum(widths) + 2 * len(widths) - 2)]
    console.out("\n".join(lines) + "\n", highlight=False)


def _fold(text: str, width: int) -> list[str]:
    """The lines of a cell; words that are too long are cut."""
    from rich.cells import cell_len, chop_cells

    if cell_len(text) <= width:
        return [text]
    return [part for line in wrap(text, width) for part in chop_cells(line, width)]


_PROGRAM = r"unziplora|pip|pipx|uv|sudo|hf|(?:'[^']*/|\S*/)(?:python\d?|unziplora)'?"
_COMMAND = re.compile(rf": (?=(?:{_PROGRAM}) )")
"""Between a sentence and the command that it ends with."""


def print_text(
    console: "Console", text: str, label: tuple[str, str] = ("", ""), links: Sequence[Path] = ()
) -> None:
    """Print text after a label in a style; on a terminal its lines wrap between words.

    A command that ends a line, and a line with a link, are printed unbroken, so that they can be copied.
    """
    from rich.cells import cell_len
    from rich.text import Text

    indent = cell_len(label[0]) * " "
    lines: list[str] = []
    for line in _encodable(printable(text), console).split("\n"):
        is_path = any(str(path) in line for path in links)
        if not console.is_terminal or is_path or cell_len(indent + line) <= console.width:
            lines.append(line)
            continue
        prose, *command = _COMMAND.split(line, maxsplit=1)
        lines += wrap(prose + ":" * len(command), console.width - len(indent))
        lines += [f"  {words}" for words in command]
    for number, line in enumerate(lines):
        start = label if number == 0 else (indent, "")
        assembled = Text.assemble(start, line)
        for path in links:  # OSC 8
            assembled.highlight_words([str(path)], f"link {path.absolute().as_uri()}")
        console.print(assembled, highlight=False, soft_wrap=True)


def print_image(console: "Console", path: Path) -> None:
    """Show an image small where the extra inline is and the terminal knows sixels or the protocol of kitty.

    Elsewhere nothing is printed: blocks of colors in place of pixels show no style.
    """
    can_ask = console.is_terminal and not console.is_dumb_terminal and sys.stdin.isatty()
    if path.suffix != ".png" or not can_ask:
        return
    import logging
    import select

    if os.name == "posix" and select.select([sys.stdin], [], [], 0)[0]:
        return  # what was typed ahead would be taken for the answer of the terminal

    logging.getLogger("textual_image").setLevel(logging.CRITICAL)  # it logs what a terminal does not answer
    with suppress(Exception):  # the extra is missing, or the terminal has no size; the command is done
        from textual_image import renderable  # asks the terminal what it can show

        if renderable.Image in (renderable.SixelImage, renderable.TGPImage):
            console.print(renderable.Image(path, width=min(INLINE_WIDTH, console.width), height="auto"))


def wrap(text: str, width: int) -> list[str]:
    """The lines of a text that is broken between words only; further lines keep its indentation."""
    from rich.cells import cell_len

    indent = text[: len(text) - len(text.lstrip())]
    lines = [""]
    for word in text.split():
        line = f"{lines[-1]} {word}" if lines[-1] else indent + word
        if lines[-1] and cell_len(line) > width:
            lines.append(indent + word)
        else:
            lines[-1] = line
    return lines


def _encodable(text: str, console: "Console") -> str:
    """The text with escape sequences for what the encoding of the console lacks."""
    return text.encode(console.encoding, "backslashreplace").decode(console.encoding)


def format_size(number: int) -> str:
    """Bytes as text: `6.9 GB`."""
    from rich.filesize import decimal

    return decimal(number)


def format_duration(seconds: float) -> str:
    """Seconds as text: `12.3 s`, `1 min 30 s`, `2 h 5 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


# Text is cleaned before it is printed: names come from untrusted files, messages from libraries and servers.

_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "WANDB_API_KEY")
_TOKEN = (
    r"\b(?:hf_|api_org_)[A-Za-z0-9]{16,}"
    r"|(?i:(?<=bearer )|(?<=[?&]token=)|(?<=signature=))[^\s'\"&]+|(?<=://)[^/\s@]+(?=@)"
)
_INVISIBLE = (
    r"\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
)
"""Format characters: they reorder, join or hide what stands around them."""
UNSAFE = re.compile(rf"[\x00-\x08\x0b-\x1f\x7f-\x9f{_INVISIBLE}]")
_LOG_UNSAFE = re.compile(rf"(?!\x1b\[A)[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f{_INVISIBLE}]")
"""Progress bars of libraries return to the start of the line, and move up one line."""


_LINE_BREAK = re.compile(r"\s*\n\s*")


def without_tokens(text: str) -> str:
    """Replace access tokens with `***`: this user's own, and everything that looks like one."""
    values = tuple(os.environ.get(name, "") for name in _SECRETS)
    return _token_pattern(values, paths.hub_token_file()).sub("***", text)


@lru_cache(maxsize=8)
def _token_pattern(secrets: tuple[str, ...], file: Path) -> re.Pattern[str]:
    from unziplora_cli.files import read_text

    with suppress(OSError, ValueError):
        secrets += (read_text(file, 10_000),)
    patterns = []
    for secret in filter(None, map(str.strip, secrets)):
        exact = re.escape(secret)  # a short one may be part of other words
        patterns.append(exact if len(secret) >= 8 else rf"(?<![^\W_]){exact}(?![^\W_])")
    return re.compile("|".join([*patterns, _TOKEN]))


def printable(text: str) -> str:
    """Remove access tokens, and replace characters that a terminal would execute or that hide others.

    Bytes of a file name that are not text are escaped.
    """
    text = UNSAFE.sub("\N{REPLACEMENT CHARACTER}", without_tokens(text))
    return text.encode("utf-8", "backslashreplace").decode()


def one_line(text: str) -> str:
    """Printable text without line breaks, which would let a name look like a message."""
    return _LINE_BREAK.sub(" ", printable(text).rstrip())


def log_text(text: str) -> str:
    """What a library writes to stderr, cleaned; cursor movements of its progress bars stay."""
    return _LOG_UNSAFE.sub("\N{REPLACEMENT CHARACTER}", without_tokens(text))
