"""Write whose pictures the base learned from to the package: `python -m recipes.mini.sources`.

`SOURCES.md` lies beside the base, where `unziplora models show mini` reads its table; `NOTICE` in the
checkout holds what the licences ask to be kept.
"""

from __future__ import annotations

from pathlib import Path

from recipes.mini.artists import SETS
from recipes.mini.fetch import PACKAGES, SAMPLE, Package
from unziplora_cli import resources

CHECKOUT = Path(__file__).parents[2]
HOME = {
    "Microsoft Corporation": "https://github.com/microsoft/fluentui-emoji",
    "Microsoft Corporation, LobeHub": "https://github.com/lobehub/fluent-emoji",
    "Google Inc": "https://github.com/googlefonts/noto-emoji",
    "Twitter": "https://github.com/jdecked/twemoji",
    "Emoji One, EmojiTwo": "https://github.com/EmojiTwo/emojitwo",
    "Mozilla": "https://github.com/mozilla/fxemoji",
    "OpenMoji": "https://openmoji.org",
    "Miles Johnson": "https://github.com/milesj/emojibase",
    "Bill Kendrick and others": "https://tuxpaint.org/stamps",
    "Open Clip Art Library": "https://openclipart.org",
}
"""Where an author's pictures come from."""
CHANGES = (
    "The pictures were cut out, scaled, put before other backgrounds, some of them recolored or painted in "
    "other styles, and a network was trained on the results. The pictures themselves are not part of this "
    "package, but for one sample."
)


def use(package: Package) -> str:
    """What the pictures of a package serve for."""
    sets = [entry for entry in SETS.values() if entry.package == package.name]
    if sets:
        if package.name == SETS[SAMPLE[0]].package:
            return f"tests, and the sample picture {SAMPLE[1]}.png; never trained on"
        return (
            "tests alone, never trained on" if sets[0].held_out else f"training, as {sets[0].look} pictures"
        )
    return "names of the subjects" if package.name == "emojibase-data" else "tests alone, never trained on"


def sources() -> str:
    """A table of all packages, those that were trained on first."""
    rows = [(p.name, p.version, p.license, f"{p.author}, {HOME[p.author]}", use(p)) for p in PACKAGES]
    rows.sort(key=lambda row: not row[-1].startswith("training"))
    table = [("package", "version", "license", "author", "used for"), ("---",) * 5, *rows]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in table)
    return (
        "# Pictures that the built-in base learned from\n\n"
        "22 subjects are drawn by a program of this project. All others were drawn by the authors named "
        f"here, to whom thanks are due. {CHANGES}\n\n{lines}\n"
    )


def notice() -> str:
    """The text of the NOTICE file."""
    trained = [package for package in PACKAGES if use(package).startswith("training")]
    drawn = next(package for package in PACKAGES if package.name == SETS[SAMPLE[0]].package)
    credits = "\n".join(map(_credit, trained))
    return (
        "unziplora\nCopyright the unziplora contributors\n\n"
        "The weights of the built-in base model and of its networks (unziplora_cli/mini) were trained on "
        f"pictures from these packages:\n\n{credits}\n\n{CHANGES}\n"
        "CC BY 4.0: https://creativecommons.org/licenses/by/4.0/\n\n"
        f"The sample picture {SAMPLE[1]}.png (unziplora_cli/mini/samples) was scaled and put before a plain "
        f"background:\n\n{_credit(drawn)}\n"
    )


def _credit(package: Package) -> str:
    home = HOME[package.author]
    return f"- {package.name} {package.version}, {package.license}, {package.author}, {home}"


def main() -> None:
    (resources.mini() / "SOURCES.md").write_text(sources(), encoding="utf-8")
    (CHECKOUT / "NOTICE").write_text(notice(), encoding="utf-8")


if __name__ == "__main__":
    main()
