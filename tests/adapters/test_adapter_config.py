"""The scales of PEFT's configurations, against PEFT's own update."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import save_file

from tests.tiny_base import unet_config
from unziplora_cli.adapters.adapter_config import read_scales
from unziplora_cli.adapters.lora_file import read_lora
from unziplora_cli.errors import AdapterError
from unziplora_cli.sdxl.meta import meta_unet

Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
TARGETS = r"down_blocks\.1\..*(to_q|to_k|to_v|to_out\.0)"

CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 2},
    "rslora": {"r": 4, "lora_alpha": 2, "use_rslora": True},
    "suffix": {"r": 4, "lora_alpha": 4, "alpha_pattern": {"to_q": 16, "attn1.to_k": 2}},
    "ranks by suffix": {"r": 4, "lora_alpha": 4, "rank_pattern": {"attn2.to_k": 1, "to_out.0": 8}},
    "expressions": {
        "r": 4,
        "lora_alpha": 3,
        "rank_pattern": {r"attentions\.1\..*": 2},
        "alpha_pattern": {r".*attn1.*": 8, r"to_[qk]": 5},
        "use_rslora": True,
    },
    "not a suffix": {"r": 4, "lora_alpha": 4, "alpha_pattern": {"o_q": 16, "to": 16, "attn1": 2}},
}


@pytest.mark.parametrize("place", ["header", "plain header", "folder", "folder with adapter name"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_update_is_that_of_peft(tmp_path: Path, kind: str, place: str) -> None:
    config = LoraConfig(target_modules=TARGETS, init_lora_weights=False, **CONFIGS[kind])
    with warnings.catch_warnings(action="ignore"):  # of patterns that match nothing
        unet = inject_adapter_in_model(config, meta_unet(unet_config()))
    state = {key: tensor.clone() for key, tensor in get_peft_model_state_dict(unet).items()}
    options = {key: getattr(config, key) for key in ("r", "lora_alpha", "rank_pattern", "alpha_pattern")}
    options["use_rslora"] = config.use_rslora
    path, metadata = tmp_path / "adapter_model.safetensors", None
    if place.startswith("folder"):
        (tmp_path / "adapter_config.json").write_text(json.dumps(options))
        default = ".default.weight" if "name" in place else ".weight"
        state = {f"base_model.model.{key.replace('.weight', default)}": value for key, value in state.items()}
    else:
        prefix = "unet." if place == "header" else ""
        metadata = {"lora_adapter_metadata": json.dumps({prefix + key: options[key] for key in options})}
        state = {prefix + key: tensor for key, tensor in state.items()}
    save_file(state, path, metadata=metadata)
    loaded = read_lora(path)
    assert len(loaded.lora) == 2 * 8
    for layer, weights in loaded.lora.items():
        expected = unet.get_submodule(layer).get_delta_weight("default")
        torch.testing.assert_close(weights.up @ weights.down, expected)


def test_peft_folder_without_its_configuration_is_refused(tmp_path: Path) -> None:
    state = {f"base_model.model.{Q}.lora_{part}.weight": torch.ones(2, 2) for part in "AB"}
    save_file(state, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"adapter_config\.json"):
        read_lora(tmp_path / "adapter_model.safetensors")


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"lora_bias": True},
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "olora"},
        {"rank_pattern": {"to_q": 3}},
        {"alpha_pattern": {"(to_q|to_q)+": 3}},
        {"alpha_pattern": {"to_q(": 3}},
        {"alpha_pattern": {"to_q": None}},
        {"alpha_pattern": ["to_q"]},
        {"lora_alpha": "much"},
        {"lora_alpha": 1e999},
        {"lora_alpha": None},
    ],
)
def test_configuration_that_cannot_be_followed_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(AdapterError):
        read_scales({"r": 2, "lora_alpha": 2, **options}, {Q: 2})
