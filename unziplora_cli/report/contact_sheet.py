"""Contact sheets: images in rows and columns with headings and captions, on white."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from unziplora_cli.images import to_rgb

INK, SOFT, LINE, PAPER, EMPTY = "#1c1c1e", "#6e6e73", "#d8d8dc", "#ffffff", "#f6f6f8"
LEADING = 1.3
"""Line height over font size."""


@dataclass(frozen=True, slots=True)
class Cell:
    """An image, or None for an empty cell, with a caption below it."""

    image: Image.Image | None
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Heading:
    """The heading of a column or row: a text, a note in gray, and optionally a thumbnail.

    Neighboring rows of the same ``group`` share one heading above their own.
    """

    text: str = ""
    note: str = ""
    image: Image.Image | None = None
    group: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes in pixels."""

    cell: int = 256
    gap: int = 16
    margin: int = 56
    row_label: int = 176
    thumbnail: int = 112
    title: int = 34
    group: int = 22
    text: int = 18
    note: int = 15


def contact_sheet(
    rows: Sequence[Sequence[Cell | Image.Image | None]],
    *,
    title: str = "",
    subtitle: str = "",
    columns: Sequence[Heading | str] = (),
    row_headings: Sequence[Heading | str] = (),
    layout: Layout | None = None,
) -> Image.Image:
    """Draw a grid of images of any size, each scaled to fit its cell.

    There may be fewer headings than rows or columns. Raises ValueError if there is no cell.
    """
    if not any(rows):
        raise ValueError("a contact sheet needs at least one cell")
    size = layout or Layout()
    grid = [_row([cell if isinstance(cell, Cell) else Cell(cell) for cell in row], size) for row in rows]
    above = [_heading(item, size.cell, size) for item in _headings(columns, max(map(len, rows)))]
    labels = _headings(row_headings, len(rows))
    beside = [_heading(item, size.row_label, size) for item in labels]

    left = size.margin + (size.row_label + size.gap if any(item.height for item in beside) else 0)
    lefts = [left + i * (size.cell + size.gap) for i in range(len(above))]
    width = lefts[-1] + size.cell + size.margin
    titles = [
        _Block(wrap(title, size.title, width - 2 * size.margin, 2), size.title),
        _Block(wrap(subtitle, size.text, width - 2 * size.margin, 3), size.text, SOFT),
    ]
    y = size.margin + sum(block.height for block in titles) + (size.gap * 2 if titles[0].lines else 0)
    if column_height := max(item.height for item in above):
        y += column_height + size.gap // 2
    grid_top = y
    tops, groups = [], {}
    for number, (heading, row, label) in enumerate(zip(labels, grid, beside, strict=True)):
        if heading.group and (number == 0 or heading.group != labels[number - 1].group):
            y += size.gap if number else 0
            groups[y] = heading.group
            y += round(size.group * LEADING) + size.gap
        tops.append(y)
        y += max(row.height, label.height) + size.gap

    sheet = Image.new("RGB", (width, y - size.gap + size.margin), PAPER)
    canvas = ImageDraw.Draw(sheet)
    y = size.margin
    for block in titles:
        block.draw(canvas, size.margin, y)
        y += block.height + size.gap // 2
    for item, x in zip(above, lefts, strict=True):
        item.draw(sheet, canvas, x, grid_top - size.gap // 2 - item.height)
    for y, group in groups.items():
        _Block([group], size.group).draw(canvas, size.margin, y)
        y += round(size.group * LEADING) + size.gap // 2
        canvas.line([(size.margin, y), (width - size.margin, y)], fill=LINE)
    for row, label, top in zip(grid, beside, tops, strict=True):
        label.draw(sheet, canvas, size.margin, max(top, top + (row.image_height - label.height) // 2))
        for image, caption, x in zip(row.images, row.captions, lefts, strict=False):
            if image is None:
                canvas.rectangle([x, top, x + size.cell - 1, top + row.image_height - 1], fill=EMPTY)
            else:
                place = x + (size.cell - image.width) // 2, top + (row.image_height - image.height) // 2
                sheet.paste(image, place)
            caption.draw(canvas, x, top + row.image_height)
    return sheet


def fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """Convert an image to RGB on white and scale it to fit into a box."""
    scale = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return to_rgb(image).resize(size, Image.Resampling.LANCZOS)


def wrap(text: str, size: int, width: int, lines: int) -> list[str]:
    """Break a text into at most ``lines`` lines of ``width`` pixels; an ellipsis replaces the rest."""
    font = _font(size)
    done: list[str] = []
    line = ""
    for word in "".join(map(_drawable, text)).split():
        for piece in _pieces(word, font, width):
            longer = f"{line} {piece}" if line else piece
            if font.getlength(longer) <= width:
                line = longer
            else:
                done.append(line)
                line = piece
    done = [*done, line] if line else done
    if len(done) > lines:
        last = done[lines - 1]
        while last and font.getlength(last + "…") > width:
            last = last[:-1]
        done = [*done[: lines - 1], last.rstrip() + "…"]
    return done


@dataclass(frozen=True, slots=True)
class _Block:
    """Lines of text of one size and color."""

    lines: list[str]
    size: int
    color: str = INK

    @property
    def height(self) -> int:
        return round(len(self.lines) * self.size * LEADING)

    def draw(self, canvas: ImageDraw.ImageDraw, x: float, y: float) -> None:
        for number, line in enumerate(self.lines):
            middle = y + (number + 0.5) * self.size * LEADING
            canvas.text((x, middle), line, font=_font(self.size), fill=self.color, anchor="lm")


@dataclass(frozen=True, slots=True)
class _Row:
    """The images of a row in the size of their cells, and their captions."""

    images: list[Image.Image | None]
    captions: list[_Block]
    image_height: int

    @property
    def height(self) -> int:
        return self.image_height + max((caption.height for caption in self.captions), default=0)


@dataclass(frozen=True, slots=True)
class _DrawnHeading:
    """The thumbnail of a heading, the space that it takes, and the texts below it."""

    thumbnail: Image.Image | None
    space: int
    blocks: list[_Block]

    @property
    def height(self) -> int:
        return self.space + sum(block.height for block in self.blocks)

    def draw(self, sheet: Image.Image, canvas: ImageDraw.ImageDraw, x: int, y: int) -> None:
        if self.thumbnail:
            sheet.paste(self.thumbnail, (x, y))
        y += self.space
        for block in self.blocks:
            block.draw(canvas, x, y)
            y += block.height


def _row(cells: Sequence[Cell], size: Layout) -> _Row:
    images = [fit(cell.image, size.cell, size.cell) if cell.image else None for cell in cells]
    captions = [_Block(wrap(cell.caption, size.note, size.cell, 3), size.note, SOFT) for cell in cells]
    return _Row(images, captions, max((image.height for image in images if image), default=size.cell))


def _heading(heading: Heading, width: int, size: Layout) -> _DrawnHeading:
    thumbnail = fit(heading.image, size.thumbnail, size.thumbnail) if heading.image else None
    return _DrawnHeading(
        thumbnail,
        thumbnail.height + size.gap // 2 if thumbnail else 0,
        [
            _Block(wrap(heading.text, size.text, width, 3), size.text),
            _Block(wrap(heading.note, size.note, width, 4), size.note, SOFT),
        ],
    )


def _headings(headings: Sequence[Heading | str], count: int) -> list[Heading]:
    """Exactly ``count`` headings, the missing ones empty."""
    complete = [Heading(item) if isinstance(item, str) else item for item in headings][:count]
    return complete + [Heading()] * (count - len(complete))


def _pieces(word: str, font: Any, width: int) -> list[str]:
    """Break a word into pieces that fit the width."""
    pieces = []
    while font.getlength(word) > width and len(word) > 1:
        count = next(n for n in range(len(word), 0, -1) if font.getlength(word[:n]) <= width or n == 1)
        pieces.append(word[:count])
        word = word[count:]
    return [*pieces, word] if word else pieces


@cache
def _drawable(character: str) -> str:
    """The character if Pillow's font has a glyph for it, otherwise its base letter or a question mark."""
    font = _font(16)
    unknown = bytes(font.getmask("\uffff"))
    candidates = (character, unicodedata.normalize("NFKD", character)[0])
    return next((c for c in candidates if c.isspace() or bytes(font.getmask(c)) != unknown), "?")


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)
