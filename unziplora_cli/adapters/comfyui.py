"""ComfyUI's generic names: the key of the model's own weight, then the two tensors by any of their names.

For each layer ``diffusion_model.<layer by the original code's name>`` with ``.lora_A.weight`` and
``.lora_B.weight`` (or ``.lora_down`` and ``.lora_up``, or ``.lora.down`` and ``.lora.up``), perhaps with an
``.alpha``. Such files are read, not written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from unziplora_cli.adapters.layer_names import ldm_layer
from unziplora_cli.adapters.tensors import LoRATensors, Part
from unziplora_cli.method.lora import LoRAWeights

PREFIX = "diffusion_model."

_PARTS: Mapping[str, Part] = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".alpha": "alpha",
}


def recognises(keys: Iterable[str]) -> bool:
    """Whether a file with these keys is of this format."""
    return any(key.startswith(PREFIX) for key in keys)


def parse(tensors: Mapping[str, Tensor]) -> dict[str, LoRAWeights]:
    """The LoRA that these tensors hold; raises AdapterError."""
    tensors_by_layer = LoRATensors()
    for key, tensor in tensors.items():
        suffix = next((suffix for suffix in _PARTS if key.endswith(suffix)), "")
        name = key.removesuffix(suffix)
        layer = ldm_layer(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
        tensors_by_layer.put(key, layer, _PARTS.get(suffix), tensor)
    return tensors_by_layer.join()
