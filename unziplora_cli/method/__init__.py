"""UnZipLoRA (Liu, Shah, Cui, Lazebnik; arXiv 2412.04465), in plain PyTorch.

Read in this order: ``layer`` (one projection with a content and a style branch), ``blocks`` (which part of
the U-Net belongs to which branch), ``importance`` (which output columns matter to a branch), ``schedule``
(what happens at which step), ``separation`` (doing it), ``losses``, ``inject`` (into a U-Net and out again).
"""
