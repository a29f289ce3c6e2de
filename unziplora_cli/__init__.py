"""Split one image into a content LoRA and a style LoRA, and recombine them."""

__version__ = "1.0.0"
