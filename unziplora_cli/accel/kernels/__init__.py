"""Kernels in Triton for chains of operations that torch runs one by one. They import only where Triton is.

Arithmetic is float32 in registers; the storage keeps its format, bfloat16, float16 or float32. Nothing waits
for the GPU and block sizes are fixed, so that a call can be captured in a CUDA graph once it has run (the
first run of a shape compiles).
"""
