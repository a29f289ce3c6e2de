"""Every reader of bytes that a stranger may have written, as one function each.

A target may refuse its input with an UnziploraError that says something; every other exception, and every
write outside the given folder, is a finding. Hypothesis and atheris both drive these functions.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from unziplora_cli import cache, config, resources, wording
from unziplora_cli.cli import app
from unziplora_cli.config import GenerateConfig, TrainConfig, Words
from unziplora_cli.diffusion import base
from unziplora_cli.errors import UnziploraError
from unziplora_cli.formats import read_lora
from unziplora_cli.formats.merge import read_merge, read_reference_merge
from unziplora_cli.method.layer import DualLoRALinear
from unziplora_cli.project import lock, manifest, names, unfinished
from unziplora_cli.project.store import ProjectStore
from unziplora_cli.project.verification import inside
from unziplora_cli.report import png
from unziplora_cli.training import history, pictures
from unziplora_cli.training.checkpoint import TrainingState
from unziplora_cli.training.checkpoints import Checkpoints
from unziplora_cli.training.step import parameter_groups

Target = Callable[[bytes, Path], None]


def _manifest(data: bytes, folder: Path) -> None:
    found = manifest.parse(data, folder / manifest.FILE_NAME)
    for path in (*(each.file for each in found.source), *(each.path for each in found.artifacts)):
        assert inside(folder, path).resolve().is_relative_to(folder.resolve())
    again = json.dumps(found.to_json(), allow_nan=False).encode()
    assert manifest.parse(again, folder) == found


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
            known = {key: value for key, value in values.items() if key in config.field_names(kind)}
            assert kind(**asdict(kind(**known))) == kind(**known)
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
    read_reference_merge(path)


def _import(data: bytes, folder: Path) -> None:
    """A stranger's file as both LoRAs of a pair, for the built-in base."""
    files = [folder / f"fox-{branch}.safetensors" for branch in ("content", "style")]
    for file in files:
        file.write_bytes(data)
    words = ("--subject=fox", "--style=ink", "--name=fox", "--force", "--base=mini")
    _command("import", *map(str, files), *words, f"--home={folder / 'home'}")


def _command(*arguments: str) -> None:
    """Run a command line; raises AssertionError for the exit code of a defect."""
    code = app.run([*arguments, "--offline", "--json"])
    if code not in (0, 2, 3, 4, 6):
        raise AssertionError(f"{arguments} ended with {code}")


def _base_file(data: bytes, folder: Path) -> None:
    path = folder / "base.safetensors"
    path.write_bytes(data)
    base.resolve_base(str(path), offline=True)


def _base_json(data: bytes, folder: Path) -> None:
    """One part's configuration, named by the first byte, in the place of the built-in base's."""
    names = ("model_index.json", *(f"{part}/config.json" for part in base.WEIGHTS))
    names += ("scheduler/scheduler_config.json",)
    changed = names[data[0] % len(names)] if data else names[0]
    copy = folder / "base"
    if not copy.exists():
        for source in resources.mini_base().rglob("*"):
            place = copy / source.relative_to(resources.mini_base())
            if source.is_file():
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(source.read_bytes() if source.suffix == ".json" else b"")
    (copy / changed).write_bytes(data[1:])
    try:
        found, _ = base.resolve_base(str(copy), offline=True)
        assert base.native_resolution(found) == int(base.native_resolution(found))
        assert base.scheduler_name(found)
        base.predicts_velocity(found)
        base.check_trainable(found)
    finally:
        (copy / changed).write_bytes((resources.mini_base() / changed).read_bytes())


def _history(data: bytes, folder: Path) -> None:
    path = folder / history.FILE_NAME
    path.write_bytes(data)
    kept = history.cut(path, 10)
    assert history.read(path) == kept
    path.write_bytes(data)
    history.read(path)


def _plan(data: bytes, folder: Path) -> None:
    (folder / unfinished.PLAN).write_bytes(data)
    assert unfinished.read_plan(folder).identity()


def _checkpoint(data: bytes, folder: Path) -> None:
    """A checkpoint with the right hash beside it, as a stranger could make one."""
    path = folder / "step-000001.safetensors"
    path.write_bytes(data)
    path.with_suffix(".sha256").write_text(hashlib.sha256(data).hexdigest())
    step, _ = Checkpoints(folder, 0).restore(_training_state(), {"rank": 2})
    assert isinstance(step, int)


