"""The benchmark on real images runs from end to end, resumes, and trains what its methods train."""

import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import real
from tests.evaluation.tiny_encoders import put_encoders_in_cache
from unziplora_cli.adapters.lora_file import read_lora
from unziplora_cli.config import Words
from unziplora_cli.projects.store import ProjectStore

SETTINGS = ("steps=3", "rank=2", "resolution=64", "recalibrations=1", "importance_steps=1")
GENERATION = ("steps=1", "width=64", "height=64")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    image = Image.linear_gradient("L").resize((96, 80)).convert("RGB")
    image.save(folder / "fox.png")
    image.rotate(180).save(folder / "rose.jpg")
    words = {"fox.png": {"subject": "fox", "style": "ink"}, "rose.jpg": {"subject": "a rose", "style": "oil"}}
    (folder / "prompts.json").write_text(json.dumps(words))
    return folder


def test_a_folder_becomes_a_table(pictures, tiny_base, tmp_path, monkeypatch, capsys) -> None:
    put_encoders_in_cache(tmp_path / "encoders")
    out = tmp_path / "out"
    line = [str(pictures), f"--out={out}", f"--base={tiny_base}", "--device=cpu", "--count=1"]
    line += [f"--set={pair}" for pair in SETTINGS] + [f"--generate={pair}" for pair in GENERATION]
    line += ["--only=base alone", "--only=B-LoRA"]
    assert real.main(line) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].startswith("| method | content DINO | content identity | style CLIP-I |")
    assert [row.split(" | ")[0] for row in table[2:4]] == ["| base alone", "| B-LoRA"]
    assert not any("nan" in row for row in table)
    values = json.loads((out / "results.json").read_text())["B-LoRA"]
    assert all(-1.001 <= value <= 1.001 for row in values.values() for value in row if value == value)

    lora = read_lora(ProjectStore(out / "b-lora").open("fox").path("content")).lora
    trained = {name for name, weights in lora.items() if weights.up.any()}
    assert trained
    assert all(name.startswith(tuple(real.BLOCKS.values())) for name in trained)

    monkeypatch.setattr(real, "train", None)
    monkeypatch.setattr(real, "generate_requests", lambda requests, *rest: iter(requests))
    monkeypatch.setattr(real, "show", None)
    assert real.main(line) == 0  # nothing is trained or generated again
    assert capsys.readouterr().out.splitlines() == table


def test_words_are_read_from_the_file_and_the_rest_is_described(pictures, monkeypatch) -> None:
    from unziplora_cli.job import Description

    (pictures / "prompts.json").write_text('{"fox.png": {"subject": "The Fox", "style": "ink style"}}')
    described: list[Path] = []

    def describe(images: list[Path], **options: object):
        described.extend(images)
        return [Description("a model", "rose", "oil", ("red",))]
        yield

    monkeypatch.setattr(real, "describe", describe)
    fox, rose = real.read_samples(pictures, False, None, "cpu")
    assert fox.words == Words("fox", "ink")
    assert (rose.words, rose.features) == (Words("rose", "oil"), ("red",))
    assert [path.name for path in described] == ["rose.jpg"]


def test_an_unknown_method_and_an_empty_folder_are_named(pictures, tiny_base, tmp_path, capsys) -> None:
    assert real.main([str(pictures), f"--base={tiny_base}", "--only=ouers"]) == 2
    assert real.main([str(tmp_path / "nowhere"), f"--base={tiny_base}"]) == 2
    assert "There are no images" in capsys.readouterr().err
