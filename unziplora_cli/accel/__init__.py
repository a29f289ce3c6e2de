"""The same functions as in ``method`` and diffusers, faster or in less memory; each can be switched off.

``fused_lora`` (LoRAs fused into the weights that they adapt), ``fused_modules`` and ``kernels`` (fused GPU
kernels), ``cuda_graph``, ``int8``, ``device``. The settings ``fuse``, ``capture`` and ``quantize`` select
them. In float32 the results differ from the plain ones by rounding only, except for int8.
"""
