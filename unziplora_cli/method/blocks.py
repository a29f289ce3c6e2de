"""Block separation: which part of SDXL's U-Net belongs wholly to one branch (paper, section 3.4).

The middle of the decoder decides content and style: ``up_blocks.0.attentions.0`` and ``.2`` are given to content
and ``.1`` to style as B-LoRA found for SDXL, mirrored here as *which branch must choose its columns*.
"""

from __future__ import annotations

from typing import Literal

Policy = Literal["both", "content", "style"]
"""Which branch is limited to chosen columns; under ``content`` or ``style`` the other branch keeps every column."""

SELECTIVE: dict[str, Policy] = {
    "up_blocks.0.attentions.0.": "style",
    "up_blocks.0.attentions.1.": "content",
    "up_blocks.0.attentions.2.": "style",
    "up_blocks.1.attentions.": "content",
}


def policy(layer: str, *, block_separation: bool = True) -> Policy:
    """Which branch of ``layer`` must choose columns; without block separation always both.

    >>> policy("up_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q")
    'content'
    >>> policy("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    'both'
    """
    if block_separation:
        for prefix, selective in SELECTIVE.items():
            if layer.startswith(prefix):
                return selective
    return "both"
