"""Fetch what artists drew and pack it as cut-outs: `python -m recipes.mini.fetch FOLDER`.

The packages come from npm's registry and Debian's archive at fixed versions, their content checked by hash.
FOLDER/packages keeps the archives, FOLDER/cutouts receives a sheet for each set and `sheets.json`, which says
which subject stands where. Needs `resvg-py`.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import re
import tarfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from recipes.mini.artists import COLUMNS, CUTOUT, SETS, table

QUALITY = 72
"""Of the sheets; they are scaled down from twice the size."""
SAMPLE = ("fxemoji", "octopus")
"""Set and subject of the shipped sample picture."""
_NPM, _DEBIAN = "https://registry.npmjs.org", "http://deb.debian.org/debian/pool/main"


@dataclass(frozen=True)
class Package:
    """An archive at a fixed version; `digest` is npm's `integrity` or Debian's SHA-256."""

    name: str
    version: str
    digest: str
    license: str
    author: str

    @property
    def address(self) -> str:
        if self.name.endswith(("-default", "-png")):
            source = self.name.rsplit("-", 1)[0]
            return f"{_DEBIAN}/{source[0]}/{source}/{self.name}_{self.version}_all.deb"
        return f"{_NPM}/{self.name}/-/{self.name.split('/')[-1]}-{self.version}.tgz"

    def is_whole(self, content: bytes) -> bool:
        """Whether this is what the version held when it was chosen."""
        kind, _, expected = self.digest.partition("-")
        digest = hashlib.new(kind, content)
        return expected in (digest.hexdigest(), base64.b64encode(digest.digest()).decode())


PACKAGES = (
    Package(
        "@iconify-json/fluent-emoji",
        "1.2.7",
        "sha512-D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==",
        "MIT",
        "Microsoft Corporation",
    ),
    Package(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        "MIT",
        "Microsoft Corporation",
    ),
    Package(
        "@iconify-json/fluent-emoji-high-contrast",
        "1.2.6",
        "sha512-esqhZPpkrF7sNX3NsLoh8KW64okEr/bzko7WNnFP+qTJGAqDPDYjp0925yxuivXy3HtVQB8xhIKu3+Nq1byX5w==",
        "MIT",
        "Microsoft Corporation",
    ),
    Package(
        "@iconify-json/noto",
        "1.2.9",
        "sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        "Apache-2.0",
        "Google Inc",
    ),
    Package(
        "@iconify-json/noto-v1",
        "1.2.5",
        "sha512-/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
        "Apache-2.0",
        "Google Inc",
    ),
    Package(
        "@iconify-json/twemoji",
        "1.2.5",
        "sha512-uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
        "CC-BY-4.0",
        "Twitter",
    ),
    Package(
        "@iconify-json/emojione",
        "1.2.3",
        "sha512-T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
        "CC-BY-4.0",
        "Emoji One, EmojiTwo",
    ),
    Package(
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        "MIT",
        "Microsoft Corporation, LobeHub",
    ),
    Package(
        "@iconify-json/openmoji",
        "1.2.29",
        "sha512-vXdhkqcXVSO6suy+m9LbcUM3OdVyuNOtpV8/als/WqfkQIRxevL5Geb/g+6GH/Qwnq1OqksEmaDGTCmZ5nFKJQ==",
        "CC-BY-SA-4.0",
        "OpenMoji",
    ),
    Package(
        "@iconify-json/fxemoji",
        "1.2.2",
        "sha512-UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==",
        "Apache-2.0",
        "Mozilla",
    ),
    Package(
        "emojibase-data",
        "17.0.0",
        "sha512-Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
        "MIT",
        "Miles Johnson",
    ),
    Package(
        "tuxpaint-stamps-default",
        "2022.06.04-1",
        "sha256-6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        "GPL-2",
        "Bill Kendrick and others",
    ),
    Package(
        "openclipart-png",
        "0.18+dfsg-19",
        "sha256-f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
        "public domain",
        "Open Clip Art Library",
    ),
)


def download(folder: Path) -> dict[str, Path]:
    """Every package's archive by name; raises OSError if one is not what it was."""
    folder.mkdir(parents=True, exist_ok=True)
    archives = {}
    for package in PACKAGES:
        path = folder / package.address.rsplit("/", 1)[1]
        if not path.exists():
            with urllib.request.urlopen(package.address) as answer:
                content = answer.read()
            if not package.is_whole(content):
                raise OSError(f"{package.address} is not the archive that this recipe was made with")
            path.write_bytes(content)
        archives[package.name] = path
    return archives


