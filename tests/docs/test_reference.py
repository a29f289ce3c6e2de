"""The reference pages are those that the code describes."""

import pytest

from scripts import reference


@pytest.mark.parametrize("name", ["commands.md", "settings.md", "manifest.md"])
def test_the_page_is_current(name: str) -> None:
    committed = (reference.FOLDER / name).read_text(encoding="utf-8")
    assert committed == reference.pages()[name], "run: python -m scripts.reference"


def test_every_command_option_and_setting_is_described() -> None:
    pages = reference.pages()
    for option in ("--column-ratio X", "--together", "--fuse / --no-fuse", "--offline"):
        assert f"`{option}`" in pages["commands.md"]
    assert "| `rank` | 64 | from 1 to 1024 | Rank of both LoRAs. |" in pages["settings.md"]
    assert "| `content_lr` | 5e-05 | 0.0001 | 0.0001 | 5e-05 | 0.001 |" in pages["settings.md"]
    assert "| `sha256` | SHA-256 |  |" in pages["manifest.md"]
