"""Files that are no images, damaged metadata, and what is said about formats that cannot be read."""

import io
import json
import os
import random
import struct
import subprocess
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, PngImagePlugin

from unziplora_cli.cli._errors import hint
from unziplora_cli.errors import UsageError
from unziplora_cli.image_formats import has_image_ending
from unziplora_cli.images import load_image, read_parameters, save_png

RED = (255, 0, 0)


def png(*chunks: tuple[bytes, bytes], **options: object) -> bytes:
    """A red PNG of 80 x 80 px with more chunks after its header."""
    buffer = io.BytesIO()
    Image.new("RGB", (80, 80), RED).save(buffer, "PNG", **options)
    data = buffer.getvalue()
    more = b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return data[:33] + more + data[33:]


def itxt(key: str, text: str) -> tuple[bytes, bytes]:
    return b"iTXt", key.encode() + b"\0\1\0\0\0" + zlib.compress(text.encode())


def exif_with_orientation(value: int) -> bytes:
    return b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1" + struct.pack(">HH", value, 0) + b"\0\0\0\0"


def bad_checksum(data: bytes, kind: bytes) -> bytes:
    start = data.index(kind)
    length = int.from_bytes(data[start - 4 : start])
    end = start + 4 + length
    return data[:end] + bytes(byte ^ 1 for byte in data[end : end + 4]) + data[end + 4 :]


@pytest.mark.parametrize(
    "data",
    [
        png((b"tEXt", b"exif\0{'steps': 20}")),
        png(itxt("exif", "prompt")),
        png((b"eXIf", b"garbage")),
        png((b"eXIf", b"")),
        png((b"eXIf", exif_with_orientation(77))),
        png((b"zTXt", b"workflow\0\0" + zlib.compress(b"x" * 3_000_000))),
        png(itxt("workflow", "y" * 3_000_000)),
        png(*[itxt(f"prompt{i}", "z" * 900_000) for i in range(72)]),
        png((b"zTXt", b"parameters\0\0no zlib")),
        png((b"tEXt", b"")),
        png((b"pHYs", b"\0")),
        png((b"tIME", b"never")),
        png((b"iCCP", b"name")),
        png((b"caBX", bytes(2_000_000))),
        bad_checksum(png((b"tEXt", b"Comment\0x")), b"tEXt"),
        bad_checksum(png((b"pHYs", bytes(9))), b"pHYs"),
        png((b"tEXt", b"Raw profile type exif\0\nexif\n 8\nnot hexadecimal")),
        png((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta tiff:Orientation='abc'")),
    ],
)
def test_metadata_never_refuses_an_image(data: bytes, tmp_path: Path, capfd) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(data)
    loaded = load_image(path)
    assert (loaded.image.size, loaded.image.getpixel((40, 40))) == ((80, 80), RED)
    assert read_parameters(path) == {}
    assert capfd.readouterr() == ("", "")


def test_damaged_pixels_of_png_still_refuse_it(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(bad_checksum(png(), b"IDAT"))
    with pytest.raises(UsageError, match="damaged"):
        load_image(path)


def test_orientation_and_transparency_of_png_are_kept(tmp_path: Path) -> None:
    image = Image.new("RGB", (120, 80), "white")
    image.paste("black", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    assert load_image(tmp_path / "a.png").image.getpixel((75, 5)) == (0, 0, 0)
    Image.new("RGB", (80, 80), RED).save(tmp_path / "key.png", transparency=RED)
    assert load_image(tmp_path / "key.png").image.getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.tif", "a.heic", "a.gif", "a.bmp", "a.mpo"])
def test_no_byte_of_a_file_raises_anything_but_usage_errors(name: str, tmp_path: Path, capfd) -> None:
    """Of 60 damaged copies, each is read or refused, and no library writes to the terminal."""
    if name.endswith("heic"):
        pytest.importorskip("pillow_heif").register_heif_opener()
    image = Image.effect_noise((96, 80), 90).convert("RGB")
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 1, "a description"
    options: dict[str, object] = {} if name.endswith(("gif", "bmp", "mpo")) else {"exif": exif}
    if name.endswith("mpo"):
        options = {"save_all": True, "append_images": [image]}
    path = tmp_path / name
    image.save(path, **options)
    whole, rng = path.read_bytes(), random.Random(name)
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 2, 8))):
            data[rng.randrange(min(len(data), rng.choice((64, 512, len(data)))))] = rng.randrange(256)
        path.write_bytes(data[: rng.choice((len(data), rng.randrange(len(data))))])
        with suppress(UsageError):
            assert load_image(path).image.mode == "RGB"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("options", [{}, {"rowsperstrip": 7}, {"tile": (32, 48)}, {"compression": "zlib"}])
@pytest.mark.parametrize("alpha", [False, True])
def test_planar_16_bit_tiff_is_read_as_it_was_written(order, options, alpha, tmp_path: Path) -> None:
    y, x = np.mgrid[0:96, 0:80]
    channels = [x * 800, y * 600, (x + y) * 300, *([np.full_like(x, 65535)] if alpha else [])]
    extra = {"extrasamples": ["unassalpha"]} if alpha else {}
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.stack(channels).astype(np.uint16),
        photometric="rgb",
        planarconfig="separate",
        byteorder=order,
        **options,
        **extra,
    )
    pixels = np.asarray(load_image(tmp_path / "a.tif").image, int)
    expected = np.moveaxis(tifffile.imread(tmp_path / "a.tif")[:3], 0, 2) / 257
    assert np.abs(pixels - expected).max() <= 1


