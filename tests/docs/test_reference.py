"""The reference pages are those that the code describes."""

import pytest

from scripts import reference


@pytest.mark.parametrize(
    "name", ["reference/commands.md", "reference/settings.md", "reference/manifest.md", "quick-start.md"]
)
def test_the_page_is_current(name: str) -> None:
    committed = (reference.DOCS / name).read_text(encoding="utf-8")
    assert committed == reference.pages()[name], "run: python -m scripts.reference"


def test_every_command_option_and_setting_is_described() -> None:
    pages = reference.pages()
    for option in ("--column-ratio X", "--together", "--fuse / --no-fuse", "--offline"):
        assert f"`{option}`" in pages["reference/commands.md"]
    assert "| `rank` | 64 | from 1 to 1024 | Rank of both LoRAs. |" in pages["reference/settings.md"]
    assert "| `content_lr` | 5e-05 | 0.0001 | 0.0001 | 5e-05 | 0.001 |" in pages["reference/settings.md"]
    assert "| `sha256` | SHA-256 |  |" in pages["reference/manifest.md"]


def test_every_gpu_has_a_line_for_each_installer() -> None:
    table = reference.torch_table()
    assert table.count("uv tool install unziplora --reinstall --torch-backend auto") == 4
    assert table.count("uv tool install unziplora --reinstall --torch-backend cpu") == 1
    for build in ("cu130", "cu126", "rocm7.2", "cpu"):
        assert f"--pip-args '--extra-index-url https://download.pytorch.org/whl/{build}'" in table