def files(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of an archive of npm or Debian."""
    content = archive.read_bytes()
    if archive.suffix == ".deb":
        content = next(body for name, body in _ar(content) if name.startswith("data.tar"))
    with tarfile.open(fileobj=io.BytesIO(content)) as packed:
        for member in packed:
            if member.isfile() and (opened := packed.extractfile(member)):
                yield member.name.removeprefix("./").removeprefix("package/"), opened.read()


def _ar(content: bytes) -> Iterator[tuple[str, bytes]]:
    at = 8
    while at + 60 <= len(content):
        name, size = content[at : at + 16].decode().strip(), int(content[at + 48 : at + 58])
        yield name, content[at + 60 : at + 60 + size]
        at += 60 + size + size % 2


class Icons:
    """The SVG pictures of one `@iconify-json` package, found by code point."""

    def __init__(self, archive: Path, names: Mapping[str, set[str]]) -> None:
        content = dict(files(archive))
        self.data = json.loads(content["icons.json"])
        charts = json.loads(content.get("chars.json", b"{}"))
        self.by_code = {plain(code): name for code, name in charts.items()}
        every = (*self.data["icons"], *self.data.get("aliases", {}))
        self.squeezed = {squeeze(name): name for name in every}
        self.names = names

    def find(self, code: str) -> str | None:
        """The package's own name of a code point, by its chart or by what others call it."""
        if code in self.by_code:
            return self.by_code[code]
        matches = sorted(self.names.get(code, set()) & set(self.squeezed))
        return self.squeezed[matches[0]] if matches else None

    def svg(self, name: str) -> str:
        """One picture as an SVG document."""
        alias = self.data.get("aliases", {}).get(name)
        icon = {**self.data["icons"][alias["parent"]], **alias} if alias else self.data["icons"][name]
        left, top, width, height = (
            icon.get(key, self.data.get(key, default))
            for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
        )
        head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        return f'{head} viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'


def plain(code: str) -> str:
    """A code point sequence without the sign that asks for a colourful form."""
    return code.lower().replace("-fe0f", "")


def squeeze(name: str) -> str:
    """Letters and digits alone, since sets write the same name in many ways."""
    return re.sub("[^a-z0-9]", "", name.lower())


def names_by_code(archives: Mapping[str, Path]) -> dict[str, set[str]]:
    """Every code point's names, squeezed, from all packages that have a chart."""
    content = dict(files(archives["emojibase-data"]))
    names: dict[str, set[str]] = {}
    for entry in json.loads(content["en/data.json"]):
        names[plain(entry["hexcode"])] = {squeeze(entry["label"])}
    charts = [
        json.loads(body) for name, body in content.items() if re.match(r"en/shortcodes/.*\.json$", name)
    ]
    for artist_set in SETS.values():
        if artist_set.package.startswith("@iconify-json"):
            charts.append(json.loads(dict(files(archives[artist_set.package])).get("chars.json", b"{}")))
    for chart in charts:
        for code, called in chart.items():
            several = [called] if isinstance(called, str) else called
            names.setdefault(plain(code), set()).update(map(squeeze, several))
    return names


def _finder(
    archives: Mapping[str, Path], names: Mapping[str, set[str]], set_name: str, width: int = 2 * CUTOUT
) -> Callable[[str], Callable[[], bytes] | None]:
    """What gives, for a code point, the way to draw it in a set as a PNG or WebP file, or None."""
    package = archives[SETS[set_name].package]
    if set_name == "3d":
        bodies = {plain(Path(path).stem): body for path, body in files(package) if path.endswith(".webp")}
        return lambda code: (lambda: bodies[code]) if code in bodies else None
    icons = Icons(package, names)

    def draw(icon: str) -> bytes:
        import resvg_py

        svg = icons.svg(icon)
        return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=width, skip_system_fonts=True))

    return lambda code: partial(draw, icon) if (icon := icons.find(code)) else None


def fit(picture: Image.Image) -> Image.Image:
    """Cut away what is clear, and fit the rest into a cut-out's square."""
    if box := picture.getchannel("A").point([0] * 24 + [255] * 232).getbbox():
        picture = picture.crop(box)
    scale = (CUTOUT - 4) / max(picture.size)
    small = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (CUTOUT, CUTOUT))
    square.paste(small, ((CUTOUT - small.width) // 2, (CUTOUT - small.height) // 2))
    return square


def sample(picture: Image.Image) -> Image.Image:
    """A picture before a plain background, as the shipped sample of an artist's drawing."""
    art = picture.crop(picture.getchannel("A").getbbox())
    scale = 190 / max(art.size)
    art = art.resize((round(art.width * scale), round(art.height * scale)), Image.Resampling.LANCZOS)
    image = Image.new("RGB", (256, 256), (178, 223, 219))
    image.paste((128, 203, 196), (0, 190, 256, 256))
    image.paste(art, ((256 - art.width) // 2, 228 - art.height), art)
    return image


def pack(cutouts: Mapping[str, Image.Image], path: Path) -> None:
    """Write cut-outs in order as one sheet."""
    rows = -(-len(cutouts) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * CUTOUT, rows * CUTOUT))
    for number, picture in enumerate(cutouts.values()):
        sheet.paste(picture, (number % COLUMNS * CUTOUT, number // COLUMNS * CUTOUT))
    sheet.save(path, quality=QUALITY, alpha_quality=60, method=6)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    archives = download(args.folder / "packages")
    cutouts = args.folder / "cutouts"
    cutouts.mkdir(exist_ok=True)
    names = names_by_code(archives)
    index: dict[str, list[str]] = {}
    for set_name in SETS:
        finds = _finder(archives, names, set_name)
        shown = {
            name: fit(Image.open(io.BytesIO(body())).convert("RGBA"))
            for name, (code, _) in table().items()
            if (body := finds(code))
        }
        pack(shown, cutouts / f"{set_name}.webp")
        index[set_name] = list(shown)
        print(f"{set_name}: {len(shown)} cut-outs", flush=True)
    (cutouts / "sheets.json").write_text(json.dumps(index))
    body = _finder(archives, names, SAMPLE[0], 800)(table()[SAMPLE[1]][0])
    assert body is not None
    sample(Image.open(io.BytesIO(body())).convert("RGBA")).save(args.folder / f"{SAMPLE[1]}.png")


if __name__ == "__main__":
    main()
