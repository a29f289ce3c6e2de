"""content, style, combine and cross on tiny trained projects."""

import io
import json
import re
import shutil
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from tests.jobs import changed
from unziplora_cli.cli._output import Output
from unziplora_cli.config import GenerateConfig, Prompts, Words
from unziplora_cli.events import run
from unziplora_cli.images import read_parameters
from unziplora_cli.projects import manifest
from unziplora_cli.projects.store import ProjectStore
from unziplora_cli.sdxl.base import resolve_base
from unziplora_cli.workflows.generate import ComputeConfig, GenerateSpec, generate_images

QUICK = ("--steps=2", "--device=cpu", "--seed=0")


def adapters(home: Path, content: str, style: str) -> dict[str, str]:
    store = ProjectStore(home)
    return {
        role: store.open(name).manifest.artifact(role).sha256
        for role, name in (("content", content), ("style", style))
    }


def same(one: Path, other: Path) -> bool:
    with Image.open(one) as first, Image.open(other) as second:
        return ImageChops.difference(first, second).getbbox() is None


def edit(home: Path, name: str, **changes: object) -> None:
    store = ProjectStore(home)
    project = store.open(name)
    manifest.write(project.folder, changed(project.manifest, **changes))


def test_content_generates_the_subject_alone(two_projects, unziplora):
    completed = unziplora("content", "fox", "--prompt", "on a beach", *QUICK, "--json")
    (path,) = map(Path, completed.envelope["result"]["images"])
    assert path == two_projects / "projects/fox/images/content-fox-on-a-beach-seed0.png"
    parameters = read_parameters(path)
    assert parameters["prompts"]["full"] == parameters["prompts"]["content"] == "a monadikos fox on a beach"
    assert parameters["branches"] == {"content": 1.0}
    assert parameters["adapters"] == {"content": adapters(two_projects, "fox", "fox")["content"]}
    assert (parameters["steps"], parameters["seed"], parameters["width"]) == (2, 0, 64)
    assert parameters["merge_weights"] is False


def test_style_generates_another_subject(two_projects, unziplora):
    completed = unziplora("style", "fox", "--subject", "house", *QUICK)
    assert completed.code == 0
    assert "style    a house in watercolor style" in completed.err
    parameters = read_parameters(Path(completed.out.strip()))
    assert parameters["prompts"]["style"] == "a house in watercolor style"
    assert parameters["projects"] == {"style": "fox"}


def test_combine_takes_content_of_one_and_style_of_the_other(two_projects, unziplora):
    paths = {}
    for content, style in (("fox", "rose"), ("rose", "fox"), ("fox", "fox")):
        completed = unziplora("combine", content, style, *QUICK)
        assert completed.code == 0
        parameters = read_parameters(Path(completed.out.strip()))
        assert parameters["projects"] == {"content": content, "style": style}
        assert parameters["adapters"] == adapters(two_projects, content, style)
        assert parameters["merge_weights"] is True
        words = {"fox": "watercolor", "rose": "sketch"}
        assert parameters["prompts"]["full"] == f"a monadikos {content} in {words[style]} style"
        paths[content, style] = completed.out.strip()
    assert Path(paths["fox", "rose"]).parent == two_projects / "projects/fox/images"
    alone = unziplora("combine", "fox", *QUICK).out.strip()
    assert same(Path(alone), Path(paths["fox", "fox"]))


def test_merge_weights_belong_to_the_selected_branches(two_projects, unziplora, monkeypatch):
    import torch

    from unziplora_cli.adapters.merge_weights import read_merge
    from unziplora_cli.workflows import generate

    requests = []
    original = generate.generate_requests

    def record(given, *args):
        requests.extend(given)
        return original(given, *args)

    monkeypatch.setattr(generate, "generate_requests", record)
    unziplora("combine", "fox", "rose", *QUICK)
    store = ProjectStore(two_projects)
    fox, rose = (read_merge(store.open(name).path("merge")) for name in ("fox", "rose"))
    branches = requests[0].branches
    assert all(torch.equal(branches.content_merge[name], value) for name, value in fox.content.items())
    assert all(torch.equal(branches.style_merge[name], value) for name, value in rose.style.items())


