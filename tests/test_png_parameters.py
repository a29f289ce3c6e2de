from pathlib import Path

import pytest
from PIL import Image

from unziplora_cli.errors import UsageError
from unziplora_cli.images import parameters_text, read_parameters, save_png

PARAMETERS = {
    "schema": 1,
    "version": "1.0",
    "base": {"id": "stabilityai/stable-diffusion-xl-base-1.0", "revision": "46216598"},
    "prompts": {"full": "a fox, in 水彩 style", "content": "a fox", "style": "x"},
    "negative_prompt": "blurry",
    "seed": 7,
    "steps": 20,
    "guidance": 5.0,
    "scheduler": "euler",
    "width": 128,
    "height": 64,
    "projects": ["fox"],
}


def test_a_picture_tells_how_it_was_drawn(tmp_path: Path) -> None:
    picture = Image.effect_noise((16, 8), 50).convert("RGB")
    save_png(picture, tmp_path / "a.png", PARAMETERS)
    assert read_parameters(tmp_path / "a.png") == PARAMETERS
    with Image.open(tmp_path / "a.png") as saved:
        assert saved.tobytes() == picture.tobytes()
        assert saved.info["parameters"] == parameters_text(PARAMETERS)
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_the_text_is_laid_out_as_other_programs_read_it() -> None:
    assert parameters_text(PARAMETERS) == (
        "a fox, in 水彩 style\n"
        "Negative prompt: blurry\n"
        "Steps: 20, Sampler: Euler, CFG scale: 5, Seed: 7, Size: 128x64, "
        "Model: stable-diffusion-xl-base-1.0, Version: unziplora 1.0"
    )
    odd = parameters_text(
        {**PARAMETERS, "negative_prompt": "", "base": {"id": "/models/a, b"}, "guidance": 4.5}
    )
    assert odd.count("\n") == 1
    assert 'Model: "a, b"' in odd
    assert "CFG scale: 4.5" in odd


def test_a_failed_write_leaves_the_older_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    save_png(Image.new("RGB", (4, 4)), path, PARAMETERS)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_png(Image.new("RGB", (4, 4)), path, {"prompts": {}, "bad": object()})
    assert path.read_bytes() == before


def test_other_pictures_have_no_parameters_and_other_files_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    assert read_parameters(tmp_path / "plain.png") == {}
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UsageError, match="not a picture"):
        read_parameters(tmp_path / "text.png")
    with pytest.raises(UsageError, match="not a picture"):
        read_parameters(tmp_path / "missing.png")
