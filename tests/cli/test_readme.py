"""The Python block of the documentation runs, and so do the shell lines of the quick start.

tests/docs parses all others.
"""

import re
import shlex
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from unziplora_cli.adapters.lora_file import read_lora

DOCS = Path(__file__).parents[2] / "docs"


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
    (lines,) = re.findall(r"```python\n(.*?)```", (DOCS / "programs.md").read_text("utf-8"), re.DOTALL)
    variables: dict[str, Any] = {}
    exec(compile(lines, "programs.md", "exec"), variables)

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


def test_the_quick_start_runs(
    unziplora: Any, photos: Path, settings: list[str], isolated_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unchanged but for small settings, and the words where a model would propose them."""
    monkeypatch.chdir(photos)
    guide = (DOCS / "quick-start.md").read_text(encoding="utf-8").partition("## Your own image")[2]
    (block, _) = re.findall(r"```sh\n(.*?)```", guide, re.DOTALL)
    lines = [
        shlex.split(line, comments=True)[1:] for line in block.replace("rose.png", "rose.jpg").splitlines()
    ]
    assert [line[0] for line in lines] == [
        *("train", "content", "style", "combine"),
        *("train", "combine", "cross"),
    ]
    for line in lines:
        small = ["--steps=2"]
        if line[0] == "train":
            small = [*settings, *([] if "--subject" in line else ["--subject=fox", "--style=watercolor"])]
        completed = unziplora(*line, *small)
        assert completed.code == 0, completed.err
    assert sorted(path.name for path in (isolated_home / "projects").iterdir()) == ["fox", "rose"]
    assert len(list(isolated_home.rglob("images/*.png"))) >= 4