def test_a_seed_reproduces_its_image(two_projects, unziplora):
    first, second, third = (
        Path(unziplora("combine", "fox", *QUICK, f"--seed={seed}").out.strip()) for seed in (7, 7, 8)
    )
    assert [path.name for path in (first, second, third)] == [
        "combine-fox-seed7.png",
        "combine-fox-seed7-001.png",
        "combine-fox-seed8.png",
    ]
    assert same(first, second)
    assert not same(first, third)
    both = unziplora("combine", "fox", *QUICK, "--seed=7", "--count=2").out.split()
    assert same(Path(both[0]), first)
    assert same(Path(both[1]), third)


def test_every_run_generates_something_new_and_says_how_to_repeat_it(two_projects, unziplora):
    runs = [unziplora("content", "fox", "--steps=1", "--device=cpu", "--json") for _ in range(2)]
    seeds = [run.envelope["result"]["seed"] for run in runs]
    paths = [Path(run.envelope["result"]["images"][0]) for run in runs]
    assert seeds[0] != seeds[1]
    assert [read_parameters(path)["seed"] for path in paths] == seeds
    assert paths[0].name == f"content-fox-seed{seeds[0]}.png"
    again = unziplora("content", "fox", "--steps=1", "--device=cpu", f"--seed={seeds[0]}")
    assert f"seed     {seeds[0]}\n" in again.err
    assert same(Path(again.out.strip()), paths[0])


def test_a_grid_is_a_sheet_of_strengths_and_seeds(two_projects, unziplora, monkeypatch):
    from unziplora_cli.report import contact_sheet

    sheets = []
    draw = contact_sheet.contact_sheet
    monkeypatch.setattr(
        contact_sheet,
        "contact_sheet",
        lambda rows, **labels: sheets.append((rows, labels)) or draw(rows, **labels),
    )
    options = ("--grid=style-strength=0,1", "--count=2")
    result = unziplora("combine", "fox", *options, *QUICK, "--json").envelope["result"]
    names = [
        "style_strength0-seed0",
        "style_strength0-seed1",
        "style_strength1-seed0",
        "style_strength1-seed1",
    ]
    paths = list(map(Path, result["images"]))
    assert [path.name for path in paths] == [f"{name.replace('_', '-')}.png" for name in names]
    assert Path(result["sheet"]) == two_projects / "projects/fox/images/grid-001/sheet.png"
    assert [read_parameters(path)["branches"]["style"] for path in paths] == [0, 0, 1, 1]
    assert [read_parameters(path)["seed"] for path in paths] == [0, 1, 0, 1]
    ((rows, labels),) = sheets
    assert labels["columns"] == ["style strength 0", "style strength 1"]
    assert [heading.text for heading in labels["row_headings"]] == ["seed 0", "seed 1"]
    for number, (row, column) in enumerate(product(range(2), repeat=2)):
        with Image.open(paths[column * 2 + row]) as image:
            assert ImageChops.difference(rows[row][column], image).getbbox() is None, number


def test_a_second_grid_adds_rows(two_projects, unziplora, tmp_path):
    options = ("--grid=content-strength=0.5,1", "--grid=guidance=1,2,3", "--out", tmp_path)
    result = unziplora("content", "fox", *options, *QUICK, "--json").envelope["result"]
    settings = [read_parameters(Path(path)) for path in result["images"]]
    assert [(one["branches"]["content"], one["guidance"]) for one in settings] == [
        *((0.5, 1.0), (0.5, 2.0), (0.5, 3.0)),
        *((1.0, 1.0), (1.0, 2.0), (1.0, 3.0)),
    ]


