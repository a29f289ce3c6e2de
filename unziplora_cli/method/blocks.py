"""Block separation: which part of SDXL's U-Net belongs wholly to one branch (paper, section 3.4).

B-LoRA found that two blocks of SDXL's decoder decide most: ``up_blocks.0.attentions.0`` what is shown,
``up_blocks.0.attentions.1`` how. UnZipLoRA gives the first to content and the second to style, and the outer
decoder, which paints texture, to style. The owner keeps every column there; the other branch chooses.
"""

from __future__ import annotations

from typing import Literal

Policy = Literal["both", "content", "style"]
"""Which branch is limited to chosen columns; under ``content`` or ``style`` the other branch keeps every
column."""

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
