"""Whether configuration files describe a model of SDXL's shape that the method can train."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unziplora_cli.errors import ModelError
from unziplora_cli.method.blocks import SELECTIVE

PREDICTIONS = ("epsilon", "v_prediction")
"""What a U-Net may predict: the noise, or Salimans and Ho's velocity (arXiv 2202.00512)."""

MOST_LAYERS = 100
"""Layers of a block that are looked at, whatever number a configuration claims."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises ModelError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"Cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON.", hint="The base is damaged; fetch it again.") from error
    if not isinstance(value, dict):
        raise ModelError(
            f"{path} does not hold a configuration.", hint="The base is damaged; fetch it again."
        )
    return value


@contextmanager
def sound(path: Path) -> Iterator[None]:
    """Turn what a value of the wrong kind in a configuration raises into ModelError."""
    try:
        yield
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise ModelError(
            f"A configuration of the base {path} is damaged: {type(error).__name__}: {error}.",
            hint="Fetch the base again.",
        ) from error


def check_unet(folder: Path, unet: Mapping[str, Any]) -> None:
    """Raise ModelError unless a U-Net of this configuration can take the method's layers."""
    if unet.get("_class_name") != "UNet2DConditionModel":
        raise unsupported_model(
            folder, f"its denoiser is a {unet.get('_class_name')}, not a UNet2DConditionModel"
        )
    if unet.get("addition_embed_type") != "text_time":
        raise unsupported_model(folder, "its U-Net takes no pooled text and picture size")
    if unet.get("in_channels") != unet.get("out_channels"):
        raise unsupported_model(
            folder, "its U-Net takes a mask or picture beside the noise (an inpainting or edit model)"
        )
    attentions = list(_attentions(unet))
    lacking = [block for block in SELECTIVE if not any(name.startswith(block) for name in attentions)]
    if lacking:
        raise unsupported_model(folder, f"its U-Net has no attention at {', '.join(lacking)}")


def _attentions(unet: Mapping[str, Any]) -> Iterator[str]:
    """The names of the attention groups of a U-Net, from its configuration."""
    layers = unet.get("layers_per_block", 2)
    for side, extra in (("down", 0), ("up", 1)):
        for i, block in enumerate(unet.get(f"{side}_block_types", ())):
            if "CrossAttn" in block:
                count = (layers if isinstance(layers, int) else layers[i]) + extra
                yield from (f"{side}_blocks.{i}.attentions.{j}." for j in range(min(count, MOST_LAYERS)))


def check_scheduler(path: Path, scheduler: Mapping[str, Any]) -> None:
    """Raise ModelError unless noise is mixed in and predicted as SDXL's family does."""
    kind = str(scheduler.get("_class_name", ""))
    if kind.startswith("FlowMatch") or scheduler.get("prediction_type") == "flow_prediction":
        raise unsupported_model(path, "it is a flow-matching model, whose noise is mixed in otherwise")
    if kind.startswith("EDM"):
        raise unsupported_model(path, "its U-Net is made for the noise levels of EDM, not for SDXL's")
    prediction = scheduler.get("prediction_type", PREDICTIONS[0])
    if prediction not in PREDICTIONS:
        raise unsupported_model(
            path, f"its U-Net predicts {prediction!r}, neither the noise nor the velocity"
        )


def check_vae(path: Path, vae: Mapping[str, Any], channels: int) -> None:
    """Raise ModelError unless an autoencoder has the U-Net's number of latent channels."""
    found = vae.get("latent_channels", 4)
    if found != channels:
        raise ModelError(
            f"The VAE {path} has {found} latent channels, but the U-Net takes {channels}.",
            hint="Use the base's own VAE, or one that was made for SDXL.",
        )


def few_step_reason(unet: Mapping[str, Any], scheduler: Mapping[str, Any]) -> str:
    """Why a model must be one that was distilled to draw in a few steps, or nothing.

    LCM's guidance embedding or sampler, TCD's sampler; and the trailing timesteps that SDXL-Turbo and
    SDXL-Lightning draw at (a model that predicts the velocity may use them, too, to begin at pure noise).
    """
    kind = scheduler.get("_class_name")
    if unet.get("time_cond_proj_dim") or kind in ("LCMScheduler", "TCDScheduler"):
        return "it is a consistency model (LCM or TCD)"
    trailing = scheduler.get("timestep_spacing") == "trailing"
    if trailing and scheduler.get("prediction_type", PREDICTIONS[0]) == PREDICTIONS[0]:
        return "its sampler has the trailing timesteps of SDXL-Turbo and SDXL-Lightning"
    return ""


def unsupported_model(path: Path, why: str) -> ModelError:
    """The refusal of a base, and why."""
    return ModelError(
        f"The base {path} is not of SDXL's shape: {why}.",
        hint="Use SDXL or a model made from it: --base sdxl, or --base mini to try things out.",
    )