@pytest.mark.parametrize(
    ("command", "options", "says"),
    [
        ("content", ["--style-strength=0.5"], "style-strength has no effect here: only the content LoRA"),
        ("style", ["--content-strength=0.5"], "combine fox --steps 2 --seed 0 --content-strength 0.5"),
        ("style", ["--content-strength=0.5"], "content-strength has no effect here: only the style LoRA"),
        ("content", ["--grid=style-strength=0,1"], "style-strength has no effect here"),
        ("combine", ["--grid=style-strenght=0,1"], "Did you mean 'style-strength'?"),
        ("combine", ["--grid=style-strength"], "not a number"),
        ("combine", ["--grid=style-strength=0,x"], "not a number"),
        ("combine", ["--grid=style-strength=0,9"], "must be from -4.0 to 4.0"),
        ("combine", ["--grid=seed=1,2"], "A grid varies one of steps, guidance"),
        ("combine", ["--grid=steps=1", "--grid=guidance=1", "--grid=style-strength=1"], "at most two grids"),
        ("combine", ["--prompt", "<lora:x:1>"], "The prompt is empty"),
    ],
)
def test_a_setting_that_cannot_act_is_refused(two_projects, unziplora, home_files, command, options, says):
    before = home_files()
    completed = unziplora(command, "fox", *options, *QUICK)
    assert completed.code == 2
    assert says in completed.message
    assert home_files() == before


def test_one_side_is_completed_and_said(two_projects, unziplora):
    completed = unziplora("content", "fox", "--width=96", *QUICK)
    assert "Only the width is given, so images are square like the base's: 96 x 96 px." in completed.message
    with Image.open(completed.out.strip()) as image:
        assert image.size == (96, 96)
    assert "trained at 64 px" in unziplora("content", "fox", "--height=136", *QUICK).message
    assert "Note" not in unziplora("content", "fox", "--height=64", "--width=96", *QUICK).err


def test_a_setting_without_effect_is_named(two_projects, unziplora):
    completed = unziplora("content", "fox", "--negative-prompt=blurry", "--guidance=1", *QUICK)
    assert "negative-prompt has no effect: guidance is 1, which turns it off." in completed.message


def test_a_former_project_keeps_its_recorded_prompts(two_projects, unziplora):
    words = Words("a fox", "watercolor style")
    recorded = Prompts("a monadikos a fox", "the very content", "the very style")
    edit(two_projects, "fox", words=words, prompts=recorded)
    prompts = unziplora("combine", "fox", *QUICK, "--json").envelope["result"]["prompts"]
    assert prompts == {"full": recorded.full, "content": recorded.content, "style": recorded.style}
    scene = unziplora("content", "fox", "--prompt=at night", *QUICK, "--json").envelope["result"]["prompts"]
    assert scene["content"] == "a monadikos a fox at night"


def test_zero_strength_gives_the_image_of_the_base(two_projects, unziplora, tiny_base, tmp_path):
    text = "--full-prompt=a fox", "--content-prompt=a fox", "--style-prompt=a fox"
    off = "--content-strength=0", "--style-strength=0"
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    assert unziplora("combine", "fox", *text, *off, *QUICK, "-o", paths[0]).code == 0
    assert unziplora("combine", "fox", *text, "--content-strength=4", *QUICK, "-o", paths[1]).code == 0
    base, _ = resolve_base(str(tiny_base), offline=True)
    alone = GenerateSpec(base, GenerateConfig(steps=2), overrides={"full": "a fox"})
    run(generate_images(alone, paths[2], ComputeConfig(device="cpu")))
    assert same(paths[0], paths[2])
    assert not same(paths[1], paths[2])


def test_out_names_a_file_or_a_folder(two_projects, unziplora, tmp_path):
    new = tmp_path / "new/place"
    assert unziplora("content", "fox", *QUICK, "--out", new / "a.png").out.split() == [str(new / "a.png")]
    assert unziplora("content", "fox", *QUICK, "--out", new).out.split() == [
        str(new / "content-fox-seed0.png")
    ]
    assert unziplora("content", "fox", *QUICK, "--out", new / "a.png", "--count=2").out.split() == [
        str(new / "a-001.png"),
        str(new / "a-002.png"),
    ]
    assert sorted(path.name for path in new.iterdir()) == [
        "a-001.png",
        "a-002.png",
        "a.png",
        "content-fox-seed0.png",
    ]


