"""One function per reader of untrusted bytes.

A target may reject its input with an UnziploraError that has a message. Every other exception, and every
write outside the given folder, is a finding. Hypothesis and atheris both call these functions.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.fuzz.guard import confined
from tests.fuzz.seeds import sample_manifest, training_state
from tests.jobs import changed
from unziplora_cli import checks, config, images, model_cache, prompts, resources
from unziplora_cli.__main__ import run
from unziplora_cli.adapters.lora_file import read_lora
from unziplora_cli.adapters.merge_weights import read_merge, read_pickled_merge
from unziplora_cli.config import GenerateConfig, TrainConfig, Words
from unziplora_cli.errors import UnziploraError
from unziplora_cli.job import to_json
from unziplora_cli.projects import folders, manifest, names, unfinished
from unziplora_cli.projects.store import ProjectStore
from unziplora_cli.projects.verify import inside
from unziplora_cli.sdxl import base, single_file
from unziplora_cli.training import callbacks
from unziplora_cli.training.checkpoint import Checkpoints
from unziplora_cli.workflows.publish import PushRequest, write_folder
from unziplora_cli.workflows.report import report

Target = Callable[[bytes, Path], None]


def _read_manifest(data: bytes, folder: Path) -> manifest.Manifest:
    (folder / manifest.FILE_NAME).write_bytes(data)
    return manifest.read(folder)


def _manifest(data: bytes, folder: Path) -> None:
    parsed = _read_manifest(data, folder)
    for path in (
        *(image.file for image in parsed.job.images),
        *(artifact.path for artifact in parsed.artifacts),
    ):
        assert inside(folder, path).resolve().is_relative_to(folder.resolve())
    assert _read_manifest(to_json(parsed), folder) == parsed


def _preset(data: bytes, folder: Path) -> None:
    path = folder / "mine.toml"
    path.write_bytes(data)
    preset = config.load_preset(path)
    config.resolve_generate(preset, {})
    config.resolve(preset, {})


def _config(data: bytes, folder: Path) -> None:
    values = _json(data)
    if isinstance(values, dict):
        for kind in (TrainConfig, GenerateConfig):
            fields = {key: value for key, value in values.items() if key in checks.field_names(kind)}
            assert kind(**asdict(kind(**fields))) == kind(**fields)
        config.resolve("paper", values)


def _lora(data: bytes, folder: Path) -> None:
    path = folder / "lora.safetensors"
    path.write_bytes(data)
    assert read_lora(path).rank >= 0


def _merge(data: bytes, folder: Path) -> None:
    path = folder / "merge.safetensors"
    path.write_bytes(data)
    read_merge(path)


def _pickled_merge(data: bytes, folder: Path) -> None:
    path = folder / "merger.pth"
    path.write_bytes(data)
    read_pickled_merge(path)


def _import(data: bytes, folder: Path) -> None:
    """One file as both LoRAs of a pair, imported for the built-in base."""
    files = [folder / f"fox-{branch}.safetensors" for branch in ("content", "style")]
    for file in files:
        file.write_bytes(data)
    words = ("--subject=fox", "--style=ink", "--name=fox", "--force", "--base=mini")
    _command("import", *map(str, files), *words, f"--home={folder / 'home'}")


def _command(*arguments: str) -> None:
    """Run a command line; raises AssertionError if its exit code means a bug."""
    code = run([*arguments, "--offline", "--json"])
    if code not in (0, 2, 3, 4, 6):
        raise AssertionError(f"{arguments} ended with {code}")


def _base_file(data: bytes, folder: Path) -> None:
    path = folder / "base.safetensors"
    path.write_bytes(data)
    header = single_file.read_header(path)
    if reason := single_file.unsupported_reason(header, path.name):
        raise UnziploraError(reason)
    single_file.scheduler_config(header, {})
    with contextlib.suppress(UnziploraError):  # a small seed lacks most weights
        base.resolve_base(str(path), offline=True)


def _base_json(data: bytes, folder: Path) -> None:
    """A configuration file of the built-in base, chosen by the first byte, replaced by the other bytes."""
    names = ("model_index.json", *(f"{part}/config.json" for part in base.WEIGHTS))
    names += ("scheduler/scheduler_config.json",)
    changed = names[data[0] % len(names)] if data else names[0]
    copy = folder / "base"
    if not copy.exists():
        for source in resources.mini_base().rglob("*"):
            place = copy / source.relative_to(resources.mini_base())
            if source.is_file():
                place.parent.mkdir(parents=True, exist_ok=True)
                if source.suffix == ".json":
                    place.write_bytes(source.read_bytes())
                else:
                    place.symlink_to(source)
    (copy / changed).write_bytes(data[1:])
    try:
        resolved, _ = base.resolve_base(str(copy), offline=True)
        assert base.native_resolution(resolved) == int(base.native_resolution(resolved))
        assert base.scheduler_name(resolved)
        base.predicts_velocity(resolved)
        base.check_trainable(resolved)
    finally:
        (copy / changed).write_bytes((resources.mini_base() / changed).read_bytes())


def _history(data: bytes, folder: Path) -> None:
    path = folder / callbacks.HISTORY_FILE
    path.write_bytes(data)
    kept = callbacks.truncate_history(path, 10)
    assert callbacks.read_history(path) == kept
    path.write_bytes(data)
    callbacks.read_history(path)


def _training_record(data: bytes, folder: Path) -> None:
    (folder / unfinished.FILE_NAME).write_bytes(data)
    job = unfinished.read_record(folder).job
    assert job.settings is None or job.identity()


def _checkpoint(data: bytes, folder: Path) -> None:
    """A checkpoint with a matching hash file."""
    path = folder / "step-000001.safetensors"
    path.write_bytes(data)
    path.with_suffix(".sha256").write_text(sha256(data).hexdigest())
    step, _ = Checkpoints(folder, 0).restore(training_state(), {"rank": 2})
    assert isinstance(step, int)


def _ref(data: bytes, folder: Path) -> None:
    """The file of a branch in the model cache, which holds a commit."""
    path = Path(os.environ["HF_HUB_CACHE"]) / "models--a--b/refs/main"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    model_cache.list_models()
    base.resolve_base("a/b", offline=True)


def _png(data: bytes, folder: Path) -> None:
    path = folder / "generated.png"
    path.write_bytes(data)
    assert isinstance(images.read_parameters(path), dict)


def _parameters(data: bytes, folder: Path) -> None:
    """Generation parameters of an image, through the report and the model card that show them."""
    store = ProjectStore(folder / "home")
    if not store.exists("fox"):
        with store.create("fox") as place:
            (place / "content.safetensors").write_bytes(b"0")
            artifact = manifest.Artifact(
                "content", "content.safetensors", sha256(b"0").hexdigest(), 1, "kohya"
            )
            record = _read_manifest(sample_manifest(), place)
            manifest.write(place, changed(record, images=(), artifacts=(artifact,)))
    project = store.open("fox")
    info = PngInfo()
    info.add_itxt(images.KEY, data.decode("utf-8", "replace"))
    project.images.mkdir(exist_ok=True)
    Image.new("RGB", (64, 64)).save(project.images / "generated.png", pnginfo=info)
    assert report(project).images == 1
    pushed = folder / "pushed"
    write_folder(PushRequest(project, "me/fox"), store, pushed)
    assert (pushed / "README.md").read_text(encoding="utf-8")
    shutil.rmtree(pushed)


def _picture(data: bytes, folder: Path) -> None:
    path = folder / "picture.png"
    path.write_bytes(data)
    assert images.load_image(path).image.mode == "RGB"


def _prompt(data: bytes, folder: Path) -> None:
    subject, style, trigger, prompt, *_ = [*_text(data).split("\n", 3), "", "", "", ""]
    words = Words(subject or "fox", style or "ink", trigger or "monadikos")
    made = prompts.make_prompts(words, prompt, {"style": trigger or None})
    assert made.full.strip()
    assert all(text.encode().decode() == text for text in asdict(made).values())


def _name(data: bytes, folder: Path) -> None:
    text = _text(data)
    assert names.check_name(names.slugify(text))
    store = ProjectStore(folder)
    names.check_name(text)
    assert (store.folder / text).parent == store.folder
    assert not store.exists(text)


def _lock_note(data: bytes, folder: Path) -> None:
    note = folder / "fox.json"
    note.write_bytes(data)
    assert folders._holder(note).startswith(" by ")


def _command_line(data: bytes, folder: Path) -> None:
    """Arguments, one per line, of commands that write nothing outside the home."""
    command, *arguments = _text(data).split("\n")
    commands = (
        "list",
        "show",
        "verify",
        "rename",
        "remove",
        "models",
        "content",
        "style",
        "combine",
        "cross",
    )
    if command in commands:
        _command(command, *arguments, f"--home={folder / 'home'}")


TARGETS: dict[str, Target] = {
    "manifest": _manifest,
    "preset": _preset,
    "config": _config,
    "lora": _lora,
    "merge": _merge,
    "pickled-merge": _pickled_merge,
    "import": _import,
    "base-file": _base_file,
    "base-json": _base_json,
    "history": _history,
    "training-record": _training_record,
    "checkpoint": _checkpoint,
    "hub-ref": _ref,
    "png": _png,
    "parameters": _parameters,
    "picture": _picture,
    "prompt": _prompt,
    "name": _name,
    "lock-note": _lock_note,
    "command-line": _command_line,
}


def attempt(target: str, data: bytes, folder: Path) -> None:
    """Give one input to a target; raises whatever is a finding."""
    with confined(folder):
        try:
            TARGETS[target](data, folder)
        except UnziploraError as refusal:
            if not refusal.message.strip() or refusal.exit_code not in range(2, 7):
                raise AssertionError(f"a poor refusal: {refusal!r}") from refusal


def _text(data: bytes) -> str:
    """The bytes as a program's arguments hold them: what is no UTF-8 becomes lone surrogates."""
    return data.decode("utf-8", "surrogateescape")


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None
