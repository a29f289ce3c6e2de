"""Color profiles and other color marks: the expected values come from published matrices."""

import struct
from io import BytesIO
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from unziplora_cli import color
from unziplora_cli.images import load_image

# RGB -> XYZ under each space's own white: D65, and D50 for ProPhoto (brucelindbloom.com, SMPTE EG 432-1).
ADOBE = [
    [0.5767309, 0.1855540, 0.1881852],
    [0.2973769, 0.6273491, 0.0752741],
    [0.0270343, 0.0706872, 0.9911085],
]
P3 = [[0.4865709, 0.2656677, 0.1982173], [0.2289746, 0.6917385, 0.0792869], [0.0, 0.0451134, 1.0439444]]
PROPHOTO = [[0.7976749, 0.1351917, 0.0313534], [0.2880402, 0.7118741, 0.0000857], [0.0, 0.0, 0.8252100]]
SRGB = [
    [0.4124564, 0.3575761, 0.1804375],
    [0.2126729, 0.7151522, 0.0721750],
    [0.0193339, 0.1191920, 0.9503041],
]
D50_TO_D65 = [
    [0.9555766, -0.0230393, 0.0631636],
    [-0.0282895, 1.0099416, 0.0210077],
    [0.0122982, -0.0204830, 1.3299098],
]
PROPHOTO_POINTS = (0.3457, 0.3585, 0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001)
P3_POINTS = color.H273_PRIMARIES[12]


def linear(values: object) -> np.ndarray:
    values = np.asarray(values) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def encoded(values: np.ndarray) -> np.ndarray:
    values = values.clip(0, 1)
    return 255 * np.where(values <= 0.0031308, 12.92 * values, 1.055 * values ** (1 / 2.4) - 0.055)


def srgb(rgb: object, matrix: object, gamma: float | None, adapt: object = np.eye(3)) -> np.ndarray:
    """The sRGB values of a color of another space."""
    light = linear(rgb) if gamma is None else (np.asarray(rgb) / 255) ** gamma
    return encoded(np.linalg.inv(SRGB) @ adapt @ matrix @ light)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def center(path: Path) -> tuple[int, ...]:
    loaded = load_image(path)
    assert loaded.notes == ()
    return loaded.image.getpixel((40, 40))


@pytest.mark.parametrize(
    "rgb", [(180, 120, 90), (90, 140, 120), (128, 128, 128), (255, 255, 255), (20, 25, 30)]
)
@pytest.mark.parametrize(
    ("points", "gamma", "matrix", "adapt"),
    [
        (P3_POINTS, None, P3, np.eye(3)),
        (color.ADOBE_RGB, 563 / 256, ADOBE, np.eye(3)),
        (PROPHOTO_POINTS, 1.8, PROPHOTO, D50_TO_D65),
    ],
)
def test_profiles_of_wide_spaces_are_converted(rgb, points, gamma, matrix, adapt, tmp_path: Path) -> None:
    path = saved(
        Image.new("RGB", (80, 80), rgb), tmp_path / "a.png", icc_profile=color.matrix_profile(points, gamma)
    )
    assert center(path) == pytest.approx(srgb(rgb, matrix, gamma, adapt), abs=1.5)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a.heic", "a.avif"])
def test_profiles_are_read_in_every_format(name: str, tmp_path: Path) -> None:
    if name.endswith("avif") and "AVIF" not in Image.SAVE:
        pytest.skip("this Pillow has no AVIF")
    if name.endswith("heic"):
        pytest.importorskip("pillow_heif").register_heif_opener()
    rgb = (200, 90, 60)
    options = {"quality": 98} if name not in ("a.png", "a.tif") else {}
    profile = color.matrix_profile(P3_POINTS, None)
    path = saved(Image.new("RGB", (80, 80), rgb), tmp_path / name, icc_profile=profile, **options)
    assert center(path) == pytest.approx(srgb(rgb, P3, None), abs=3)


def test_transparency_and_palettes_survive_a_profile(tmp_path: Path) -> None:
    profile = color.matrix_profile(P3_POINTS, None)
    image = Image.new("RGBA", (80, 80), (200, 90, 60, 255))
    image.paste((200, 90, 60, 0), (0, 0, 20, 80))
    loaded = load_image(saved(image, tmp_path / "a.png", icc_profile=profile)).image
    expected = srgb((200, 90, 60), P3, None)
    assert loaded.getpixel((40, 40)) == pytest.approx(expected, abs=1.5)
    assert loaded.getpixel((5, 5)) == (255, 255, 255)
    palette = Image.new("P", (80, 80), 1)
    palette.putpalette([0, 0, 0, 200, 90, 60])
    assert center(saved(palette, tmp_path / "p.png", icc_profile=profile)) == pytest.approx(expected, abs=1.5)