@pytest.mark.parametrize(
    ("command", "cells"),
    [(["cross", "fox", "rose"], 4), (["combine", "fox", "--grid=style-strength=0,1"], 2)],
)
def test_out_may_name_the_sheet(two_projects, unziplora, tmp_path, command, cells):
    sheet = tmp_path / "our foxes.png"
    result = unziplora(*command, *QUICK, "--out", sheet, "--json").envelope["result"]
    assert result["sheet"] == str(sheet)
    with Image.open(sheet) as image:
        assert image.format == "PNG"
    assert len(result["images"]) == cells
    assert {Path(path).parent for path in result["images"]} == {tmp_path / "our foxes"}
    assert unziplora(*command, *QUICK, "--out", sheet).code == 3
    assert unziplora(*command, *QUICK, "--out", tmp_path / "sheet.jpg").code == 2
    assert {path.name for path in tmp_path.iterdir()} == {"our foxes.png", "our foxes"}


def test_cross_generates_every_cell_and_a_sheet(two_projects, unziplora, tmp_path):
    completed = unziplora("cross", "fox", "rose", "--prompt=on a beach", *QUICK, "--out", tmp_path, "--json")
    result = completed.envelope["result"]
    assert [Path(path).name for path in result["images"]] == [
        "fox.png",
        "fox-x-rose.png",
        "rose-x-fox.png",
        "rose.png",
    ]
    for path, (content, style) in zip(result["images"], product(("fox", "rose"), repeat=2), strict=True):
        assert read_parameters(Path(path))["adapters"] == adapters(two_projects, content, style)
    with Image.open(result["sheet"]) as sheet:
        assert min(sheet.size) > 2 * 64


def test_an_existing_file_is_refused_unless_forced(two_projects, unziplora, tmp_path):
    photo = tmp_path / "holiday.png"
    photo.write_bytes(b"the user's own")
    for command in ("content", "style", "combine"):
        completed = unziplora(command, "fox", *QUICK, "--out", photo)
        assert completed.code == 3
        assert "already exists" in completed.message
        assert "--force" in completed.message
    assert photo.read_bytes() == b"the user's own"
    assert unziplora("content", "fox", *QUICK, "--out", photo, "--force").code == 0
    assert read_parameters(photo)["command"] == "content"
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.png"]


def test_the_source_image_of_the_project_is_never_replaced_silently(two_projects, unziplora, home_files):
    project = ProjectStore(two_projects).open("fox")
    before = home_files()
    completed = unziplora(
        "content", "fox", *QUICK, "--out", project.folder / project.manifest.job.images[0].file
    )
    assert completed.code == 3
    assert "already exists" in completed.message
    assert home_files() == before


def test_brackets_in_a_file_name_are_not_a_pattern(two_projects, unziplora, tmp_path):
    out = tmp_path / "fox [v1].png"
    paths = [unziplora("content", "fox", *QUICK, "--count=2", "--out", out).out.splitlines() for _ in "ab"]
    assert [Path(path).name for pair in paths for path in pair] == [
        f"fox [v1]-00{number}.png" for number in range(1, 5)
    ]


def test_cross_refuses_existing_files_unless_forced(two_projects, unziplora, tmp_path):
    photo = tmp_path / "fox.png"
    photo.write_bytes(b"the user's own")
    assert unziplora("cross", "fox", *QUICK, "--out", tmp_path).code == 3
    assert [path.name for path in tmp_path.iterdir()] == ["fox.png"]
    assert photo.read_bytes() == b"the user's own"
    completed = unziplora("cross", "fox", *QUICK, "--out", tmp_path, "--force", "--json")
    assert Path(completed.envelope["result"]["sheet"]) == tmp_path / "sheet.png"
    assert read_parameters(photo)["command"] == "combine"


def test_a_cross_of_lists_has_a_row_per_content_and_a_column_per_style(two_projects, unziplora):
    """Also with the same words in every prompt, and with several images per cell."""
    edit(two_projects, "rose", words=ProjectStore(two_projects).open("fox").job.words)
    options = ("--content=fox", "--content=rose", "--style=rose", "--count=2")
    completed = unziplora("cross", *options, *QUICK, "--json")
    assert completed.code == 0
    names = [Path(path).name for path in completed.envelope["result"]["images"]]
    assert names == ["fox-x-rose-1.png", "fox-x-rose-2.png", "rose-1.png", "rose-2.png"]
    folder = two_projects / "projects/fox/images/cross-001"
    assert read_parameters(folder / "rose-2.png")["adapters"] == adapters(two_projects, "rose", "rose")