def test_truncated_planar_tiff_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.ones((3, 80, 80), np.uint16), photometric="rgb", planarconfig="separate")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UsageError, match="damaged or truncated"):
        load_image(path)


def gray_tiff(path: Path, bits: int, packed: bytes, photometric: int = 1) -> Path:
    """A TIFF file of 80 x 80 px with gray in one strip, whose bytes repeat."""
    pixels = packed * (80 * 80 * bits // 8 // len(packed))
    tags = {256: 80, 257: 80, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 80, 279: len(pixels)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory)
    return path


@pytest.mark.parametrize(
    ("bits", "packed", "photometric", "gray"),
    [
        (12, b"\x99\x99\x99", 1, 153),  # 0x999 of 0xfff; Pillow takes it as 16 bits, and reads 9
        (16, b"\x99\x99", 1, 153),
        (16, b"\x99\x99", 0, 102),  # zero is white; Pillow reads a negative
        (8, b"\x99", 0, 102),
        (32, b"\xff\xff\xff\xff", 1, 255),  # Pillow reads -1
    ],
)
def test_gray_tiff_of_every_kind_has_its_brightness(bits, packed, photometric, gray, tmp_path: Path) -> None:
    image = load_image(gray_tiff(tmp_path / "a.tif", bits, packed, photometric)).image
    assert image.getpixel((40, 40)) == (gray, gray, gray)


@pytest.mark.parametrize(("transparent", "gray"), [(0x8000, 255), (0x8001, 128)])
def test_a_transparent_gray_of_16_bits_becomes_white(transparent: int, gray: int, tmp_path: Path) -> None:
    image = Image.fromarray(np.full((80, 80), 0x8000, np.uint16))
    image.save(tmp_path / "a.png", transparency=transparent)
    assert load_image(tmp_path / "a.png").image.getpixel((40, 40)) == (gray, gray, gray)


def test_what_is_one_image_has_no_note_about_frames(tmp_path: Path) -> None:
    image, other = Image.new("RGB", (80, 80), RED), Image.new("RGB", (80, 80), "blue")
    image.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[other])
    (tmp_path / "layers.psd").write_bytes(layered_psd())
    for name in ("phone.jpg", "layers.psd"):
        loaded = load_image(tmp_path / name)
        assert loaded.notes == ()
        assert loaded.image.getpixel((40, 40)) == pytest.approx(RED, abs=3)


def layered_psd() -> bytes:
    """A red PSD of 80 x 80 px with two empty layers."""
    channel = struct.pack(">4IHHI", 0, 0, 0, 0, 1, 0, 2)
    layer = channel + struct.pack(">4s4sBBBBI", b"8BIM", b"norm", 255, 0, 0, 0, 12) + bytes(12)
    layers = struct.pack(">h", 2) + layer * 2 + bytes(4)
    section = struct.pack(">I", len(layers)) + layers
    header = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, 80, 80, 8, 3)
    pixels = b"\xff" * 6400 + bytes(12_800)
    return header + bytes(8) + struct.pack(">I", len(section)) + section + b"\0\0" + pixels


@pytest.mark.parametrize("name", ["a.png", "a.gif", "a.webp"])
def test_first_frame_of_animations_is_used_and_said(name: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (80, 80), color) for color in ("red", "blue", "lime")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=100)
    loaded = load_image(tmp_path / name)
    assert loaded.notes == (f"{name} has 3 frames; the first one is used.",)
    assert loaded.image.getpixel((40, 40)) == pytest.approx(RED, abs=3)


def test_pipes_devices_and_huge_files_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(64 * 2**30)
    cases = {
        tmp_path / "pipe.png": "a pipe or a device",
        Path("/dev/zero"): "a pipe or a device",
        tmp_path / "huge.png": "68719476736 bytes",
    }
    for path, reason in cases.items():
        for read in (load_image, read_parameters):
            with pytest.raises(UsageError, match=reason):
                read(path)


@pytest.mark.parametrize("name", ["a.eps", "picture.png"])
def test_postscript_starts_no_other_program(name: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / name).write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\nshowpage\n"
    )
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("another program was started"))
    with pytest.raises(UsageError, match="PostScript or Illustrator") as caught:
        load_image(tmp_path / name)
    assert "PNG" in hint(caught.value)


