"""UnZipLoRA (Liu, Shah, Cui, Lazebnik; arXiv 2412.04465) in plain PyTorch, without any acceleration.

Reading order: ``layer`` (one projection with a content and a style branch), ``blocks`` (which branch owns
which U-Net block), ``importance`` (which output columns matter to a branch), ``schedule`` (what happens after
which step), ``separation`` (doing it), ``losses``, ``lora`` (weights outside a network), ``inject`` (into a
U-Net and out again).
"""
