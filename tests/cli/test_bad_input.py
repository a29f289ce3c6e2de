"""Every invalid input gives one clear message and the correct exit code, and leaves no files."""

import errno
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

from unziplora_cli.projects.store import ProjectStore

WORDS = ("--subject=fox", "--style=watercolor")
QUICK = ("--steps=2", "--device=cpu")


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds one byte of data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


def bad_images(folder: Path) -> dict[str, Path]:
    """One file of every kind that is not a usable image."""
    paths = {name: folder / f"{name}.png" for name in ("missing", "text", "empty", "cut", "dot", "bomb")}
    paths["folder"] = folder / "nothing"
    paths["folder"].mkdir()
    paths["text"].write_text("I am not an image")
    paths["empty"].write_bytes(b"")
    Image.effect_noise((200, 200), 90).save(paths["cut"])
    paths["cut"].write_bytes(paths["cut"].read_bytes()[:4000])
    Image.new("RGB", (1, 1)).save(paths["dot"])
    paths["bomb"].write_bytes(png_header(50_000, 50_000))
    return paths


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("missing", "There is no file"),
        ("folder", "There are no images in"),
        ("text", "is not an image that can be read"),
        ("empty", "is not an image that can be read"),
        ("cut", "is damaged or truncated"),
        ("dot", "is 1 x 1 px: too small"),
        ("bomb", "is too large"),
    ],
)
def test_a_bad_image_is_rejected_before_any_training(
    assert_fails, tmp_path, photos, settings, monkeypatch, kind, text
):
    """A valid image before the invalid one is not trained either."""
    from unziplora_cli.cli import train

    monkeypatch.setattr(train, "find_base", lambda *_: pytest.fail("the base was resolved"))
    message = assert_fails(2, "train", photos / "fox.png", bad_images(tmp_path)[kind], *WORDS, *settings)
    assert text in message
    assert "->" in message


def test_a_20000_px_wide_image_trains_with_a_note(unziplora, tmp_path, settings):
    path = tmp_path / "wide.png"
    Image.linear_gradient("L").resize((20_000, 80)).save(path)
    completed = unziplora("train", path, *WORDS, *settings)
    assert completed.code == 0
    assert "20000 x 80 px: only" in completed.message