def zipped(mimetype: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("mimetype", mimetype)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "kind", "program"),
    [
        ("a.CR2", b"II*\0", "raw file", "darktable"),
        ("a.nef", b"MM\0*", "raw file", "darktable"),
        ("a.dng", b"II*\0", "raw file", "darktable"),
        ("a.svg", b"<?xml version='1.0'?>\n<svg xmlns='x'>", "vector", "Inkscape"),
        ("a.png", b"<svg xmlns='x'>", "vector", "Inkscape"),
        ("a.pdf", b"%PDF-1.7", "PDF", "GIMP"),
        ("a.ai", b"%PDF-1.7", "PDF", "Inkscape"),
        ("a.MOV", b"\0\0\0\x14ftypqt  ", "video", "VLC"),
        ("a.mp4", b"", "video", "VLC"),
        ("a.kra", zipped("application/x-krita"), "Krita", "Krita"),
        ("a.ora", zipped("image/openraster"), "OpenRaster", "GIMP"),
        ("a.xcf", b"gimp xcf v011", "GIMP", "GIMP"),
        ("a.psb", b"8BPS\0\2", "Photoshop", "Photoshop"),
        ("a.exr", b"\x76\x2f\x31\x01", "high dynamic range", "Krita"),
        ("a.clip", b"CSFCHUNK", "CLIP STUDIO", "CLIP STUDIO PAINT"),
        ("a.procreate", zipped("x"), "Procreate", "Procreate"),
        ("a.afphoto", b"\0\xffKA", "Affinity", "Affinity"),
        ("a.tga", b"\0\0\2\0", "texture", "GIMP"),
        ("fox.jpg", b"<!DOCTYPE html><html>", "web page", "save the image itself"),
        ("fox.jpg", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS", "git lfs pull"),
        ("a.zip", zipped("x"), "archive", "Unpack"),
        ("a.txt", b"hello", "not an image", "PNG, JPEG, WebP, HEIC"),
        ("a", b"", "not an image", "PNG, JPEG, WebP, HEIC"),
    ],
)
def test_what_cannot_be_read_says_what_converts_it(name, data, kind, program, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=kind) as caught:
        load_image(tmp_path / name)
    assert program in hint(caught.value)


def test_jpeg_xl_is_read_with_its_extra_and_named_without(tmp_path: Path, monkeypatch) -> None:
    from unziplora_cli import image_formats

    path = tmp_path / "a.jxl"
    path.write_bytes(b"\xff\x0a" + bytes(20))
    without = [name for name in image_formats.formats() if name != "JXL"]
    monkeypatch.setattr(image_formats, "formats", lambda: without)
    with pytest.raises(UsageError, match="JPEG XL") as caught:
        load_image(path)
    assert "unziplora[jxl]" in hint(caught.value)
    monkeypatch.undo()
    pytest.importorskip("pillow_jxl")
    Image.new("RGB", (80, 80), RED).save(path, lossless=True)
    assert load_image(path).image.getpixel((40, 40)) == RED


def test_endings_of_readable_images() -> None:
    readable = ["a.png", "b.JPG", "c.heic", "e.psd", "f.webp", "g.tiff", "h.jp2", "i.HIF"]
    others = ["._a.png", ".DS_Store", "a.eps", "b.txt", "c.pdf", "d", "Thumbs.db", "e.cr2", ".hidden.jpg"]
    assert [name for name in readable + others if has_image_ending(Path(name))] == readable


def test_parameters_are_latin_1_text_where_possible(tmp_path: Path) -> None:
    """ComfyUI's page and exifr read tEXt; only other scripts need iTXt."""
    for prompt, kind in (('a façade, "old"', b"tEXt"), ("一只狐狸", b"iTXt")):
        parameters = {"prompts": {"full": prompt}, "steps": 20, "seed": 7, "guidance": 5.0}
        save_png(Image.new("RGB", (80, 80)), tmp_path / "a.png", parameters, force=True)
        data = (tmp_path / "a.png").read_bytes()
        assert [data[data.index(key) - 4 : data.index(key)] for key in (b"parameters\0", b"unziplora\0")] == [
            kind
        ] * 2
        assert read_parameters(tmp_path / "a.png") == parameters
        with Image.open(tmp_path / "a.png") as image:
            first, last = image.info["parameters"].split("\n")
        assert first == prompt
        assert dict(pair.split(": ") for pair in last.split(", "))["Seed"] == "7"


def test_surrogates_in_parameters_are_replaced(tmp_path: Path) -> None:
    save_png(Image.new("RGB", (80, 80)), tmp_path / "a.png", {"prompts": {"full": "fox\udcff"}})
    assert read_parameters(tmp_path / "a.png")["prompts"] == {"full": "fox?"}


@pytest.mark.parametrize(
    "text", ["", "null", "[1]", "{", '{"prompts": 7}', "[" * 100_000, '{"seed": 1e999}', "9" * 5000]
)
def test_odd_parameters_are_no_parameters(text: str, tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("unziplora", text)
    Image.new("RGB", (80, 80)).save(tmp_path / "a.png", pnginfo=info)
    assert read_parameters(tmp_path / "a.png") == {}


def test_parameters_in_a_huge_compressed_text_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(itxt("unziplora", json.dumps({"command": "x" * 3_000_000}))))
    assert read_parameters(tmp_path / "a.png") == {}
