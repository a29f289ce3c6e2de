"""Draw the figures of the documentation again.

    unziplora demo --out sheet.png && python -m scripts.figures --demo sheet.png
    python benchmarks/quality.py --out results && python -m scripts.figures --results results

The first line writes `docs/demo.jpg` and `docs/figures/overview.svg`, the second `docs/separation.jpg`.
"""

import argparse
import base64
import io
import json
from pathlib import Path

from PIL import Image

from benchmarks.separation.scenes import samples
from unziplora_cli.report.contact_sheet import Heading, Layout, contact_sheet

DOCS = Path(__file__).parents[1] / "docs"
WIDTH = 1376
"""Width of the sheet that the positions below refer to."""
CELLS = {"image": (0, 0), "content": (1, 1), "style": (0, 2), "both": (2, 3), "crossed": (1, 4)}
"""Column and row of the images on the sheet."""
LABEL = "One image becomes a content LoRA and a style LoRA, which generate images alone, together and crossed"
HEAD = f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1000 460" role="img" aria-label="{LABEL}">
<style>text{{font:16px system-ui,-apple-system,Segoe UI,Arial,sans-serif;fill:#222;text-anchor:middle}}
.b{{font-size:17px;font-weight:600}}.s{{font-size:13px;fill:#555}}
.c{{font:13px ui-monospace,Menlo,Consolas,monospace;fill:#444}}
path{{fill:none;stroke:#888;stroke-width:2}}</style>
<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8"
orient="auto"><path d="M1 1 7 4 1 7" style="stroke-width:1.5"/></marker></defs>
<rect width="1000" height="460" rx="14" fill="#fff" stroke="#d0d4da"/>"""
ARROWS = (
    *("M190 210C225 195 225 135 254 130", "M190 250C225 265 225 305 254 325", "M430 122H528", "M430 330H528"),
    "M430 150C470 170 470 235 500 235H715C745 235 735 150 768 132",
    "M430 312C470 292 470 243 500 243H715C745 243 735 320 768 330",
)
TEXTS = (
    *((112, 143, "b", "your image"), (112, 325, "c", "unziplora train fox.png")),
    *((345, 131, "b", "content LoRA"), (345, 153, "s", "this fox, no style")),
    *((345, 321, "b", "style LoRA"), (345, 343, "s", "stained glass, no fox")),
    *((610, 196, "", "content"), (610, 213, "c", "content fox -p &quot;on a beach&quot;")),
    *((610, 422, "", "style"), (610, 439, "c", "style fox --subject house")),
    *((850, 196, "", "both"), (850, 213, "c", "combine fox -p &quot;in the snow&quot;")),
    *((850, 422, "", "crossed"), (850, 439, "c", "combine fox octopus")),
)
BOXES = ((100, "#e6f4ea", "#2e7d46"), (290, "#e7eefb", "#3158b0"))
PLACES = {
    "image": (40, 158),
    "content": (538, 36),
    "style": (538, 262),
    "both": (778, 36),
    "crossed": (778, 262),
}


def overview(sheet: Image.Image) -> str:
    """The figure of the README, as SVG."""
    lines = [HEAD]
    for name, (x, y) in PLACES.items():
        data = cell(sheet, *CELLS[name])
        lines.append(
            f'<image x="{x}" y="{y}" width="144" height="144" href="data:image/jpeg;base64,{data}"/>'
        )
    for y, fill, stroke in BOXES:
        lines.append(
            f'<rect x="260" y="{y}" width="170" height="70" rx="10" fill="{fill}" stroke="{stroke}"/>'
        )
    lines += [f'<path d="{path}" marker-end="url(#a)"/>' for path in ARROWS]
    lines += [f'<text class="{kind}" x="{x}" y="{y}">{text}</text>' for x, y, kind, text in TEXTS]
    return "\n".join([*lines, "</svg>\n"])


def cell(sheet: Image.Image, column: int, row: int) -> str:
    """One image of the sheet, as a JPEG in base64."""
    scale = sheet.width / WIDTH
    left, top = 248 + column * 272.5, 155 + row * 292
    box = (left * scale, top * scale, (left + 256) * scale, (top + 256) * scale)
    data = io.BytesIO()
    sheet.resize((192, 192), Image.Resampling.LANCZOS, box).save(data, "JPEG", quality=82, optimize=True)
    return base64.b64encode(data.getvalue()).decode()


COLUMNS = {
    **{0: "image", 1: "as a photo", 2: "content", 4: "content, scene", 6: "style", 7: "style"},
    **{8: "combined", 10: "combined, scene", 11: "crossed", 12: "crossed"},
}
"""Columns of a sheet of `benchmarks/quality.py` that the figure shows."""
RANKING = ("mean", "scene", "identity", "marking")


def separation(results: Path, method: str = "ours, by the destyler") -> Image.Image:
    """The two best, two middle and two worst images of the test set, by their scores."""
    scores = json.loads((results / "scores.json").read_text(encoding="utf-8"))[method]
    tested = samples("test", len(scores["mean"]))
    order = sorted(range(len(tested)), key=lambda i: [*(scores[name][i] for name in RANKING), i])
    middle = len(order) // 2
    groups = {"best": order[:-3:-1], "typical": order[middle - 1 : middle + 1], "worst": order[:2]}
    sheet = Image.open(results / f"{method.replace(' ', '-')}.png")
    size = sheet.height // len(tested)
    rows, headings = [], []
    for group, numbers in groups.items():
        for i in numbers:
            rows.append([sheet.crop((x * size, i * size, (x + 1) * size, (i + 1) * size)) for x in COLUMNS])
            headings.append(Heading(group, f"{tested[i].subject}, {tested[i].style}"))
    layout = Layout(cell=size, gap=6, margin=16, row_label=110, text=15, note=13)
    return contact_sheet(rows, columns=list(COLUMNS.values()), row_headings=headings, layout=layout)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the figures of the documentation again.")
    parser.add_argument("--demo", type=Path, help="the sheet of `unziplora demo`")
    parser.add_argument("--results", type=Path, help="the folder that `benchmarks/quality.py` wrote")
    options = parser.parse_args()
    if options.demo:
        demo = Image.open(options.demo).convert("RGB")
        if options.demo.resolve() != DOCS / "demo.jpg":
            demo.save(DOCS / "demo.jpg", quality=85, optimize=True)
        (DOCS / "figures" / "overview.svg").write_text(overview(demo), encoding="utf-8")
    if options.results:
        separation(options.results).save(DOCS / "separation.jpg", quality=85, optimize=True)