def test_the_first_frame_of_an_animation_is_used_with_a_note(unziplora, tmp_path, settings, isolated_home):
    path = tmp_path / "dance.gif"
    frames = [Image.new("RGB", (80, 80), color) for color in ("red", "green", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    completed = unziplora("train", path, *WORDS, *settings)
    assert completed.code == 0
    assert "dance.gif has 3 frames; the first one is used" in completed.message
    assert (isolated_home / "projects/dance/source.gif").read_bytes() == path.read_bytes()


def test_a_long_prompt_is_truncated_with_a_note(unziplora, photos, settings):
    prompt = f"a {'red ' * 30}fox on the beach in sketch style"
    completed = unziplora("train", photos / "fox.png", *WORDS, f"--full-prompt={prompt}", *settings)
    assert completed.code == 0
    assert "is longer than 32 tokens; the base ignores:" in completed.message
    assert "sketch style" in completed.message


@pytest.mark.parametrize(
    ("code", "options", "text"),
    [
        (2, ["--subject= "], "The subject is empty"),
        (2, ["--trigger="], "The trigger is empty"),
        (2, ["--full-prompt= "], "The prompt is empty"),
        (2, ["--validation-prompt="], "The prompt is empty"),
        (2, ["--validation-prompt={subjct}"], "Only {subject} and {style} may be in braces"),
        (2, ["--name=../fox"], "is not a valid project name"),
        (2, ["--name=/etc/fox"], "is not a valid project name"),
        (2, ["--name="], "is not a valid project name"),
        (2, ["--preset=papr"], "Did you mean 'paper'?"),
        (2, ["--preset=nowhere.toml"], "Cannot read the preset nowhere.toml"),
        (2, ["--rank=0"], "rank is 0, but must be from 1 to 1024"),
        (2, ["--rank=4.5"], "'--rank' must be a valid integer"),
        (2, ["--steps=-1"], "steps is -1, but must be"),
        (2, ["--content-lr=0"], "content-lr is 0.0, but must be above 0"),
        (2, ["--style-lr=7"], "style-lr is 7.0, but must be above 0, at most 1"),
        (2, ["--merge-lr=nan"], "merge-lr is nan"),
        (2, ["--resolution=100"], "a multiple of 8"),
        (2, ["--steps=5", "--recalibrations=3"], "--steps 7"),
        (2, ["--precision=fp8"], "must be one of auto, fp32, bf16, fp16"),
        (2, ["--prior-content-prompt=a fox"], "no folder of class images"),
        (2, ["--stpes=5"], "No such option"),
        (2, ["--device=abacus"], "There is no device 'abacus'"),
        (4, ["--base=no-such-folder"], "There is no base 'no-such-folder'"),
        (4, ["--base=owner/model"], "unziplora models pull owner/model"),
        (4, ["--vae=owner/vae"], "unziplora models pull owner/vae"),
    ],
)
def test_a_bad_option_of_train(assert_fails, photos, settings, code, options, text):
    names = {option.split("=")[0] for option in options}
    kept = [option for option in (*WORDS, *settings) if option.split("=")[0] not in names]
    assert text in assert_fails(code, "train", photos / "fox.png", *kept, *options)


def test_a_preset_file_with_an_unknown_key_names_the_nearest(assert_fails, photos, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[train]\nrnak = 4\n")
    message = assert_fails(2, "train", photos / "fox.png", *WORDS, f"--preset={path}", "--base=mini")
    assert "Unknown key 'rnak'" in message
    assert "Did you mean 'rank'?" in message


def test_missing_words_without_a_terminal_name_the_options(assert_fails, photos, settings):
    assert "--subject fox" in assert_fails(2, "train", photos / "fox.png", *settings)
    assert "--style watercolor" in assert_fails(2, "train", photos / "fox.png", "--subject=fox", *settings)
    twice = ("--subject=a", "--subject=b", "--style=c")
    assert "2 times for 1 image" in assert_fails(2, "train", photos / "fox.png", *twice, *settings)


def test_two_images_with_one_project_name_are_rejected(assert_fails, photos, tmp_path, settings):
    other = shutil.copy(photos / "rose.jpg", tmp_path / "fox.jpg")
    message = assert_fails(2, "train", photos / "fox.png", other, *WORDS, *settings)
    assert "would both create the project 'fox'" in message
    names = assert_fails(2, "train", photos / "fox.png", photos / "rose.jpg", "--name=x", *WORDS, *settings)
    assert "--name names one project" in names


@pytest.mark.parametrize("part", ["vae", "text_encoder_2", "tokenizer", "scheduler", "unet/config.json"])
def test_a_base_with_a_missing_component(assert_fails, photos, tiny_base, settings, tmp_path, part):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    shutil.rmtree(base / part) if (base / part).is_dir() else (base / part).unlink()
    message = assert_fails(4, "train", photos / "fox.png", *WORDS, *settings, f"--base={base}")
    assert f"lacks {part}" in message


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"addition_embed_type": None}, "no pooled text"),
        ({"in_channels": 9}, "inpainting"),
        ({"_class_name": "SD3Transformer2DModel"}, "SD3Transformer2DModel"),
        ({"up_block_types": ["UpBlock2D"] * 3}, "has no attention at"),
    ],
)
def test_a_base_with_another_architecture(assert_fails, photos, tiny_base, settings, tmp_path, change, text):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    path = base / "unet/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    message = assert_fails(4, "train", photos / "fox.png", *WORDS, *settings, f"--base={base}")
    assert "is not an SDXL-class model" in message
    assert text in message


def test_a_base_with_broken_weights(assert_fails, photos, tiny_base, settings, tmp_path):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    (weights,) = (base / "unet").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    assert_fails(4, "train", photos / "fox.png", *WORDS, *settings, f"--base={base}")


