import numpy as np
import pytest
from PIL import Image, ImageChops

from unziplora_cli.report.contact_sheet import Cell, Heading, Layout, contact_sheet, fit, wrap

SMALL = Layout(cell=64, thumbnail=32, row_label=80)
RED, BLUE, GREEN = "#ff0000", "#0000ff", "#00ff00"


def flat(color: str, width: int = 16, height: int = 16) -> Image.Image:
    return Image.new("RGB", (width, height), color)


def box(sheet: Image.Image, color: str) -> tuple[int, int, int, int]:
    """Where a pure colour lies in the sheet."""
    matches = (
        ImageChops.difference(sheet, Image.new("RGB", sheet.size, color)).convert("L").point(lambda v: v == 0)
    )
    bounds = matches.getbbox()
    assert bounds is not None
    return bounds


def test_cells_are_placed_in_rows_and_columns() -> None:
    sheet = contact_sheet([[flat(RED), flat(BLUE)], [None, flat(GREEN)]], layout=SMALL)
    red, blue, green = (box(sheet, color) for color in (RED, BLUE, GREEN))
    for bounds in (red, blue, green):
        assert (bounds[2] - bounds[0], bounds[3] - bounds[1]) == (64, 64)
    assert red[1] == blue[1]
    assert blue[0] == red[2] + SMALL.gap
    assert (green[0], green[1]) == (blue[0], blue[3] + SMALL.gap)
    assert sheet.size == (blue[2] + SMALL.margin, green[3] + SMALL.margin)


def test_nothing_overlaps_or_leaves_the_margins() -> None:
    words = "a very long heading that says a lot about what is to be seen " * 3
    colors = [[f"#{10 * r:02x}{90 + 10 * c:02x}ff" for c in range(3)] for r in range(3)]
    sheet = contact_sheet(
        [[Cell(flat(color), words) for color in row] for row in colors],
        title=words,
        subtitle=words,
        columns=[Heading(words, words, flat(RED)) for _ in range(3)],
        row_headings=[Heading(words, words, flat(RED), group=group) for group in ("x", "y", "y")],
        layout=SMALL,
    )
    for color in (color for row in colors for color in row):
        bounds = box(sheet, color)
        assert (bounds[2] - bounds[0], bounds[3] - bounds[1]) == (64, 64)
    edge = np.asarray(sheet).copy()
    edge[SMALL.margin - 1 : -SMALL.margin + 1, SMALL.margin - 1 : -SMALL.margin + 1] = 255
    assert (edge == 255).all()


@pytest.mark.parametrize(
    ("size", "fitted"), [((10, 20), (32, 64)), ((2000, 100), (64, 3)), ((1, 1), (64, 64))]
)
def test_images_keep_their_aspect_ratio(size: tuple[int, int], fitted: tuple[int, int]) -> None:
    assert fit(flat(RED, *size), 64, 64).size == fitted


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "CMYK", "I;16", "1"])
def test_images_of_any_mode_are_drawn(mode: str) -> None:
    sheet = contact_sheet([[Image.new(mode, (8, 8))]], layout=SMALL)
    assert sheet.mode == "RGB"


def test_transparent_images_are_put_on_white() -> None:
    assert fit(Image.new("RGBA", (4, 4), (255, 0, 0, 0)), 4, 4).getpixel((0, 0)) == (255, 255, 255)


def test_text_is_wrapped_and_truncated_with_an_ellipsis() -> None:
    assert wrap("one two", 18, 1000, 2) == ["one two"]
    assert wrap("", 18, 100, 2) == []
    lines = wrap("word " * 50, 18, 120, 3)
    assert len(lines) == 3
    assert lines[-1].endswith("…")
    assert "".join(wrap("x" * 100, 18, 120, 99)) == "x" * 100


def test_characters_without_a_glyph_are_replaced() -> None:
    assert wrap("Kapitän 狐", 18, 1000, 1) == ["Kapitan ?"]


def test_empty_sheet_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([[]])
