"""Which image formats are read, and how to convert the others."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from pathlib import Path

from unziplora_cli.errors import Remedy, UsageError

FORMATS = (
    "PNG", "JPEG", "MPO", "WEBP", "HEIF", "AVIF", "TIFF", "GIF", "BMP", "PSD", "JPEG2000", "PPM", "QOI", "JXL"
)  # fmt: skip
"""Pillow's names of the formats that are read, and of no others: some plugins start other programs."""

READABLE = "PNG, JPEG, WebP, HEIC, AVIF, TIFF, GIF, BMP and PSD"

JXL = Remedy("Install the reader for JPEG XL", extra="jxl")

_CONVERSIONS: tuple[tuple[str, str, tuple[bytes, ...], Remedy], ...] = (
    (
        "a camera's raw file",
        "3fr arw cr2 cr3 crw dcr dng erf iiq kdc mef mos mrw nef nrw orf pef raf raw rw2 rwl srf srw x3f",
        (b"FUJIFILMCCD-RAW", b"IIU\0", b"IIRO", b"FOVb"),
        Remedy("Develop it with darktable, RawTherapee or Lightroom, and export a JPEG or PNG."),
    ),
    ("a vector drawing", "svg svgz emf wmf cdr", (b"<svg",), Remedy("Export it from Inkscape as PNG.")),
    (
        "a PostScript or Illustrator file",
        "ai eps epsf ps",
        (b"%!PS", b"\xc5\xd0\xd3\xc6"),
        Remedy("Export it from Illustrator, Inkscape or GIMP as PNG."),
    ),
    (
        "a PDF document",
        "pdf",
        (b"%PDF",),
        Remedy("Export the page as PNG, for example with GIMP, Inkscape or Preview."),
    ),
    (
        "a video",
        "mp4 m4v mov avi mkv webm mpg mpeg wmv flv 3gp ogv mts m2ts",
        (b"\x1aE\xdf\xa3", b"ftypqt", b"ftypisom", b"ftypmp4", b"ftypM4V", b"ftypavc1"),
        Remedy("Save one frame as PNG, for example with VLC (Video, Take Snapshot) or ffmpeg."),
    ),
    ("a Krita document", "kra krz", (b"application/x-krita",), Remedy("Export it from Krita as PNG.")),
    ("an OpenRaster document", "ora", (b"image/openraster",), Remedy("Export it from Krita or GIMP as PNG.")),
    ("a GIMP document", "xcf", (b"gimp xcf",), Remedy("Export it from GIMP as PNG.")),
    ("a large Photoshop document", "psb", (b"8BPS\0\x02",), Remedy("Export it from Photoshop as PNG.")),
    ("an Affinity document", "afphoto afdesign af", (), Remedy("Export it from Affinity as PNG.")),
    (
        "a CLIP STUDIO document",
        "clip lip",
        (b"CSFCHUNK",),
        Remedy("Export it from CLIP STUDIO PAINT as PNG."),
    ),
    ("a Procreate document", "procreate", (), Remedy("Share it from Procreate as PNG.")),
    ("a Paint.NET document", "pdn", (b"PDN3",), Remedy("Save it from Paint.NET as PNG.")),
    ("a SAI document", "sai sai2", (), Remedy("Export it from PaintTool SAI as PNG.")),
    ("a MediBang document", "mdp", (b"mdipack",), Remedy("Export it from MediBang Paint as PNG.")),
    ("a CorelDRAW or Painter document", "cpt rif riff", (), Remedy("Export it from Corel as PNG.")),
    ("a Blender scene", "blend", (b"BLENDER",), Remedy("Render it in Blender and save the result as PNG.")),
    (
        "a high dynamic range image",
        "exr hdr",
        (b"\x76\x2f\x31\x01", b"#?RADIANCE", b"#?RGBE"),
        Remedy("Tone-map it with GIMP, Krita or Photoshop, and export it as PNG."),
    ),
    (
        "a game texture, an icon or a scan",
        "dds ktx ktx2 tga icb vda vst ico cur icns pcx dcx sgi rgb bw ras djvu djv jxr wdp fits",
        (b"DDS ", b"\xabKTX", b"AT&TFORM", b"icns"),
        Remedy("Open it in GIMP, XnView or IrfanView, and save it as PNG."),
    ),
    (
        "a web page",
        "html htm mhtml",
        (b"<!doctype html", b"<html"),
        Remedy("Open the page and save the image itself."),
    ),
    (
        "a placeholder of Git LFS",
        "",
        (b"version https://git-lfs",),
        Remedy("Fetch the file itself", command="lfs pull", program="git"),
    ),
    (
        "a document",
        "doc docx odt ppt pptx odp key pages rtf xlsx",
        (b"\xd0\xcf\x11\xe0",),
        Remedy("Open it and save the image in it as PNG."),
    ),
    ("an archive", "zip rar 7z tar gz cbz cbr", (b"Rar!", b"7z\xbc\xaf"), Remedy("Unpack it first.")),
    ("JPEG XL", "jxl", (b"\xff\x0a", b"\0\0\0\x0cJXL "), JXL),
)
"""What a file is, its endings, marks near its beginning, and how to convert it."""

