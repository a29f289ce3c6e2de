"""Block separation: which block of SDXL's U-Net belongs to which branch (paper, section 3.4).

B-LoRA found that two blocks of SDXL's decoder matter most: ``up_blocks.0.attentions.0`` for content and
``up_blocks.0.attentions.1`` for style. UnZipLoRA gives the first to content, and the second and the outer
decoder, which paints texture, to style. The owner of a block keeps every column there; the other branch
selects columns.
"""

from __future__ import annotations

from typing import Literal

Policy = Literal["both", "content", "style"]
"""Which branch is limited to selected columns; under ``content`` or ``style`` the other branch keeps all."""

SELECTIVE: dict[str, Policy] = {
    "up_blocks.0.attentions.0.": "style",
    "up_blocks.0.attentions.1.": "content",
    "up_blocks.0.attentions.2.": "style",
    "up_blocks.1.attentions.": "content",
}


def policy(layer: str, *, block_separation: bool = True) -> Policy:
    """Which branch of ``layer`` selects columns; always both without block separation.

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