def _training_state() -> TrainingState:
    import torch

    layers = {"a": DualLoRALinear(torch.nn.Linear(3, 4), 2)}
    groups = parameter_groups(layers, content_lr=0.1, style_lr=0.1, merge_lr=0.1)
    optimizer = torch.optim.AdamW(groups)
    return TrainingState(layers, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0))


def _sample_checkpoint() -> bytes:
    import tempfile

    state = _training_state()
    for layer in state.layers.values():
        for parameter in layer.parameters():
            parameter.grad = parameter.detach().clone() if parameter.requires_grad else None
    state.optimizer.step()
    with tempfile.TemporaryDirectory() as folder:
        state.save(Path(folder, "a"), 1, {"rank": 2})
        return Path(folder, "a").read_bytes()


def _ref(data: bytes, folder: Path) -> None:
    """A branch of a cached model that should hold a commit."""
    path = Path(os.environ["HF_HUB_CACHE"]) / "models--a--b/refs/main"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    cache.list_models()
    base.resolve_base("a/b", offline=True)


def _png(data: bytes, folder: Path) -> None:
    path = folder / "drawn.png"
    path.write_bytes(data)
    assert isinstance(png.read_parameters(path), dict)


def _picture(data: bytes, folder: Path) -> None:
    path = folder / "picture.png"
    path.write_bytes(data)
    assert pictures.load_picture(path).image.mode == "RGB"


def _prompt(data: bytes, folder: Path) -> None:
    subject, style, trigger, prompt, *_ = [*_text(data).split("\n", 3), "", "", "", ""]
    words = Words(subject or "fox", style or "ink", trigger or "monadikos")
    made = wording.make_prompts(words, prompt, {"style": trigger or None})
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
    assert lock._holder(note).startswith(" by ")


def _command_line(data: bytes, folder: Path) -> None:
    """A line of arguments, one per line of text, to commands that read only."""
    command, *arguments = _text(data).split("\n")
    known = ("list", "show", "verify", "rename", "remove", "models", "content", "style", "combine", "cross")
    if command in known:
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
    "plan": _plan,
    "checkpoint": _checkpoint,
    "hub-ref": _ref,
    "png": _png,
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


_roots: list[Path] = []
_hooked = False


@contextmanager
def confined(folder: Path) -> Iterator[None]:
    """Raise AssertionError for every file that is opened for writing, made, moved or deleted elsewhere."""
    global _hooked
    if not _hooked:
        sys.addaudithook(_audit)
        _hooked = True
    _roots.append(folder.resolve())
    try:
        yield
    finally:
        _roots.pop()


_CHANGES = {
    "os.mkdir": ((0, 2),),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
}
"""Which arguments of an audit event are a changed path, and the open folder that it is relative to."""
_WRITING = 0x1 | 0x2 | 0x40  # O_WRONLY, O_RDWR, O_CREAT


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _roots:
        return
    if event == "open":
        path, mode, flags = arguments
        writes = bool(set(mode) & set("wax+")) if mode else bool(flags & _WRITING)
        changed = [(path, -1)] if writes else []
    else:
        changed = [(arguments[path], arguments[folder]) for path, folder in _CHANGES.get(event, ())]
    for path, folder in changed:
        if isinstance(path, str | bytes | Path) and not _allowed(Path(os.fsdecode(path)), folder):
            raise AssertionError(f"{event} outside the folder: {path!r}")


def _allowed(path: Path, folder: int) -> bool:
    if folder >= 0:
        path = Path(f"/proc/self/fd/{folder}").readlink() / path
    harmless = "__pycache__" in path.parts or path == Path("/dev/null")
    return harmless or Path(path.parent.resolve(), path.name).is_relative_to(_roots[-1])


