"""Run as a program: import what training needs, and print what happened as JSON on the last line.

It is a process of its own because a broken torch can take the whole process down with it.
"""

import importlib
import json
import sys
import warnings
from typing import Any

# What training imports; diffusers and transformers load the class only when it is asked for.
NEEDED = {
    "numpy": "ndarray",
    "PIL.Image": "open",
    "safetensors": "safe_open",
    "huggingface_hub": "HfApi",
    "accelerate": "Accelerator",
    "peft": "LoraConfig",
    "transformers": "CLIPTextModelWithProjection",
    "diffusers": "UNet2DConditionModel",
}


def probe() -> dict[str, Any]:
    """What torch message of itself, and why any library cannot be imported."""
    found: dict[str, Any] = {"torch": _torch(), "errors": {}}
    if found["torch"]["error"]:
        return found
    for name, part in NEEDED.items():
        try:
            getattr(importlib.import_module(name), part)
        except Exception as error:
            found["errors"][name] = reason(error)
    return found


def reason(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _torch() -> dict[str, Any]:
    try:
        import torch
    except Exception as error:
        return {"error": reason(error)}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    found: dict[str, Any] = {
        "version": str(torch.__version__),
        "error": "",
        "warning": " ".join(" ".join(str(each.message).split()) for each in said),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "mps": torch.backends.mps.is_available(),
    }
    if available:
        found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        found["kernels"] = torch.cuda.get_arch_list()
        found["bf16"] = torch.cuda.is_bf16_supported()
    return found


if __name__ == "__main__":
    result = probe()
    sys.stdout.write("\n" + json.dumps(result) + "\n")
