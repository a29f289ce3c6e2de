"""PEFT's adapter configuration: the scale of every layer, by the rules of PEFT.

diffusers stores it in the header of a file (``lora_adapter_metadata``, every key behind ``unet.``), PEFT in
``adapter_config.json`` beside the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from unziplora_cli.errors import AdapterError, Remedy

ADAPTER_METADATA = "lora_adapter_metadata"
CONFIG_FILE = "adapter_config.json"

_LARGEST_FILE = 1 << 20

_CHANGES_THE_UPDATE = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "fan_in_fan_out",
    "layer_replication",
    "alora_invocation_tokens",
    "trainable_token_indices",
    "modules_to_save",
    "arrow_config",
    "monteclora_config",
    "kasa_config",
    "velora_config",
)
"""Options with which the update of a layer is no longer the scale times ``up @ down``."""

_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initializations that also change the weights of the base, which the file does not hold."""

_UNSAFE_PATTERN = re.compile(r"\)[*+{?]|(?:[*+{].*){3}|\(\?|\\\d")
"""Regular expressions that could take forever, or whose meaning depends on their position."""


def header_config(metadata: Mapping[str, str]) -> Mapping[str, Any] | None:
    """The configuration in the header of a file, None without one.

    ``save_lora_weights`` of a pipeline puts ``unet.`` before every key, ``save_lora_adapter`` of a U-Net does
    not.
    """
    if ADAPTER_METADATA not in metadata:
        return None
    config = _parse(metadata[ADAPTER_METADATA], f"The header's {ADAPTER_METADATA}")
    prefixed = {key.removeprefix("unet."): value for key, value in config.items() if key.startswith("unet.")}
    return prefixed or config


def folder_config(lora: Path) -> Mapping[str, Any]:
    """The configuration beside a LoRA that PEFT saved; raises AdapterError when it is missing."""
    path = lora.with_name(CONFIG_FILE)
    if not path.is_file():
        raise AdapterError(
            f"{lora.name} was saved by PEFT, but {CONFIG_FILE}, which holds its alpha, is not beside it.",
            Remedy(f"Put {CONFIG_FILE} of the same training into the folder of the file."),
        )
    if path.stat().st_size > _LARGEST_FILE:
        raise AdapterError(f"{path} is too large to be the configuration of an adapter.")
    try:
        return _parse(path.read_text(encoding="utf-8-sig"), str(path))
    except (OSError, UnicodeError) as error:
        raise AdapterError(f"{path} cannot be read: {error}.") from error


def read_scales(config: Mapping[str, Any] | None, ranks: Mapping[str, int]) -> dict[str, float]:
    """The factor of ``up @ down`` of every layer: alpha / rank, or alpha / sqrt(rank) with ``use_rslora``.

    Without a configuration there are no factors: every layer has scale 1.

    A key of ``rank_pattern`` or ``alpha_pattern`` is a regular expression that matches the end of a layer's
    name, from a dot on; the first key that matches counts. Raises AdapterError for options that change the
    update in another way, and when the ranks are not those of the tensors.
    """
    if config is None:
        return {}
    option = next((key for key in _CHANGES_THE_UPDATE if config.get(key)), None)
    start = str(config.get("init_lora_weights", "")).lower()
    if option is None and start.startswith(_CHANGES_THE_BASE):
        option = f"init_lora_weights={start}"
    if option is not None:
        raise AdapterError(
            f"The LoRA was trained with PEFT's {option}, which changes more than low-rank updates.",
            Remedy("Only plain LoRAs can be used: convert it to one with PEFT first."),
        )
    scales = {}
    try:
        for layer, rank in ranks.items():
            alpha = float(_value(config, "alpha_pattern", layer, config["lora_alpha"]))
            expected = int(_value(config, "rank_pattern", layer, config.get("r", rank)))
            if expected != rank:
                raise AdapterError(f"{layer} has rank {rank}; the configuration of PEFT says {expected}.")
            scales[layer] = alpha / (rank**0.5 if config.get("use_rslora") else rank)
        if not all(map(isfinite, scales.values())):
            raise ValueError("an alpha is not finite")
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        OverflowError,
        ZeroDivisionError,
        re.error,
    ) as error:
        raise AdapterError(f"The configuration of PEFT cannot be read: {error!r}.") from error
    return scales


def _value(config: Mapping[str, Any], name: str, layer: str, default: Any) -> Any:
    for pattern, value in (config.get(name) or {}).items():
        if len(pattern) > 300 or _UNSAFE_PATTERN.search(pattern):
            raise ValueError(f"{name} holds an unsupported pattern {pattern[:60]!r}")
        if re.match(rf"(.*\.)?({pattern})$", layer):
            return value
    return default


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
        if not isinstance(config, dict):
            raise TypeError("it is not an object")
    except (ValueError, TypeError, RecursionError) as error:
        raise AdapterError(f"{source} cannot be read: {error!r}.") from error
    return config
