"""The README's code runs, and its commands exist."""

import re
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from diffusers import StableDiffusionXLPipeline

from unziplora_cli.adapters.lora_file import read_lora
from unziplora_cli.cli import app

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")  # of every second adapter
def test_the_python_code_adds_both_loras_to_a_diffusers_pipeline(
    two_projects: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unchanged but for the device, the steps, and the base: the projects were trained on the tiny one."""
    load, call = StableDiffusionXLPipeline.from_pretrained, StableDiffusionXLPipeline.__call__
    loaded: list[str] = []

    def from_tiny(cls: type, base: str, **_: Any) -> StableDiffusionXLPipeline:
        loaded.append(base)
        pipe = load(tiny_base, local_files_only=True).to(torch.float32)
        pipe.set_progress_bar_config(disable=True)
        monkeypatch.setattr(type(pipe), "__call__", partialmethod(call, num_inference_steps=2))
        return pipe

    monkeypatch.setattr(StableDiffusionXLPipeline, "from_pretrained", classmethod(from_tiny))
    monkeypatch.setattr(StableDiffusionXLPipeline, "to", to_cpu(StableDiffusionXLPipeline.to))
    monkeypatch.chdir(two_projects / "projects")
    (lines,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    variables: dict[str, Any] = {}
    exec(compile(lines, "README.md", "exec"), variables)

    assert loaded == ["stabilityai/stable-diffusion-xl-base-1.0"]
    assert variables["image"].size == (64, 64)
    pipe = variables["pipe"]
    assert pipe.get_active_adapters() == ["content", "style"]
    plain = from_tiny(StableDiffusionXLPipeline, "").unet.state_dict()
    expected = dict(plain)
    for project, role in (("fox", "content"), ("rose", "style")):
        lora = read_lora(two_projects / f"projects/{project}/{role}.safetensors").lora
        for name, weights in lora.items():
            key = f"{name}.weight"
            expected[key] = expected[key] + weights.up.float() @ weights.down.float()
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    fused = pipe.unet.state_dict()
    changed = [key for key in plain if not torch.equal(expected[key], plain[key])]
    assert len(changed) > 10
    assert fused.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(fused[key], tensor, rtol=1e-4, atol=1e-5)


def to_cpu(move: Any) -> Any:
    """`move`, except that a pipeline stays on the CPU when it is sent to a GPU."""
    return lambda pipe, *where: pipe if where == ("cuda",) else move(pipe, *where)


def test_every_command_of_the_readme_exists() -> None:
    program: Any = typer.main.get_command(app.app)
    models = program.commands["models"].commands
    for first, second in re.findall(r"unziplora ([a-z]+)(?: ([a-z]+))?", README):
        assert first in program.commands or first == "is", first
        if first == "models" and second:
            assert second in models, second


def test_every_command_is_in_the_readme() -> None:
    program: Any = typer.main.get_command(app.app)
    for name in program.commands:
        assert f"unziplora {name}" in README, name