def test_a_home_that_is_a_file(assert_fails, photos, settings, tmp_path):
    home = tmp_path / "home"
    home.write_text("mine")
    for command in (["train", photos / "fox.png", *WORDS, *settings], ["content", "fox"]):
        message = assert_fails(3, *command, f"--home={home}")
        assert "--home" in message or "There is no project" in message
    assert home.read_text() == "mine"


def test_a_read_only_home(assert_fails, photos, settings, monkeypatch):
    mkdir = Path.mkdir

    def read_only(self: Path, *args: object, **named: object) -> None:
        if self.name == "projects":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        mkdir(self, *args, **named)

    monkeypatch.setattr(Path, "mkdir", read_only)
    message = assert_fails(3, "train", photos / "fox.png", *WORDS, *settings)
    assert "Read-only file system" in message
    assert "--home FOLDER" in message


def full_disk(*args: object, **named: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "target",
    [
        "unziplora_cli.workflows.train.shutil.copyfile",
        "unziplora_cli.adapters.tensors.save",
        "unziplora_cli.projects.manifest.files.write_bytes",
    ],
)
def test_a_full_disk_while_training(assert_fails, photos, settings, two_projects, monkeypatch, target):
    monkeypatch.setattr(target, full_disk)
    message = assert_fails(3, "train", photos / "fox.png", *WORDS, *settings, "--force")
    assert "No space left on device" in message
    monkeypatch.undo()
    assert ProjectStore(two_projects).verify("fox").problems == ()


def test_a_full_disk_while_generating(assert_fails, two_projects, monkeypatch):
    monkeypatch.setenv("UNZIPLORA_HOME", str(two_projects))
    monkeypatch.setattr(Image.Image, "save", full_disk)
    message = assert_fails(3, "content", "fox", *QUICK, "--out", two_projects / "projects/fox")
    assert "No space left on device" in message
    assert "--out" in message


@pytest.mark.parametrize(
    ("code", "line", "text"),
    [
        (3, ["content", "fx"], "There is no project 'fx'. Did you mean fox?"),
        (3, ["combine", "fox", "nobody"], "There is no project 'nobody'"),
        (3, ["cross", "fox", "--style=nobody"], "unziplora list"),
        (2, ["content", "../fox"], "is not a valid project name"),
        (2, ["cross"], "needs at least one content and one style"),
        (2, ["content", "fox", "--prompt="], "The prompt is empty"),
        (2, ["cross", "fox", "--prompt= "], "The prompt is empty"),
        (2, ["combine", "fox", "--style-prompt="], "The prompt is empty"),
        (2, ["content", "fox", "--prompt=a {thing}"], "'{thing}'"),
        (2, ["style", "fox", "--subject="], "The subject is empty"),
        (2, ["content", "fox", "--steps=0"], "steps is 0, but must be"),
        (2, ["content", "fox", "--width=100"], "a multiple of 8"),
        (2, ["content", "fox", "--guidance=-1"], "guidance is -1.0"),
        (2, ["content", "fox", "--scheduler=euller"], "Did you mean 'euler'?"),
        (2, ["content", "fox", "--precision=fp8"], "must be one of auto, fp32, bf16, fp16"),
        (2, ["content", "fox", "--precision=fp16", "--device=cpu"], "fp16 needs a GPU"),
        (2, ["content", "fox", "--device=cuda:99"], "This machine has no device 'cuda:99'"),
        (2, ["content", "fox", "--out=fox.jpg"], "--out fox.png"),
        (4, ["content", "fox", "--base=no-such-folder"], "There is no base 'no-such-folder'"),
    ],
)
def test_a_bad_option_of_a_generation_command(assert_fails, two_projects, code, line, text):
    assert text in assert_fails(code, *line)


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (2, "train {path}.png --subject=a --style=b"),
        (2, "train {path} --subject=a --style=b"),
        (2, "content fox --out={path}.png"),
        (2, "report fox --out={path}.html"),
        (2, "push fox me/fox --plan --out={path}"),
        (3, "export fox --out={path}"),
        (2, "content fox --base={path}"),
        (2, "check {path}.safetensors"),
        (2, "models path {path}"),
        (2, "--home={path} show fox"),
    ],
)
def test_a_path_that_no_file_can_have_is_no_bug(assert_fails, two_projects, code, line):
    message = assert_fails(code, *line.format(path="x" * 5000).split())
    assert "File name too long" in message
    assert "This is a bug" not in message


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (4, "content fox --base=~nobody-here/base"),
        (2, "train fox.png --subject=a --style=b --base=mini --destyle=~nobody-here/images"),
        (4, "models path ~nobody-here/base"),
    ],
)
def test_the_folder_of_an_unknown_user_is_no_bug(assert_fails, two_projects, photos, monkeypatch, code, line):
    monkeypatch.chdir(photos)
    assert "~nobody-here" in assert_fails(code, *line.split(), *(["--name=new"] if "train" in line else []))


