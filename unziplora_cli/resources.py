"""What ships with the package: templates, the built-in base and its sample pictures.

An installed wheel carries the templates inside the package; in a checkout they lie beside it.
"""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def templates_dir() -> Path:
    """The folder of the shipped templates."""
    installed = _PACKAGE / "templates"
    return installed if installed.is_dir() else _PACKAGE.parent / "templates"


def template(name: str) -> Path:
    """The path of one template, by its name below the templates folder: `presets/paper.toml`."""
    return templates_dir() / name


def preset_names() -> list[str]:
    """The names of the shipped presets, sorted."""
    return sorted(path.stem for path in template("presets").glob("*.toml"))


def mini_base() -> Path:
    """The folder of the built-in base, in the layout of a diffusers SDXL pipeline."""
    return _PACKAGE / "mini" / "base"


def sample_pictures() -> tuple[Path, ...]:
    """The shipped sample pictures, sorted by name."""
    return tuple(sorted((_PACKAGE / "mini" / "samples").glob("*.png")))
