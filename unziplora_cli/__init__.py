"""Take one picture apart into a content LoRA and a style LoRA, and put them together again."""

__version__ = "0.1.0.dev0"