@pytest.mark.parametrize("command", ["content", "cross"])
def test_an_unwritable_output_is_rejected_before_generating(
    assert_fails, two_projects, tmp_path, monkeypatch, command
):
    from unziplora_cli.workflows import generate

    monkeypatch.setattr(generate, "generate_requests", lambda *_: pytest.fail("an image was generated"))
    (tmp_path / "file").write_text("mine")
    message = assert_fails(3, command, "fox", *QUICK, "--out", tmp_path / "file/below")
    assert "file is not a folder" in message
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    assert "--out" in assert_fails(3, command, "fox", *QUICK, "--out", tmp_path / "new")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("train fox.png --subject=fox --trigger=", "The trigger is empty"),
        ("train  --subject=fox", "The path is empty"),
        ("train fox.png --base=", "base is empty"),
        ("train fox.png --describer=", "describer is empty"),
        ("train fox.png --prior-content-prompt=", "The prompt is empty"),
        ("content fox --out=", "out is empty"),
        ("style fox --subject=", "The subject is empty"),
        ("cross --content=fox --style=", "The style is empty"),
        ("export fox --with= --part=combined", "with is empty"),
        ("import folder --trigger=", "The trigger is empty"),
        ("import ", "The path is empty"),
        ("destyle fox.png --out=", "out is empty"),
        ("push fox me/fox --out=", "out is empty"),
        ("check ", "The path is empty"),
        ("list --home=", "home is empty"),
    ],
)
def test_what_is_given_without_a_text_is_refused(assert_fails, line, says):
    """As by a variable of a shell script that is not set."""
    assert says in assert_fails(2, *line.split(" "))


def test_some_texts_may_be_empty(unziplora, two_projects):
    completed = unziplora("content", "fox", "--negative-prompt=", "--steps=1", "--device=cpu")
    assert completed.code == 0


def test_cheap_checks_run_before_torch_is_imported(photos, two_projects, tmp_path):
    bad = bad_images(tmp_path)
    fox = str(photos / "fox.png")
    train = ["train", fox, *WORDS]
    lines = [
        *(["train", str(path), *WORDS] for path in bad.values()),
        ["train", fox],
        ["train", fox, "--subject= ", "--style=x"],
        [*train],
        [*train, "--name=../x"],
        [*train, "--name=x", "--full-prompt="],
        [*train, "--name=x", "--rank=0"],
        [*train, "--name=x", "--preset=papr"],
        [*train, "--name=x", "--base=no-such-folder"],
        ["content", "nobody"],
        ["content", "fox", "--prompt="],
        ["content", "fox", "--steps=0"],
        ["content", "fox", "--out=fox.jpg"],
        ["combine", "fox", "--full-prompt="],
        ["cross", "fox", "rose", "--prompt="],
        ["cross", "fox", "rose", f"--out={bad['text']}"],
        ["demo", "--out=sheet.txt"],
    ]
    program = (
        "import json, sys\n"
        "from unziplora_cli.__main__ import run\n"
        "codes = []\n"
        "for line in json.loads(sys.argv[1]):\n"
        "    codes.append(run(line))\n"
        "    assert 'torch' not in sys.modules, line\n"
        "print(json.dumps(codes))\n"
    )
    completed = subprocess.run(
        [sys.executable, "-c", program, json.dumps(lines)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert completed.returncode == 0, completed.stderr
    assert all(code in (2, 3, 4) for code in json.loads(completed.stdout))
    assert "Traceback" not in completed.stderr
