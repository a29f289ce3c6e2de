"""Which keys each program takes from a LoRA file, as its own code does, and what becomes of the rest.

The rules were taken from the sources at the versions given here; SDXL's U-Net only. A rule is a naming,
``lora_unet_<diffusers name>``, ``lora_unet_<original name>`` (dots as underscores), ``unet.<diffusers name>``
or ``diffusion_model.<original name>``, with the endings by which the program knows the two tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from unziplora_cli.adapters.diffusers import ADAPTER_METADATA
from unziplora_cli.adapters.kohya import PREFIX
from unziplora_cli.adapters.layer_names import diffusers_layer, ldm_layer
from unziplora_cli.adapters.tensors import summarize

_KOHYA = (".lora_down.weight", ".lora_up.weight")
_PEFT = (".lora_A.weight", ".lora_B.weight")
_OLDER = (".lora.down.weight", ".lora.up.weight")
_ALPHA = ".alpha"
_TEXT = ("attn2.to_k", "attn2.to_v")


def _named(prefix: str, layer: Callable[[str], str | None], dotted: bool) -> Callable[[str], str | None]:
    def read(module: str) -> str | None:
        name = module.removeprefix(prefix)
        return layer(name) if module.startswith(prefix) and ("." in name) == dotted else None

    return read


KOHYA_DIFFUSERS = _named(PREFIX, diffusers_layer, dotted=False)
KOHYA_ORIGINAL = _named(PREFIX, ldm_layer, dotted=False)
UNET = _named("unet.", diffusers_layer, dotted=True)
MODEL = _named("diffusion_model.", ldm_layer, dotted=True)


@dataclass(frozen=True, slots=True)
class Program:
    """One program's rules.

    ``rules`` pairs a naming of modules with the endings it may have. ``unknown`` says what becomes of a file
    with a key that no rule knows: the key is left out, or the file is refused. ``one_naming`` refuses a file
    that mixes two namings. ``needs_text_layer`` is a program that knows SDXL by a key or value projection of
    cross-attention. ``header_alpha`` reads alpha from the header, and then refuses alphas among the tensors.
    """

    name: str
    version: str
    rules: tuple[tuple[Callable[[str], str | None], tuple[tuple[str, str], ...]], ...]
    unknown: Literal["left out", "refused"]
    one_naming: bool = False
    needs_text_layer: bool = False
    header_alpha: bool = False


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What a program makes of a file: the layers it adapts, the keys it leaves out, or why it refuses it."""

    program: Program
    layers: frozenset[str]
    left_out: tuple[str, ...]
    refusal: str = ""

    @property
    def complete(self) -> bool:
        """Whether every key is taken."""
        return not self.left_out and not self.refusal


_ANY = (_KOHYA, _PEFT, _OLDER)
_LORA_UNET = ((KOHYA_DIFFUSERS, (_KOHYA,)), (KOHYA_ORIGINAL, (_KOHYA,)))

PROGRAMS = (
    Program(
        "ComfyUI",
        "comfy/lora.py at 17358c8",
        ((KOHYA_DIFFUSERS, _ANY), (KOHYA_ORIGINAL, _ANY), (MODEL, _ANY)),
        unknown="left out",
    ),
    Program("A1111", "1.10.1", _LORA_UNET, unknown="left out"),
    Program(
        "Forge",
        "2.0.1",
        ((KOHYA_DIFFUSERS, _ANY), (KOHYA_ORIGINAL, _ANY), (MODEL, _ANY)),
        unknown="left out",
    ),
    Program("InvokeAI", "6.0.1", _LORA_UNET, unknown="refused", one_naming=True, needs_text_layer=True),
    Program(
        "diffusers",
        "0.42.1",
        (*_LORA_UNET, (UNET, (_PEFT, _OLDER))),
        unknown="refused",
        one_naming=True,
        header_alpha=True,
    ),
)

READERS: Mapping[str, tuple[str, ...]] = {
    "kohya": ("ComfyUI", "A1111", "Forge", "InvokeAI", "diffusers"),
    "ldm": ("ComfyUI", "A1111", "Forge", "InvokeAI", "diffusers"),
    "diffusers": ("diffusers",),
    "peft": ("diffusers",),
    "comfyui": ("ComfyUI", "Forge"),
    "paper": (),
}
"""The programs that take each format; the others leave such a file out without effect, or refuse it."""


def simulate_load(program: Program, keys: Collection[str], metadata: Mapping[str, str]) -> LoadResult:
    """What ``program`` makes of a file with these keys and this metadata."""
    tensors_by_layer: dict[str, set[str]] = {}
    namings: set[int] = set()
    taken: set[str] = set()
    for number, (naming, endings) in enumerate(program.rules):
        for key in keys:
            ending = next((e for pair in endings for e in (*pair, _ALPHA) if key.endswith(e)), None)
            layer = naming(key.removesuffix(ending)) if ending else None
            if ending and layer:
                taken.add(key)
                namings.add(number)
                tensors_by_layer.setdefault(layer, set()).add(ending)
    layers = frozenset(layer for layer, found in tensors_by_layer.items() if len(found - {_ALPHA}) == 2)
    left_out = tuple(key for key in keys if key not in taken)
    return LoadResult(program, layers, left_out, _refusal(program, layers, left_out, namings, keys, metadata))


def _refusal(
    program: Program,
    layers: frozenset[str],
    left_out: tuple[str, ...],
    namings: set[int],
    keys: Collection[str],
    metadata: Mapping[str, str],
) -> str:
    if program.unknown == "refused" and left_out:
        return f"it refuses the file for {summarize(list(left_out), 1)}"
    if program.one_naming and len(namings) > 1:
        return "it refuses a file that names its layers in two ways"
    if program.needs_text_layer and layers and not any(layer.endswith(_TEXT) for layer in layers):
        return "it does not know it as SDXL's without a key or value of cross-attention"
    alphas = any(key.endswith(_ALPHA) for key in keys)
    if program.header_alpha and alphas and ADAPTER_METADATA in metadata:
        return f"it refuses alphas together with {ADAPTER_METADATA}"
    return ""
