"""Pictures that no set contains: photographs of Tux Paint's and drawings of openclipart's.

    python -m recipes.mini.strangers FOLDER          # FOLDER is the one of `recipes.mini.fetch`

Of every package one half, by a checksum of the file's path, is held out of all that will ever be trained;
the strangers come from it. They are chosen by a seed among files that are named after a subject of the base,
and nobody looked at what a model makes of them before the list was fixed. The other half of openclipart
(public domain) is written as cut-outs to `others.npz`, for networks that name subjects.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from recipes.mini.artists import subjects, synonyms
from recipes.mini.fetch import download, files, fit

EACH = 8
"""Pictures of every package."""
SIDE = 256
SEED = 16
TUX, CLIPART = "tuxpaint-stamps-default", "openclipart-png"
MOST = 6
"""Pictures of one subject from the other half of a package: there are hundreds of stars."""
WORDS = {TUX: "photo", CLIPART: "clip art"}
"""The style word of the package's pictures."""
_FOLDERS = {
    TUX: re.compile(r"/stamps/(?!.*(?:cartoon|symbols|town))"),
    CLIPART: re.compile(
        r"/png/(?:animals|buildings|food|office|electronics|geography|plants|recreation|tools|transportation)/"
    ),
}


def candidates(archive: Path, package: str) -> Iterator[tuple[str, bytes]]:
    """The subject and the content of every file of the held-out half that is named after a subject."""
    names = set(subjects())
    for word, content in _named(archive, package, held_out=True):
        if word in names:
            yield word, content


def others(archive: Path, package: str) -> Iterator[tuple[str, np.ndarray]]:
    """Subject and cut-out, uint8 [104, 104, 4], of the other half's files with a subject in their names.

    A file whose background is not transparent is passed over.
    """
    names = {word: name for name in subjects() for word in (*synonyms(name), name)}
    counts: dict[str, int] = {}
    for text, content in _named(archive, package, held_out=False):
        words = text.split()
        parts = [" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)]
        subject = next((names[part] for part in sorted(parts, key=len, reverse=True) if part in names), "")
        if not subject or counts.setdefault(subject, 0) == MOST:
            continue
        picture = _picture(content)
        if np.asarray(picture.getchannel("A"))[[0, 0, -1, -1], [0, -1, 0, -1]].min() > 128:
            continue
        counts[subject] += 1
        yield subject, np.asarray(fit(picture))


def on_white(content: bytes) -> Image.Image:
    """A picture on a white square with a margin."""
    picture = _picture(content)
    if box := picture.getchannel("A").getbbox():
        picture = picture.crop(box)
    scale = 0.84 * SIDE / max(picture.size)
    small = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.LANCZOS)
    page = Image.new("RGB", (SIDE, SIDE), "white")
    page.paste(small, ((SIDE - small.width) // 2, (SIDE - small.height) // 2), small)
    return page


def _named(archive: Path, package: str, *, held_out: bool) -> Iterator[tuple[str, bytes]]:
    """The words of the name, and the content, of every picture of one half of a package."""
    for path, content in files(archive):
        if (
            path.endswith(".png")
            and _FOLDERS[package].search(f"/{path}")
            and zlib.crc32(path.encode()) % 2 == held_out
        ):
            yield re.sub(r"[\W_\d]+", " ", Path(path).stem).strip().lower(), content


def _picture(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content)) as opened:
        return opened.convert("RGBA")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    archives = download(args.folder / "packages")
    out = args.folder / "strangers"
    out.mkdir(exist_ok=True)
    listed: list[dict[str, str]] = []
    for package in (TUX, CLIPART):
        pictures = dict(candidates(archives[package], package))
        words = [word for word in sorted(pictures) if word not in {entry["subject"] for entry in listed}]
        for index in np.random.default_rng(SEED).permutation(len(words))[:EACH]:
            name = f"{len(listed):02}-{words[index].replace(' ', '-')}.png"
            on_white(pictures[words[index]]).save(out / name)
            entry = {"file": name, "subject": words[index], "style": WORDS[package], "package": package}
            listed.append(entry)
    names, pictures_of = zip(*others(archives[CLIPART], CLIPART), strict=True)
    np.savez_compressed(out / "others.npz", names=np.array(names), pictures=np.stack(pictures_of))
    print(f"{len(names)} pictures of {len(set(names))} subjects from the other half")
    (out / "strangers.json").write_text(json.dumps(listed, indent=1) + "\n")
    print("\n".join(f"{entry['file']}: {entry['package']}" for entry in listed))


if __name__ == "__main__":
    main()
