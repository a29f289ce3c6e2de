"""Files that ship with the package: templates, the built-in base model and its sample images.

In a wheel the templates are inside the package; in a checkout they are beside it.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def templates_dir() -> Path:
    """The folder of the shipped templates."""
    installed = _PACKAGE / "templates"
    return installed if installed.is_dir() else _PACKAGE.parent / "templates"


def template(name: str) -> Path:
    """The path of a template, such as `presets/paper.toml`."""
    return templates_dir() / name


def constraints(name: str) -> Path:
    """The path of a list of library versions: `lowest.txt` or `tested.txt`."""
    installed = _PACKAGE / "constraints"
    return (installed if installed.is_dir() else _PACKAGE.parent / "constraints") / name


def preset_names() -> list[str]:
    """The names of the shipped presets, sorted."""
    return sorted(path.stem for path in template("presets").glob("*.toml"))


def default_preset(base_kind: str, destyle: str | None = None) -> str:
    """The preset of a base if the user names none: a way to destyle asks for all that goes with it."""
    if base_kind == "builtin":
        return "mini"
    return "paper" if destyle in (None, "none") else "destyle"


def mini() -> Path:
    """The folder of the built-in base, its networks, and what it knows."""
    return _PACKAGE / "mini"


def mini_base() -> Path:
    """The folder of the built-in base, in the layout of a diffusers SDXL pipeline."""
    return mini() / "base"


def classifier() -> Path:
    """The folder of the classifier that labels images of the built-in base."""
    return mini() / "classifier"


def reader() -> Path:
    """The folder of the network that proposes words for an image to the built-in base."""
    return mini() / "reader"


def has_reader() -> bool:
    """Whether that network is installed."""
    return (reader() / "reader.json").is_file()


def destyler() -> Path:
    """The folder of the network that redraws an image as a photo for the built-in base."""
    return mini() / "destyler"


def has_destyler() -> bool:
    """Whether that network is installed."""
    return (destyler() / "destyler.json").is_file()


MINI_DESCRIPTION = (
    "mini is a trial model: it draws simple scenes at 128 px and trains in minutes on a CPU, but its LoRAs "
    "fit no other base and no other program, such as ComfyUI."
)


@dataclass(frozen=True)
class Sample:
    """A shipped image with its subject and style."""

    image: Path
    subject: str
    style: str


def samples() -> dict[str, Sample]:
    """The shipped sample images by name."""
    folder = mini() / "samples"
    words = tomllib.loads((folder / "samples.toml").read_text(encoding="utf-8"))
    return {name: Sample(folder / f"{name}.png", **entry) for name, entry in words.items()}