_RAW_ENDINGS = frozenset(_CONVERSIONS[0][1].split())


@cache
def formats() -> list[str]:
    """Pillow's names of the formats that can be read here, with the plugins for HEIC and JPEG XL."""
    from PIL import Image

    Image.init()
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener(thumbnails=False)
    with suppress(ImportError):
        import pillow_jxl  # noqa: F401  (registers itself)
    return [name for name in FORMATS if name in Image.OPEN]


def has_image_ending(path: Path) -> bool:
    """Whether a file name ends like an image that can be read, and is not hidden (as ``._fox.png``)."""
    from PIL import Image

    readable = formats()
    ending = path.suffix.lower()
    return Image.registered_extensions().get(ending) in readable and not path.name.startswith(".")


def image_files(folder: Path) -> list[Path]:
    """The images in a folder, by name, without hidden files."""
    return [file for file in sorted(folder.iterdir()) if has_image_ending(file) and file.is_file()]


def is_raw(path: Path) -> bool:
    """Whether a file is a camera's raw file, whose TIFF reader would only see its thumbnail."""
    return path.suffix[1:].lower() in _RAW_ENDINGS


def unreadable(path: Path, start: bytes) -> UsageError:
    """The error for a file that is in no readable format, from its first bytes and its name."""
    if _is_readable_format(start):
        return UsageError(
            f"{path} is damaged, or of a kind that cannot be read.",
            Remedy("Export it as PNG with 8 or 16 bits per channel."),
        )
    ending = path.suffix[1:].lower()
    near = start[:512].lower()
    rows = [row for row in _CONVERSIONS if any(_marks(near, mark.lower()) for mark in row[2])]
    rows += [row for row in _CONVERSIONS if ending in row[1].split()]
    if not rows or (not start and not ending):
        return UsageError(f"{path} is not an image that can be read.", Remedy(f"Use {READABLE}."))
    kind, _, _, remedy = rows[0]
    return UsageError(f"{path} is {kind}, which cannot be read.", remedy)


def _marks(start: bytes, mark: bytes) -> bool:
    """Whether a mark is where it belongs: at the beginning, or within a header that varies."""
    varies = mark.startswith((b"<svg", b"ftyp", b"application/", b"image/", b"<!doctype", b"<html"))
    return mark in start if varies else start.startswith(mark)


def _is_readable_format(start: bytes) -> bool:
    signatures = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"8BPS\0\x01", b"qoif")
    brands = (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypavif", b"ftypavis", b"jP  \r\n\x87\n")
    return start.startswith(signatures) or start[8:12] == b"WEBP" or start[4:12] in brands