def gray_profile(gamma: float) -> bytes:
    """The profile of a gray scale with a plain power."""
    curve = struct.pack(">4s4xIH2x", b"curv", 1, round(gamma * 256))
    white = struct.pack(">4s4x3i", b"XYZ ", *(round(v * 65536) for v in (0.9642, 1.0, 0.8249)))
    table = struct.pack(">I4sII4sII", 2, b"wtpt", 156, 20, b"kTRC", 176, 16)
    header = struct.pack(
        ">I4xI4s4s4s12x4s28x3i48x", 192, 0x02100000, b"mntr", b"GRAY", b"XYZ ", b"acsp", 63190, 65536, 54061
    )
    return header + table + white + curve


@pytest.mark.parametrize("gamma", [1.0, 1.8])
def test_gray_profiles_are_converted(gamma: float, tmp_path: Path) -> None:
    expected = encoded(np.array([(100 / 255) ** gamma] * 3))
    for image in (Image.new("L", (80, 80), 100), Image.fromarray(np.full((80, 80), 25_700, np.uint16))):
        path = saved(image, tmp_path / "a.png", icc_profile=gray_profile(gamma))
        assert center(path) == pytest.approx(expected, abs=1.5)


def test_gray_images_with_an_rgb_profile_are_converted(tmp_path: Path) -> None:
    profile = color.matrix_profile(color.SRGB, 1.0)
    path = saved(Image.new("L", (80, 80), 100), tmp_path / "a.png", icc_profile=profile)
    assert center(path) == pytest.approx(encoded(np.array([100 / 255] * 3)), abs=1.5)


def cmyk_profile(lightness: int) -> bytes:
    """An output profile of 2 x 2 x 2 x 2 points: paper is white, every ink has the same L* without color."""
    grid = b"".join(bytes((255 if point == 0 else round(lightness * 2.55), 128, 128)) for point in range(16))
    ramp = bytes(range(256))
    identity = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    lut = struct.pack(">4s4xBBBx", b"mft1", 4, 3, 2) + identity + ramp * 4 + grid + ramp * 3
    white = struct.pack(">4s4x3i", b"XYZ ", 63190, 65536, 54061)
    table = struct.pack(">I4sII4sII", 2, b"wtpt", 156, 20, b"A2B0", 176, len(lut))
    header = struct.pack(
        ">I4xI4s4s4s12x4s28x3i48x",
        176 + len(lut), 0x02100000, b"prtr", b"CMYK", b"Lab ", b"acsp", 63190, 65536, 54061,
    )  # fmt: skip
    return header + table + white + lut


def test_cmyk_profiles_are_converted_and_a_missing_one_is_said(tmp_path: Path) -> None:
    paper, ink = Image.new("CMYK", (80, 80), (0, 0, 0, 0)), Image.new("CMYK", (80, 80), (255, 0, 0, 0))
    profile = cmyk_profile(50)
    assert center(saved(paper, tmp_path / "w.tif", icc_profile=profile)) == pytest.approx([255] * 3, abs=2)
    gray = center(saved(ink, tmp_path / "c.tif", icc_profile=profile))
    assert max(gray) - min(gray) <= 2  # the profile says gray, where a conversion without it says cyan
    assert 80 < gray[0] < 130  # L* 50 is 119 in sRGB; black point compensation may darken it
    bare = load_image(saved(ink, tmp_path / "bare.jpg"))
    assert bare.notes == ("bare.jpg is CMYK without a color profile; its colors are approximate.",)


def test_lab_is_converted(tmp_path: Path) -> None:
    values = np.zeros((80, 80, 3), np.uint8)
    values[...] = (136, 208 - 256 & 255, 50)  # L* 53.3, a* -48, b* 50
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="cielab")
    expected = lab_to_srgb(136 / 2.55, -48, 50)
    assert center(tmp_path / "a.tif") == pytest.approx(expected, abs=2)


def lab_to_srgb(lightness: float, a: float, b: float) -> np.ndarray:
    """CIE 15:2004, and Bradford's adaptation from D50."""
    fy = (lightness + 16) / 116
    f = np.array([fy + a / 500, fy, fy - b / 200])
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * (0.9642, 1.0, 0.8249)
    return encoded(np.linalg.inv(SRGB) @ D50_TO_D65 @ xyz)


