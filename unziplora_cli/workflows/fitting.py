"""Which base a LoRA belongs to, told by the shapes of its layers; the base need not be on this disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unziplora_cli.errors import AdapterError
from unziplora_cli.method.lora import LoRA, MergeWeights
from unziplora_cli.project.manifest import BaseRecord
from unziplora_cli.workflows.provenance import base_record


def known_base(spec: str) -> BaseRecord:
    """The record of the base that ``spec`` names; raises ModelError.

    Of ``sdxl`` everything needed is known without its files.
    """
    from unziplora_cli.diffusion.base import SDXL_ID, SDXL_REVISION, resolve_base

    if spec == "sdxl":
        return BaseRecord(spec, "hub", SDXL_ID, SDXL_REVISION, SDXL_REVISION)
    return base_record(resolve_base(spec, offline=True)[0])


def unet_config(base: BaseRecord) -> Mapping[str, Any]:
    """The configuration of a base's U-Net; raises ModelError when it is not known and not on this disk."""
    from unziplora_cli.diffusion.base import SDXL_CONFIG, SDXL_ID, config, resolve_base
    from unziplora_cli.diffusion.shape import read_json

    if base.id == SDXL_ID:
        return read_json(SDXL_CONFIG / "unet/config.json")
    spec = base.id if base.kind in ("folder", "file") else base.spec
    return config(resolve_base(spec, offline=True)[0], "unet")


def check_fits(
    base: BaseRecord,
    content: LoRA,
    style: LoRA | None = None,
    content_merge: MergeWeights | None = None,
    style_merge: MergeWeights | None = None,
) -> None:
    """Raise AdapterError unless every layer of the LoRAs has its place in the base's U-Net."""
    from unziplora_cli.diffusion.fuse import Branches, check_fit
    from unziplora_cli.diffusion.hollow import hollow_unet

    branches = Branches(content, style, content_merge, style_merge)
    check_fit(hollow_unet(unet_config(base)), branches)


def fitting_base(content: LoRA, style: LoRA | None = None) -> BaseRecord:
    """SDXL or the built-in base, whichever the LoRAs fit; raises AdapterError."""
    for spec in ("sdxl", "mini"):
        base = known_base(spec)
        try:
            check_fits(base, content, style)
        except AdapterError:
            continue
        return base
    raise AdapterError(
        "The LoRA fits neither SDXL nor the built-in base: its layers have other sizes.",
        hint="Name the base it was trained on: --base FOLDER",
    )
