"""Which programs load a LoRA file: their rules as data, as observed with the versions given here.

Only files that :func:`~unziplora_cli.adapters.lora_file.read_lora` accepts are judged: LoRAs of SDXL's
attention projections in known layouts, without any other tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

from unziplora_cli.adapters.adapter_config import ADAPTER_METADATA
from unziplora_cli.adapters.lora_file import LoadedLoRA


@dataclass(frozen=True, slots=True)
class Program:
    """One program's rules.

    Of a layout that is not in ``layouts`` the program ignores all keys, or, if ``strict``, refuses the file.
    A strict program also refuses a file with two layouts.
    """

    name: str
    version: str
    layouts: frozenset[str]
    strict: bool = False


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What a program does with a file: layers adapted, keys ignored without effect, or why it refuses it.

    ``supported`` is whether the program knows the layout of the file and has a base for it.
    """

    program: Program
    supported: bool
    layers: int
    ignored_keys: int
    refusal: str = ""

    @property
    def problem(self) -> bool:
        """Whether the program refuses a file whose layout it knows."""
        return self.supported and bool(self.refusal)


_LORA_UNET = frozenset({"sd-scripts", "kohya-diffusers"})

PROGRAMS = (
    Program("ComfyUI", "0.3.64", _LORA_UNET | {"comfyui", "lycoris", "diffusers-old"}),
    Program("A1111", "1.10.1", _LORA_UNET),
    Program("Forge", "dfdcbab (2025-06)", _LORA_UNET | {"comfyui", "lycoris", "diffusers-old"}),
    Program("InvokeAI", "6.14.0-alpha", _LORA_UNET, strict=True),
    Program("diffusers", "0.42.1", _LORA_UNET | {"diffusers", "diffusers-old", "peft"}, strict=True),
)


def expected_load(program: Program, loaded: LoadedLoRA, *, fits_sdxl: bool = True) -> LoadResult:
    """What ``program`` does with a file; of all programs, only diffusers can use other bases than SDXL's."""
    if not fits_sdxl and program.name != "diffusers":
        return LoadResult(program, False, 0, 0, "has no base of these sizes: the LoRA does not fit SDXL")
    supported = program.layouts.issuperset(loaded.layouts)
    refusal = _refusal(program, loaded) if supported or program.strict else ""
    if supported and not refusal:
        return LoadResult(program, supported, len(loaded.lora), 0)
    return LoadResult(program, supported, 0, 0 if refusal else len(loaded.keys), refusal)


def _refusal(program: Program, loaded: LoadedLoRA) -> str:
    if not program.layouts.issuperset(loaded.layouts):
        return f"refuses the file because of {loaded.keys[0]}"
    if program.strict and _LORA_UNET.issubset(loaded.layouts):
        return "refuses a file that names its layers in two ways"
    if (
        program.name == "InvokeAI"
        and loaded.lora
        and not any(layer.endswith(("attn2.to_k", "attn2.to_v")) for layer in loaded.lora)
    ):
        return "does not recognize SDXL without a key or value projection of cross-attention"
    has_alphas = any(key.endswith(".alpha") for key in loaded.keys)
    if program.name == "diffusers" and has_alphas and ADAPTER_METADATA in loaded.metadata:
        return f"refuses alphas together with {ADAPTER_METADATA}"
    return ""
