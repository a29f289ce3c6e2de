"""The names of SDXL's attention projections in diffusers and in the original code (LDM).

``down_blocks.i.attentions.j`` is ``input_blocks.(3i + j + 1).1``, ``mid_block.attentions.0`` is
``middle_block.1`` and ``up_blocks.i.attentions.j`` is ``output_blocks.(3i + j).1``; the rest is the same.
"""

from __future__ import annotations

import re

_TAIL = r"transformer_blocks[._](\d+)[._](attn[12])[._](to_[qkv]|to_out[._]0)"
_DIFFUSERS = re.compile(r"(?:(down|up)_blocks[._](\d+)|mid_block)[._]attentions[._](\d+)[._]" + _TAIL)
_LDM = re.compile(r"(?:(input|output)_blocks[._](\d+)|middle_block)[._]1[._]" + _TAIL)


def diffusers_layer(name: str) -> str | None:
    """The layer for a diffusers name with dots or underscores; None for any other name.

    >>> diffusers_layer("mid_block_attentions_0_transformer_blocks_3_attn1_to_out_0")
    'mid_block.attentions.0.transformer_blocks.3.attn1.to_out.0'
    """
    match = _DIFFUSERS.fullmatch(name)
    if match is None:
        return None
    side, number, attention, *tail = match.groups()
    group = f"{side}_blocks.{number}" if side else "mid_block"
    return _join(f"{group}.attentions.{attention}", *tail)


def processor_layer(name: str) -> str | None:
    """The layer for a name of diffusers' former LoRA attention processors; None for any other name.

    >>> processor_layer("mid_block.attentions.0.transformer_blocks.3.attn1.processor.to_out")
    'mid_block.attentions.0.transformer_blocks.3.attn1.to_out.0'
    """
    attention, _, projection = name.partition(".processor.")
    return diffusers_layer(f"{attention}.{projection}{'.0' if projection == 'to_out' else ''}")


def ldm_layer(name: str) -> str | None:
    """The layer, under its diffusers name, for a name of the original code; None for any other name.

    >>> ldm_layer("input_blocks.4.1.transformer_blocks.0.attn1.to_k")
    'down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k'
    """
    match = _LDM.fullmatch(name)
    if match is None:
        return None
    side, number, *tail = match.groups()
    if side is None:
        return _join("mid_block.attentions.0", *tail)
    block, attention = divmod(int(number) - (side == "input"), 3)
    if block < 0 or (side == "input" and attention == 2):  # a downsampler
        return None
    return _join(f"{'down' if side == 'input' else 'up'}_blocks.{block}.attentions.{attention}", *tail)


def to_ldm(layer: str) -> str:
    """The name of a layer in the original code; the inverse of :func:`ldm_layer`.

    >>> to_ldm("up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_out.0")
    'output_blocks.5.1.transformer_blocks.0.attn2.to_out.0'
    """
    group, _, rest = layer.partition(".transformer_blocks.")
    side, *numbers = re.findall(r"^[a-z]+|\d+", group)
    if side == "mid":
        name = "middle_block.1"
    else:
        block, attention = map(int, numbers)
        index = 3 * block + attention
        name = f"input_blocks.{index + 1}.1" if side == "down" else f"output_blocks.{index}.1"
    return f"{name}.transformer_blocks.{rest}"


def _join(group: str, block: str, attention: str, projection: str) -> str:
    return f"{group}.transformer_blocks.{block}.{attention}.{projection.replace('_0', '.0')}"
