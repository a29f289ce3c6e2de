"""Importing the files of the reference implementation."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from tests.tiny_base import make_tiny_base
from unziplora_cli.adapters.lora_file import read_lora
from unziplora_cli.adapters.merge_weights import read_merge
from unziplora_cli.config import Words
from unziplora_cli.errors import AdapterError
from unziplora_cli.projects.store import ProjectStore
from unziplora_cli.workflows.export_lora import lookup_base
from unziplora_cli.workflows.import_lora import find_pair, import_pair, read_pair

GOLDEN = Path(__file__).parents[1] / "golden/golden_a"
Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def golden_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with the shapes of the recorded training, but other weights."""
    base = make_tiny_base(tmp_path_factory.mktemp("golden") / "base")
    recorded = json.loads((GOLDEN / "meta.json").read_text())["unet_config"]
    config = {**json.loads((base / "unet/config.json").read_text()), **recorded}
    UNet2DConditionModel.from_config(config).save_pretrained(base / "unet")
    return base


def test_recorded_release_is_imported_without_rounding(isolated_home: Path, golden_base: Path) -> None:
    pair = read_pair(find_pair([GOLDEN / "saved"]))
    base = lookup_base(str(golden_base))
    made = import_pair(ProjectStore(isolated_home), "m", pair, Words("fox", "ink"), base)
    for branch in ("content", "style"):
        released = read_lora(GOLDEN / f"saved/m_{branch}/pytorch_lora_weights.safetensors").lora
        kept = read_lora(made.path(branch)).lora  # type: ignore[arg-type]
        nonzero = {layer for layer, weights in released.items() if bool(weights.up.any())}
        assert kept.keys() == nonzero
        assert all(torch.equal(kept[layer].up, released[layer].up) for layer in kept)
        assert all(torch.equal(kept[layer].down, released[layer].down) for layer in kept)
        stored = torch.load(GOLDEN / f"saved/m_merger_{branch}.pth", weights_only=True)
        merge = getattr(read_merge(made.path("merge")), branch)
        assert len(merge) == len(stored)
        assert torch.equal(merge[Q], stored[f"unet.{Q}.lora.merge_{branch}"])
    assert made.job.settings is None
    assert ProjectStore(isolated_home).verify("m").problems == ()


def test_mixed_up_merge_weights_are_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "saved", tmp_path / "saved")
    shutil.copy(folder / "m_merger_style.pth", folder / "m_merger_content.pth")
    with pytest.raises(AdapterError, match="of the style, not of the content"):
        read_pair(find_pair([folder]))


def test_merge_weights_of_another_training_are_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "saved", tmp_path / "saved")
    torch.save({f"unet.{Q}.lora.merge_content": torch.ones(7)}, folder / "m_merger_content.pth")
    with pytest.raises(AdapterError, match="does not match the content LoRA"):
        read_pair(find_pair([folder]))


def test_missing_merge_weights_become_one_with_a_note(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "saved", tmp_path / "saved")
    (folder / "m_merger_style.pth").unlink()
    pair = read_pair(find_pair([folder]))
    assert [note for note in pair.notes if "style" in note and "1" in note] == list(pair.notes)
    assert pair.style_merge.keys() == pair.style.lora.keys()
    assert all(bool((values == 1).all()) for values in pair.style_merge.values())
