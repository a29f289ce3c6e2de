"""A program that imports what training needs and prints the outcome as JSON on its last line.

It runs in a process of its own, because a broken torch can end the whole process.
"""

import importlib
import json
import sys
import warnings
from typing import Any

# What training uses of each library; diffusers and transformers import a class only when it is accessed.
NEEDED = {
    "numpy": "ndarray",
    "PIL.Image": "open",
    "safetensors": "safe_open",
    "huggingface_hub": "HfApi",
    "accelerate": "Accelerator",
    "peft": "LoraConfig",
    "transformers": "CLIPTextModelWithProjection",
    "diffusers": "UNet2DConditionModel",
    "pynvml": "nvmlInit",
}


def probe() -> dict[str, Any]:
    """Facts about torch, and the reason for each library that cannot be imported."""
    torch = _probe_torch()
    errors: dict[str, str] = {}
    if torch["error"]:
        return {"torch": torch, "errors": errors}
    for name, attribute in NEEDED.items():
        try:
            getattr(importlib.import_module(name), attribute)
        except Exception as error:
            errors[name] = reason(error)
    if torch.get("gpus") and "diffusers" not in errors:
        torch["kernel_problem"] = _kernel_problem()
    return {"torch": torch, "errors": errors}


def reason(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _probe_torch() -> dict[str, Any]:
    try:
        import torch
    except Exception as error:
        return {"error": reason(error)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    facts: dict[str, Any] = {
        "version": str(torch.__version__),
        "error": "",
        "warning": " ".join(" ".join(str(warning.message).split()) for warning in caught),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "mps": torch.backends.mps.is_available(),
    }
    if available:
        facts["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        facts["kernels"] = torch.cuda.get_arch_list()
        facts["bf16"] = torch.cuda.is_bf16_supported()
    return facts


def _kernel_problem() -> str:
    """Why the fused kernels cannot run: Triton, the C compiler that it calls, or the driver."""
    try:
        import torch

        from unziplora_cli.accel.fused_modules import kernel_problem

        return kernel_problem(torch.device("cuda")) or ""
    except Exception as error:
        return reason(error)


if __name__ == "__main__":
    result = probe()
    sys.stdout.write("\n" + json.dumps(result) + "\n")