def test_a_missing_source_image_is_reported_before_generating(two_projects, unziplora, tmp_path):
    (two_projects / "projects/rose/source.jpg").unlink()
    completed = unziplora("cross", "fox", "rose", *QUICK, "--out", tmp_path)
    assert completed.code == 2
    assert list(tmp_path.iterdir()) == []


def test_projects_of_different_bases_cannot_be_combined(two_projects, unziplora, home_files):
    before = home_files()
    base = ProjectStore(two_projects).open("rose").job.base
    edit(two_projects, "rose", base=replace(base, id="elsewhere", hash="sha256:" + "0" * 64))
    for command in ("combine", "cross"):
        completed = unziplora(command, "fox", "rose", *QUICK)
        assert completed.code == 3
        assert "LoRAs of different bases cannot be combined" in completed.message
        assert "rose on elsewhere" in completed.message
    assert home_files() == before


def test_the_same_base_in_another_place_is_the_same_base(two_projects, unziplora, tmp_path):
    base = ProjectStore(two_projects).open("fox").job.base
    moved = shutil.copytree(base.id, tmp_path / "moved")
    edit(two_projects, "fox", base=replace(base, id=str(moved), spec="./moved"))
    assert unziplora("combine", "fox", "rose", *QUICK).code == 0


def test_a_changed_base_gives_a_warning(two_projects, unziplora):
    base = ProjectStore(two_projects).open("fox").job.base
    edit(two_projects, "fox", base=replace(base, hash="sha256:" + "0" * 64))
    completed = unziplora("content", "fox", *QUICK)
    assert completed.code == 0
    assert "has changed since fox was trained on it" in completed.message


def test_a_long_prompt_gives_a_notice_of_what_is_ignored(two_projects, unziplora):
    text = "fox " * 28 + "cat and the dog on the beach"
    completed = unziplora("content", "fox", "--content-prompt", text, *QUICK)
    assert completed.code == 0
    assert 'the base ignores: "' in completed.message
    assert 'the beach"' in completed.message
    assert "Note" not in unziplora("content", "fox", "--content-prompt=fox", *QUICK).err


def test_progress_goes_to_stderr_and_paths_to_stdout(two_projects, unziplora):
    completed = unziplora("content", "fox", *QUICK, "--count=2")
    assert "generate 2/2 step 2/2" in completed.err
    assert all(Path(line).is_file() for line in completed.out.splitlines())


@pytest.mark.parametrize("role", ["content", "merge"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_damaged_weights_end_with_6(two_projects, unziplora, home_files, role, damage):
    file = two_projects / f"projects/fox/{role}.safetensors"
    data = file.read_bytes()
    file.unlink()
    if damage == "cut":
        file.write_bytes(data[: len(data) // 2])
    before = home_files()
    completed = unziplora("combine", "fox", *QUICK)
    assert completed.code == 6
    assert f"{role}.safetensors" in completed.message
    assert "Traceback" not in completed.err
    assert home_files() == before


def test_images_contain_parameters_for_other_programs(two_projects, unziplora):
    path = Path(unziplora("content", "fox", *QUICK, "--negative-prompt=blurry").out.strip())
    with Image.open(path) as image:
        text, everything = image.info["parameters"], json.loads(image.info["unziplora"])
    assert text.splitlines()[0] == "a monadikos fox"
    assert "Negative prompt: blurry" in text
    assert "Steps: 2" in text
    assert everything["negative_prompt"] == "blurry"


class Screen(io.StringIO):
    """A stdout that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_paths_are_links_on_terminals(terminal, monkeypatch, tmp_path):
    screen = Screen() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm-256color")
    path = tmp_path / "a sheet.png"
    Output().result({}, text=f"sheet {path}\nanother line", links=[path])
    link = re.search(r"\x1b\]8;[^;]*;(.*?)\x1b\\(.*?)\x1b\]8;;\x1b\\", screen.getvalue())
    assert (link is not None) == terminal
    if link:
        assert link[1] == path.as_uri()
        assert str(path) in link[2]
