"""Contact sheets: images in rows and columns with headings and captions, on white."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
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

    Neighbors of the same ``group`` share one heading above their own.
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
    group_gap: int = 44
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
    return _Sheet(
        [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows],
        title,
        subtitle,
        _headings(columns, max(map(len, rows))),
        _headings(row_headings, len(rows)),
        layout or Layout(),
    ).draw()


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


@dataclass(slots=True)
class _Block:
    """Lines of text of one size and color."""

    lines: list[str]
    size: int
    color: str = INK

    @property
    def height(self) -> int:
        return round(len(self.lines) * self.size * LEADING)

    def draw(self, canvas: ImageDraw.ImageDraw, x: float, y: float, anchor: str = "l") -> None:
        for number, line in enumerate(self.lines):
            middle = y + (number + 0.5) * self.size * LEADING
            canvas.text((x, middle), line, font=_font(self.size), fill=self.color, anchor=f"{anchor}m")


@dataclass(slots=True)
class _Sheet:
    cells: list[list[Cell]]
    title: str
    subtitle: str
    columns: list[Heading]
    rows: list[Heading]
    layout: Layout
    fitted: list[list[Image.Image | None]] = field(init=False)

    def draw(self) -> Image.Image:
        size = self.layout
        self.fitted = [
            [fit(cell.image, size.cell, size.cell) if cell.image else None for cell in row]
            for row in self.cells
        ]
        lefts = self._lefts()
        width = lefts[-1] + size.cell + size.margin
        titles = [
            _Block(wrap(self.title, size.title, width - 2 * size.margin, 2), size.title),
            _Block(wrap(self.subtitle, size.text, width - 2 * size.margin, 3), size.text, SOFT),
        ]
        top = size.margin + sum(block.height for block in titles) + (size.gap * 2 if titles[0].lines else 0)
        grid_top = top + self._column_headings_height()
        tops, bottom = self._tops(grid_top)

        sheet = Image.new("RGB", (width, bottom + size.margin), PAPER)
        canvas = ImageDraw.Draw(sheet)
        y = size.margin
        for block in titles:
            block.draw(canvas, size.margin, y)
            y += block.height + size.gap // 2
        self._draw_column_headings(sheet, canvas, lefts, top, grid_top)
        self._draw_rows(sheet, canvas, lefts, tops, width)
        return sheet

    def _lefts(self) -> list[int]:
        """Left edges of the columns."""
        size = self.layout
        x = size.margin + (size.row_label + size.gap if any(map(_is_visible, self.rows)) else 0)
        lefts = []
        for number, heading in enumerate(self.columns):
            if number:
                x += size.cell + (
                    size.gap if heading.group == self.columns[number - 1].group else size.group_gap
                )
            lefts.append(x)
        return lefts

    def _tops(self, y: int) -> tuple[list[int], int]:
        """Upper edges of the rows, and the lower edge of the last one."""
        size = self.layout
        tops = []
        for number, heading in enumerate(self.rows):
            starts = heading.group and (number == 0 or heading.group != self.rows[number - 1].group)
            if starts:
                y += round(size.group * LEADING) + size.gap + (size.gap if number else 0)
            tops.append(y)
            y += self._row_height(number) + size.gap
        return tops, y - size.gap

    def _row_height(self, number: int) -> int:
        heading = self._heading_height(self.rows[number], self.layout.row_label)
        return max(self._image_height(number) + self._captions_height(number), heading)

    def _image_height(self, number: int) -> int:
        return max((image.height for image in self.fitted[number] if image), default=self.layout.cell)

    def _captions_height(self, number: int) -> int:
        return max((self._caption(cell).height for cell in self.cells[number]), default=0)

    def _caption(self, cell: Cell) -> _Block:
        return _Block(wrap(cell.caption, self.layout.note, self.layout.cell, 3), self.layout.note, SOFT)

    def _heading_blocks(self, heading: Heading, width: int) -> list[_Block]:
        size = self.layout
        return [
            _Block(wrap(heading.text, size.text, width, 3), size.text),
            _Block(wrap(heading.note, size.note, width, 4), size.note, SOFT),
        ]

    def _heading_height(self, heading: Heading, width: int) -> int:
        image = self.layout.thumbnail + self.layout.gap // 2 if heading.image else 0
        return image + sum(block.height for block in self._heading_blocks(heading, width))

    def _column_headings_height(self) -> int:
        size = self.layout
        text = max(self._heading_height(heading, size.cell) for heading in self.columns)
        group = round(size.group * LEADING) + size.gap if any(h.group for h in self.columns) else 0
        return group + (text + size.gap // 2 if text else 0)

    def _draw_heading(
        self, sheet: Image.Image, canvas: ImageDraw.ImageDraw, heading: Heading, x: int, y: int, width: int
    ) -> None:
        if heading.image:
            thumbnail = fit(heading.image, self.layout.thumbnail, self.layout.thumbnail)
            sheet.paste(thumbnail, (x, y + self.layout.thumbnail - thumbnail.height))
            y += self.layout.thumbnail + self.layout.gap // 2
        for block in self._heading_blocks(heading, width):
            block.draw(canvas, x, y)
            y += block.height

    def _draw_column_headings(
        self, sheet: Image.Image, canvas: ImageDraw.ImageDraw, lefts: list[int], top: int, bottom: int
    ) -> None:
        size = self.layout
        for first, last in _runs([heading.group for heading in self.columns]):
            if self.columns[first].group:
                right = lefts[last] + size.cell
                text = wrap(self.columns[first].group, size.group, right - lefts[first], 1)
                _Block(text, size.group).draw(canvas, lefts[first], top)
                y = top + round(size.group * LEADING) + size.gap // 2
                canvas.line([(lefts[first], y), (right, y)], fill=LINE)
        for heading, x in zip(self.columns, lefts, strict=True):
            y = bottom - size.gap // 2 - self._heading_height(heading, size.cell)
            self._draw_heading(sheet, canvas, heading, x, y, size.cell)

    def _draw_rows(
        self, sheet: Image.Image, canvas: ImageDraw.ImageDraw, lefts: list[int], tops: list[int], width: int
    ) -> None:
        size = self.layout
        for first, _ in _runs([heading.group for heading in self.rows]):
            if self.rows[first].group:
                y = tops[first] - size.gap - round(size.group * LEADING)
                _Block([self.rows[first].group], size.group).draw(canvas, size.margin, y)
                y = tops[first] - size.gap // 2
                canvas.line([(size.margin, y), (width - size.margin, y)], fill=LINE)
        for number, (heading, top) in enumerate(zip(self.rows, tops, strict=True)):
            height = self._image_height(number)
            middle = top + (height - self._heading_height(heading, size.row_label)) // 2
            self._draw_heading(sheet, canvas, heading, size.margin, max(top, middle), size.row_label)
            for cell, image, x in zip(self.cells[number], self.fitted[number], lefts, strict=False):
                if image is None:
                    canvas.rectangle([x, top, x + size.cell - 1, top + height - 1], fill=EMPTY)
                else:
                    left = x + (size.cell - image.width) // 2
                    sheet.paste(image, (left, top + (height - image.height) // 2))
                self._caption(cell).draw(canvas, x, top + height)


def _headings(headings: Sequence[Heading | str], count: int) -> list[Heading]:
    """Exactly ``count`` headings, the missing ones empty."""
    complete = [Heading(item) if isinstance(item, str) else item for item in headings][:count]
    return complete + [Heading()] * (count - len(complete))


def _is_visible(heading: Heading) -> bool:
    return bool(heading.text or heading.note or heading.image)


def _runs(values: Sequence[str]) -> list[tuple[int, int]]:
    """First and last index of each run of equal values."""
    starts = [i for i, value in enumerate(values) if i == 0 or value != values[i - 1]]
    return list(zip(starts, [start - 1 for start in starts[1:]] + [len(values) - 1], strict=True))


def _pieces(word: str, font: Any, width: int) -> list[str]:
    """Break a word into pieces that fit the width."""
    pieces = []
    while font.getlength(word) > width and len(word) > 1:
        count = max(
            1, next(n for n in range(len(word), 0, -1) if font.getlength(word[:n]) <= width or n == 1)
        )
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