@pytest.mark.parametrize(
    ("mode", "profile"),
    [
        ("RGB", b"no profile"),
        ("RGB", color.matrix_profile(color.ADOBE_RGB, 2.2)[:300]),
        ("RGB", gray_profile(1.8)),
        ("RGB", cmyk_profile(50)),
        ("L", cmyk_profile(50)),
    ],
)
def test_a_useless_profile_is_said_once_and_the_image_kept(mode: str, profile: bytes, tmp_path: Path) -> None:
    path = saved(Image.new(mode, (80, 80), 100), tmp_path / "a.png", icc_profile=profile)
    loaded = load_image(path)
    assert loaded.notes == ("The color profile of a.png is broken or of another kind; it is ignored.",)
    assert loaded.image.getpixel((5, 5)) == Image.new(mode, (1, 1), 100).convert("RGB").getpixel((0, 0))


def with_chunk(path: Path, kind: bytes, content: bytes) -> Path:
    """A mid-tone PNG with one more chunk."""
    data = saved(Image.new("RGB", (80, 80), (180, 120, 90)), path).read_bytes()
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc32(kind + content))
    path.write_bytes(data[:33] + chunk + data[33:])  # after the header
    return path


def points_chunk(points: object) -> bytes:
    return struct.pack(">8I", *(round(value * 100_000) for value in points))


def test_color_chunks_of_png_are_read(tmp_path: Path) -> None:
    rgb = (180, 120, 90)
    p3 = srgb(rgb, P3, None)
    assert center(with_chunk(tmp_path / "a.png", b"cICP", bytes((12, 13, 0, 1)))) == pytest.approx(
        p3, abs=1.5
    )
    assert center(with_chunk(tmp_path / "b.png", b"cICP", bytes((1, 13, 0, 1)))) == rgb
    lit = center(with_chunk(tmp_path / "c.png", b"gAMA", struct.pack(">I", 100_000)))
    assert lit == pytest.approx(encoded(np.array(rgb) / 255), abs=1.5)
    assert center(with_chunk(tmp_path / "d.png", b"gAMA", struct.pack(">I", 45_455))) == rgb
    points = center(with_chunk(tmp_path / "e.png", b"cHRM", points_chunk(P3_POINTS)))
    assert points == pytest.approx(p3, abs=1.5)
    for broken in ((0,) * 8, (0.3127, 0, *color.SRGB[2:]), (*color.SRGB[:2], *(0.3, 0.3) * 3)):
        assert center(with_chunk(tmp_path / "f.png", b"cHRM", points_chunk(broken))) == rgb
    hdr = load_image(with_chunk(tmp_path / "g.png", b"cICP", bytes((9, 16, 0, 1))))
    assert hdr.notes == ("g.png has a high dynamic range; its colors are approximate.",)


def test_adobe_rgb_of_cameras_is_read_from_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x8769] = {0xA001: 2}
    rgb = (200, 90, 60)
    path = saved(Image.new("RGB", (80, 80), rgb), tmp_path / "a.jpg", exif=exif, quality=98)
    assert center(path) == pytest.approx(srgb(rgb, ADOBE, 563 / 256), abs=2)


def test_an_srgb_profile_changes_nothing(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noise = Image.effect_noise((80, 80), 80).convert("RGB")
    loaded = load_image(saved(noise, tmp_path / "a.png", icc_profile=profile)).image
    assert np.abs(np.asarray(loaded, int) - np.asarray(noise, int)).max() <= 1


def test_heic_of_a_phone_is_turned_once_and_converted(tmp_path: Path) -> None:
    """Phones write it twice: as a transformation of HEIF, and in EXIF, where it does not count."""
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    image = Image.new("RGB", (128, 80), (200, 90, 60))
    image.paste("black", (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = BytesIO()
    profile = color.matrix_profile(P3_POINTS, None)
    image.save(buffer, "HEIF", exif=exif.tobytes(), icc_profile=profile, quality=98)
    with Image.open(buffer) as opened:
        assert (opened.size, opened.info["original_orientation"]) == ((80, 128), 6)  # in both places
    path = tmp_path / "IMG_1.HEIC"
    path.write_bytes(buffer.getvalue())
    loaded = load_image(path)
    assert loaded.notes == ()
    assert loaded.image.size == (80, 128)
    assert max(loaded.image.getpixel((70, 8))) < 20
    assert loaded.image.getpixel((20, 100)) == pytest.approx(srgb((200, 90, 60), P3, None), abs=4)
