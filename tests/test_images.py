"""Image files of every mode, and those that are refused."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unziplora_cli.cli._errors import hint
from unziplora_cli.errors import UsageError
from unziplora_cli.images import (
    load_image,
    parameters_text,
    read_parameters,
    save_png,
    to_rgb,
    typed_parameters,
)

ORANGE = (255, 102, 51)
"""A colour of the web palette too."""


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def centre(path: Path) -> tuple[int, ...]:
    image = load_image(path).image
    assert image.mode == "RGB"
    return image.getpixel((image.width // 2, image.height // 2))


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("a.png", "RGB"),
        ("a.png", "RGBA"),
        ("a.png", "P"),
        ("a.jpg", "RGB"),
        ("a.jpg", "CMYK"),
        ("a.tif", "CMYK"),
        ("a.webp", "RGB"),
        ("a.bmp", "RGB"),
        ("a.gif", "P"),
    ],
)
def test_color_survives_every_mode_and_format(name: str, mode: str, tmp_path: Path) -> None:
    path = saved(Image.new("RGB", (80, 80), ORANGE).convert(mode), tmp_path / name)
    assert np.abs(np.subtract(centre(path), ORANGE)).max() <= 3


def test_transparent_images_are_put_on_white(tmp_path: Path) -> None:
    rgba = saved(Image.new("RGBA", (80, 80), (255, 0, 0, 0)), tmp_path / "rgba.png")
    half = saved(Image.new("LA", (80, 80), (0, 128)), tmp_path / "la.png")
    palette = Image.new("P", (80, 80), 1)
    palette.putpalette([0, 0, 0, 200, 0, 0])
    keyed = saved(palette, tmp_path / "p.png", transparency=1)
    assert centre(rgba) == (255, 255, 255)
    assert centre(half) == pytest.approx((127, 127, 127), abs=1)
    assert centre(keyed) == (255, 255, 255)


@pytest.mark.parametrize(("value", "grey"), [(0, 0), (65535, 255), (257 * 100, 100)])
def test_16_bit_images_keep_their_brightness(value: int, grey: int, tmp_path: Path) -> None:
    pixels = np.full((80, 80), value, dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        path = saved(Image.fromarray(pixels), tmp_path / name)
        assert centre(path) == (grey, grey, grey)


@pytest.mark.parametrize("peak", [1.0, 255.0, 65535.0, 1e6])
def test_floats_are_scaled_from_the_range_that_holds_them(peak: float) -> None:
    pixels = np.array([[peak, peak / 2, -5.0, 0.0]], dtype=np.float32)
    image = to_rgb(Image.fromarray(pixels))
    assert [image.getpixel((x, 0))[0] for x in range(4)] == pytest.approx([255, 127.5, 0, 0], abs=0.5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_floats_that_are_no_numbers_are_refused(value: float, tmp_path: Path) -> None:
    """Not read as black: one infinite pixel is brighter than all others together."""
    pixels = np.full((80, 80), 0.5, np.float32)
    pixels[3, 4] = value
    with pytest.raises(UsageError, match=r"a\.tif .* infinite or no numbers"):
        load_image(saved(Image.fromarray(pixels), tmp_path / "a.tif"))


def test_black_and_white(tmp_path: Path) -> None:
    assert centre(saved(Image.new("1", (80, 80), 1), tmp_path / "a.png")) == (255, 255, 255)


UPRIGHT = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}
"""Where the first pixel of the file belongs by its EXIF orientation: right, bottom (EXIF 2.3, page 31)."""


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.avif", "a.tif"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied_once(orientation: int, name: str, tmp_path: Path) -> None:
    image = Image.new("RGB", (120, 80), "white")
    image.paste("black", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = load_image(saved(image, tmp_path / name, exif=exif)).image
    assert upright.size == ((120, 80) if orientation < 5 else (80, 120))
    right, bottom = UPRIGHT[orientation]
    assert max(upright.getpixel((5 + right * (upright.width - 11), 5 + bottom * (upright.height - 11)))) < 20


def test_first_frame_of_an_animation_is_used_and_noted(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (80, 80), colour) for colour in ("red", "blue", "green")]
    path = saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    loaded = load_image(path)
    assert loaded.image.getpixel((40, 40)) == (255, 0, 0)
    assert loaded.notes == ("a.gif has 3 frames; the first one is used.",)


def test_very_wide_image_is_read(tmp_path: Path) -> None:
    path = saved(Image.new("L", (20_000, 100), 7), tmp_path / "wide.png")
    assert load_image(path).image.size == (20_000, 100)


@pytest.mark.parametrize(("ending", "sizes"), [("jpg", (2050, 4100, 8200)), ("png", (2050, 2734, 8200))])
def test_large_image_is_read_at_reduced_size(ending: str, sizes: tuple[int, ...], tmp_path: Path) -> None:
    path = saved(Image.new("L", (8200, 8200), 7), tmp_path / f"large.{ending}")
    read = [load_image(path, **side) for side in ({}, {"side": 2500}, {"side": 4101})]
    assert [(loaded.image.size, loaded.file_size) for loaded in read] == [
        ((side, side), (8200, 8200)) for side in sizes
    ]


def png_of_size(path: Path, width: int, height: int) -> Path:
    """A PNG whose header claims a size, with no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )
    return path