def _text(data: bytes) -> str:
    """The bytes as a program's arguments hold them: what is no UTF-8 becomes lone surrogates."""
    return data.decode("utf-8", "surrogateescape")


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def seeds(target: str) -> list[bytes]:
    """Inputs that are read, or nearly so, to start from."""
    match target:
        case "manifest":
            return [_sample_manifest()]
        case "preset":
            return [path.read_bytes() for path in sorted(resources.template("presets").glob("*.toml"))]
        case "config":
            return [json.dumps(asdict(TrainConfig())).encode(), json.dumps(asdict(GenerateConfig())).encode()]
        case "lora" | "merge" | "import" | "base-file":
            return list(_tensor_files())
        case "pickled-merge":
            golden = Path(__file__).parents[1] / "golden/golden_a/saved"
            return [path.read_bytes() for path in sorted(golden.glob("*.pth"))]
        case "base-json":
            mini = resources.mini_base()
            parts = ("model_index.json", *(f"{part}/config.json" for part in base.WEIGHTS))
            files = (*parts, "scheduler/scheduler_config.json")
            return [bytes([i]) + (mini / file).read_bytes() for i, file in enumerate(files)]
        case "history":
            head = ",".join(history.COLUMNS).encode()
            return [head + b"\n1,0.5,0.4,,1.0,1,1,0.1\n2,0.4,0.4,0.1,1.0,1,1,0.1\n"]
        case "checkpoint":
            return [_sample_checkpoint()]
        case "plan":
            return [_sample_plan()]
        case "png" | "picture":
            return [_sample_png()]
        case "prompt":
            return [
                b"fox\nink\nmonadikos\n{subject} on a beach, {style}, at noon",
                b"fox\nink\n\nin the snow",
            ]
        case "command-line":
            return [
                b"show\nfox",
                b"content\nfox\n--prompt\non a beach",
                b"rename\na\nb",
                b"models\nverify\nmini",
            ]
        case _:
            return [b"My Fox (1)", b'{"pid": 1, "host": "a", "command": "b"}']


def _tensor_files() -> Iterator[bytes]:
    import torch
    from safetensors.torch import save

    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    kohya = "lora_unet_" + layer.replace(".", "_")
    down, up = torch.ones(1, 144), torch.ones(144, 1)  # as in the built-in base
    yield save(
        {
            f"{kohya}.lora_down.weight": down,
            f"{kohya}.lora_up.weight": up,
            f"{kohya}.alpha": torch.tensor(2.0),
        }
    )
    adapter = json.dumps({"unet.lora_alpha": 2, "unet.alpha_pattern": {}})
    peft = {f"unet.{layer}.lora_A.weight": down, f"unet.{layer}.lora_B.weight": up}
    yield save(peft, metadata={"lora_adapter_metadata": adapter})
    branches = {f"{layer}.{branch}": torch.ones(3) for branch in ("content", "style")}
    yield save(branches, metadata={"unziplora_format": "unziplora-merge", "unziplora_version": "1"})
    parts = (
        "model.diffusion_model.label_emb.0.0.weight",
        "conditioner.embedders.0.transformer.x",
        "conditioner.embedders.1.model.x",
        "first_stage_model.decoder.x",
    )
    first = {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(1, 4, 1, 1)}
    yield save({**first, **{part: torch.ones(1) for part in parts}, "v_pred": torch.ones(1)})


def _sample_png() -> bytes:
    import io

    from PIL import Image, PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_itxt(png.KEY, '{"schema": 1, "prompts": {"full": "a fox"}}')
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, format="PNG", pnginfo=info)
    return file.getvalue()


def _sample_plan() -> bytes:
    known = json.loads(_sample_manifest())
    names = {each.name for each in fields(unfinished.Plan)}
    return json.dumps({key: value for key, value in known.items() if key in names}).encode()


def _sample_manifest() -> bytes:
    words = Words("fox", "ink")
    record = manifest.Manifest(
        name="fox",
        created="2025-01-02T03:04:05Z",
        tool_version="0.1.0",
        base=manifest.BaseRecord(spec="mini", kind="builtin", id="mini", hash="0" * 64),
        source=(manifest.SourcePicture("source.png", "0" * 64, 64, 64, "PNG"),),
        words=words,
        prompts=wording.make_prompts(words),
        training=asdict(TrainConfig()),
        seed=0,
        device="cpu",
        versions={"torch": "2.13.0"},
        seconds=1.5,
        steps_done=600,
        state="complete",
        artifacts=(manifest.Artifact("content", "content.safetensors", "0" * 64, 1, "kohya", 4),),
        metrics={"loss_last": 0.1},
    )
    return json.dumps(record.to_json()).encode()
