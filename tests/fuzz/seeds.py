"""Valid and nearly valid inputs of every target, as starting points."""

import io
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save

from tests.jobs import make_job
from unziplora_cli import images, resources
from unziplora_cli.config import GenerateConfig, TrainConfig
from unziplora_cli.job import Job, SourceImage, to_json
from unziplora_cli.method.layer import DualLoRALinear
from unziplora_cli.projects import manifest, unfinished
from unziplora_cli.sdxl import base
from unziplora_cli.training import callbacks
from unziplora_cli.training.checkpoint import TrainingState
from unziplora_cli.training.step import parameter_groups


def seeds(target: str) -> list[bytes]:
    """The starting points of a target."""
    match target:
        case "manifest":
            return [sample_manifest()]
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
            head = ",".join(callbacks.HISTORY_COLUMNS).encode()
            return [head + b"\n1,0.5,0.4,,1.0,1,1,0.1\n2,0.4,0.4,0.1,1.0,1,1,0.1\n"]
        case "checkpoint":
            return [_sample_checkpoint()]
        case "training-record":
            return [_sample_training_record()]
        case "png" | "picture":
            return [_sample_png()]
        case "parameters":
            prompts_ = {"full": "a fox in ink style", "content": "a fox", "style": "ink"}
            return [
                json.dumps({"command": kind, "prompts": prompts_, "seed": 7, "base": {"id": "mini"}}).encode()
                for kind in ("content", "style", "combine")
            ]
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

    info = PngImagePlugin.PngInfo()
    info.add_itxt(images.KEY, '{"schema": 1, "prompts": {"full": "a fox"}}')
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, format="PNG", pnginfo=info)
    return file.getvalue()


def _sample_training_record() -> bytes:
    return to_json(unfinished.UnfinishedRecord(job=_sample_job()))


def sample_manifest() -> bytes:
    return to_json(
        manifest.Manifest(
            job=_sample_job(),
            versions={"torch": "2.13.0"},
            seconds=1.5,
            steps_done=600,
            state="complete",
            artifacts=(manifest.Artifact("content", "content.safetensors", "0" * 64, 1, "kohya", 4),),
            metrics={"loss_last": 0.1},
        )
    )


def _sample_job() -> Job:
    return make_job(images=(SourceImage("source.png", "0" * 64, 64, 64, "PNG"),))


def training_state() -> TrainingState:

    layers = {"a": DualLoRALinear(torch.nn.Linear(3, 4), 2)}
    groups = parameter_groups(layers, content_lr=0.1, style_lr=0.1, merge_lr=0.1)
    optimizer = torch.optim.AdamW(groups)
    return TrainingState(layers, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0))


def _sample_checkpoint() -> bytes:

    state = training_state()
    for layer in state.layers.values():
        for parameter in layer.parameters():
            parameter.grad = parameter.detach().clone() if parameter.requires_grad else None
    state.optimizer.step()
    with tempfile.TemporaryDirectory() as folder:
        state.save(Path(folder, "a"), 1, {"rank": 2})
        return Path(folder, "a").read_bytes()