def test_unusable_files_are_refused_with_a_reason(tmp_path: Path) -> None:
    text = tmp_path / "notes.png"
    text.write_text("not a picture")
    empty = tmp_path / "empty.png"
    empty.touch()
    whole = saved(Image.effect_noise((200, 200), 90), tmp_path / "whole.png").read_bytes()
    short = tmp_path / "short.png"
    short.write_bytes(whole[: len(whole) // 2])
    cases = {
        tmp_path / "nowhere.png": "no file",
        tmp_path: "is a folder",
        text: "not an image",
        empty: "not an image",
        short: "damaged or truncated",
        saved(Image.new("RGB", (1, 1)), tmp_path / "dot.png"): "1 x 1 px: too small",
        saved(Image.new("RGB", (500, 63)), tmp_path / "thin.png"): "500 x 63 px: too small",
        png_of_size(tmp_path / "bomb.png", 50_000, 50_000): "2500000000 pixels",
    }
    for path, reason in cases.items():
        with pytest.raises(UsageError, match=reason) as caught:
            load_image(path)
        assert str(path) in caught.value.message
        assert hint(caught.value)


PARAMETERS = {
    "schema": 1,
    "version": "1.0",
    "base": {"id": "stabilityai/stable-diffusion-xl-base-1.0", "revision": "46216598"},
    "prompts": {"full": "a fox, in 水彩 style", "content": "a fox", "style": "x"},
    "negative_prompt": "blurry",
    "seed": 7,
    "steps": 20,
    "guidance": 5.0,
    "scheduler": "euler",
    "width": 128,
    "height": 64,
    "projects": {"content": "fox"},
    "command": "content",
}


def test_parameters_are_written_and_read_back(tmp_path: Path) -> None:
    image = Image.effect_noise((16, 8), 50).convert("RGB")
    save_png(image, tmp_path / "a.png", PARAMETERS)
    assert read_parameters(tmp_path / "a.png") == PARAMETERS
    with Image.open(tmp_path / "a.png") as saved:
        assert saved.tobytes() == image.tobytes()
        assert saved.info["parameters"] == parameters_text(PARAMETERS)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_parameters_text_has_the_layout_of_other_programs() -> None:
    assert parameters_text(PARAMETERS) == (
        "a fox, in 水彩 style\n"
        "Negative prompt: blurry\n"
        "Steps: 20, Sampler: Euler, CFG scale: 5, Seed: 7, Size: 128x64, "
        "Model: stable-diffusion-xl-base-1.0, Version: unziplora 1.0"
    )
    odd = parameters_text(
        {**PARAMETERS, "negative_prompt": "", "base": {"id": "/models/a, b"}, "guidance": 4.5}
    )
    assert odd.count("\n") == 1
    assert 'Model: "a, b"' in odd
    assert "CFG scale: 4.5" in odd


def test_failed_write_keeps_the_older_image(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    save_png(Image.new("RGB", (4, 4)), path, PARAMETERS)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_png(Image.new("RGB", (4, 4)), path, {"prompts": {}, "bad": object()}, force=True)
    assert path.read_bytes() == before


def test_other_images_have_no_parameters_and_other_files_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    assert read_parameters(tmp_path / "plain.png") == {}
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UsageError, match="not an image"):
        read_parameters(tmp_path / "text.png")
    with pytest.raises(UsageError, match="no file"):
        read_parameters(tmp_path / "missing.png")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("command", []),
        ("command", None),
        ("command", "\ud800"),
        ("prompts", ["x"]),
        ("prompts", {"full": 1}),
        ("prompts", {"full": "\ud800"}),
        ("seed", True),
        ("seed", 2**70),
        ("seed", "7"),
        ("guidance", float("nan")),
        ("branches", {"content": None}),
        ("base", "mini"),
        ("merge_weights", 1),
        ("unknown", "x"),
    ],
)
def test_parameters_of_the_wrong_type_are_dropped(name: str, value: object) -> None:
    expected = {key: item for key, item in PARAMETERS.items() if key != name}
    assert typed_parameters({**PARAMETERS, name: value}) == expected
    assert typed_parameters([value]) == {}
